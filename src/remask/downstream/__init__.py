"""What follows pre-training: fine-tuning, segmentation, detection; each with its data, model, metric and picture."""
