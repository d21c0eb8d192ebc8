"""CrossMAE's decoder (Fu et al., arXiv 2401.14391): mask tokens attend to visible tokens, and not to each other."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.layers import LayerNorm, Mlp
from timm.layers.config import use_fused_attn
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from remask.heads.fused import Fused
from remask.heads.partial_block import by_head, mixed
from remask.tokens import sincos_positions
from remask.types import Features, Grid
from remask.views import Views


class CrossAttention(nn.Module):
    """The layers of an attention whose keys and values come from elsewhere, of another width; named as timm's."""

    def __init__(self, width: int, width_of_keys: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.scale, self.fused_attn = heads, (width // heads) ** -0.5, use_fused_attn()
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width_of_keys, 2 * width)
        self.proj = nn.Linear(width, width)


class CrossBlock(nn.Module):
    """x + CA(LN x, y), then x + MLP(LN x); no attention among the rows of x."""

    def __init__(self, width: int, width_of_keys: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width, eps=1e-6)
        self.attn = CrossAttention(width, width_of_keys, heads)
        self.norm2 = LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(
        self, x: Float[Tensor, "*R Q D"], y: Float[Tensor, "R T E"], ids: Int[Tensor, "R M"] | None = None
    ) -> Float[Tensor, "R M D"]:
        """The block on the rows x of every image; with `ids`, x is a table [N, D] and its rows are looked up.

        The queries of a table are projected for the fewer of its N rows and the R·M that are looked up.
        """
        attention = self.attn
        if ids is not None and ids.numel() > x.shape[-2]:
            queries = F.embedding(ids, attention.q(self.norm1(x)))
            x = F.embedding(ids, x)
        else:
            x = x if ids is None else F.embedding(ids, x)
            queries = attention.q(self.norm1(x))
        (q,) = by_head(queries, attention.num_heads, 1)
        return mixed(self, x, q, *by_head(attention.kv(y), attention.num_heads, 2))


class CrossDecoder(nn.Module):
    """Blocks of cross-attention from mask tokens to the visible tokens, prefix included (2401.14391, section 3).

    A prediction does not depend on which other tokens are predicted, so any region within the masked tokens costs in
    proportion to its size. The width changes from D in the projections to keys and values: no embedding layer.

    maps    how many layers of the backbone it reads: of several, every block sees its own weighted sum (Eq. 1)
    """

    mask_token: Tensor
    positions: Tensor

    def __init__(
        self,
        width_in: int,
        width_out: int,
        grid: Grid,
        width: int = 512,
        depth: int = 12,
        heads: int = 16,
        mlp_ratio: float = 4.0,
        region: Literal["masked", "predicted"] = "masked",
        maps: int = 1,
    ) -> None:
        super().__init__()
        self.grid, self.width, self.region, self.checkpointing = grid, width, region, False
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        nn.init.normal_(self.mask_token, std=0.02)
        self.fused = Fused(width_in, maps, depth) if maps > 1 else None
        self.blocks = nn.ModuleList(CrossBlock(width, width_in, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.predict = nn.Linear(width, width_out)
        self.register_buffer("positions", sincos_positions(grid, width), persistent=False)

    def forward(self, features: Features | Sequence[Features], views: Views) -> Float[Tensor, "VB R P"]:
        """Predictions of the region, from the features of one layer, or of as many as there are maps."""
        y = self._keys(features)
        positions = self.positions
        if views.grid != self.grid:
            positions = sincos_positions(views.grid, self.width).to(positions.device)
        first, *rest = self.blocks
        x = self._run(first, self.mask_token[0] + positions, y[0], views.ids(self.region))
        for block, keys in zip(rest, y[1:], strict=True):
            x = self._run(block, x, keys)
        return self.predict(self.norm(x))

    def _keys(self, features: Any) -> Sequence[Float[Tensor, "VB T D"]]:
        """What the rows of each block attend to: prefix and visible tokens of its sum, or of the one layer."""
        if self.fused is not None:
            return self.fused(features)
        return [torch.cat(features, dim=1)] * len(self.blocks)

    def _run(self, block: Callable[..., Tensor], *inputs: Any) -> Tensor:
        return checkpoint(block, *inputs, use_reentrant=False) if self.checkpointing else block(*inputs)

    def describe(self) -> str:
        count = len(self.blocks)
        return f"cross decoder of {count} block{'s' * (count != 1)}, width {self.width}"


__all__ = ["CrossAttention", "CrossBlock", "CrossDecoder"]
