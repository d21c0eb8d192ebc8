"""What a backbone has learned: frozen features, kNN and linear probes, pictures of what a method sees and predicts."""
