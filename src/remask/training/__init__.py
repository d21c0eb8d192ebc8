"""A training loop for any model: steps, optimizer, checkpoints, cost, processes, progress. Independent of masking."""
