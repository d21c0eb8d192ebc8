"""HPM's second decoder (2304.05919): how hard each token is, of masked views and of whole images."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from remask.heads.decoder import Decoder
from remask.tokens import sincos_positions, take
from remask.types import Features, Grid
from remask.views import Views


class LossDecoder(Decoder):
    """A `Decoder` whose mask tokens are also asked about images that are seen whole, at every place of the grid.

    So the same outputs are read as are trained: those at mask tokens. Over a backbone that replaces masked tokens it
    takes the visible ones alone. Views that hide all tokens stand for the whole image, of which all tokens are given.
    One number a token, without biases behind the last block: a ranking sees differences alone.
    """

    def __init__(
        self,
        width_in: int,
        grid: Grid,
        width: int = 512,
        depth: int = 1,
        heads: int = 16,
        region: Literal["masked", "predicted"] = "masked",
    ) -> None:
        super().__init__(width_in, 1, grid, width, depth, heads, region=region)
        self.norm, self.predict = nn.LayerNorm(width, eps=1e-6, bias=False), nn.Linear(width, 1, bias=False)

    def forward(self, features: Features, views: Views) -> Float[Tensor, "VB R P"]:
        prefix, tokens = features
        n = views.mask.shape[-1]
        if views.hidden < n:
            visible = take(tokens, views.visible) if tokens.shape[1] == n else tokens
            return super().forward(Features(prefix, visible), views)
        positions = self.positions
        if views.grid != self.grid:
            positions = sincos_positions(views.grid, self.width).to(positions.device)
        x = torch.cat([self.embed(prefix), self.embed(tokens) + positions], dim=1)
        x = torch.cat([x, (self.mask_token + positions).to(x.dtype).expand(len(x), -1, -1)], dim=1)
        for block in self.blocks:
            x = self._run(block, x)
        return self.predict(self.norm(x[:, -n:]))


__all__ = ["LossDecoder"]
