"""Frozen features and what is learned from them: kNN, linear and attentive probes."""
