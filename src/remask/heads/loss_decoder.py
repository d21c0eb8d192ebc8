"""HPM's second decoder (2304.05919): how hard each token is, of masked views and of whole images."""

import torch
from jaxtyping import Float
from torch import Tensor

from remask.heads.decoder import Decoder
from remask.tokens import sincos_positions, take
from remask.types import Features
from remask.views import Views


class LossDecoder(Decoder):
    """A `Decoder` that also reads all tokens of an image, where none was dropped, in raster order, without mask tokens.

    So the same weights predict the masked tokens of a view, in training, and every token of an image seen whole.
    """

    def forward(self, features: Features, views: Views) -> Float[Tensor, "VB R P"]:
        prefix, tokens = features
        if tokens.shape[1] != views.mask.shape[-1]:
            return super().forward(features, views)
        positions = self.positions
        if views.grid != self.grid:
            positions = sincos_positions(views.grid, self.width).to(positions.device)
        x = torch.cat([self.embed(prefix), self.embed(tokens) + positions], dim=1)
        for block in self.blocks:
            x = self._run(block, x)
        return self.predict(self.norm(take(x[:, prefix.shape[1] :], views.ids(self.region))))


__all__ = ["LossDecoder"]
