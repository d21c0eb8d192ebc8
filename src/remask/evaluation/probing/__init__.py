"""Frozen features and probes on them: kNN, linear, attentive."""
