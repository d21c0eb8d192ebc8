"""Figures of what a network has learned: attention, reconstruction, embedding, t-SNE."""
