"""What a backbone has learned: frozen features, kNN and linear probes, pictures of what a method sees and predicts."""

from remask.evaluation.features import extract, pixels
from remask.evaluation.knn import knn_classes, weighted_knn
from remask.evaluation.linear import linear_probe
from remask.evaluation.probe import probe

__all__ = ["extract", "knn_classes", "linear_probe", "pixels", "probe", "weighted_knn"]
