"""Other people's checkpoint layouts ⇄ ours, and the export that timm loads. Weights are data: nothing is executed."""

from remask.interop import dmjd, mae

__all__ = ["dmjd", "mae"]
