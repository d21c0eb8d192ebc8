"""Any training loop: step, optimizer, checkpoint, cost, processes, what is shown; it knows nothing of masking."""
