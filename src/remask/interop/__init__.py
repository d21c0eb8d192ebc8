"""Other people's checkpoint layouts ⇄ ours, and the export that timm loads. Weights are data: nothing is executed."""

from remask.interop import beit, convmae, dmjd, mae, maskfeat, simmim

__all__ = ["beit", "convmae", "dmjd", "mae", "maskfeat", "simmim"]
