"""Figures and files about a network's features: attention, reconstruction, embedding, neighbours, t-SNE."""
