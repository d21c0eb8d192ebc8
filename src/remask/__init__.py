"""remask: efficient masked image modeling (DMJD, MAE and friends)."""

__version__ = "0.1.0"
