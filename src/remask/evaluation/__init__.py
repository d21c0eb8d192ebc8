"""Evaluation of backbones: frozen features, kNN, linear and attentive probes, and figures of methods and features."""
