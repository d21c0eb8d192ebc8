"""Downstream tasks: fine-tuning, segmentation, detection; each with its data, model, metric and figures."""
