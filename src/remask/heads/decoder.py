"""Decoders of transformer blocks: MAE's over visible and mask tokens, FastMIM's over all tokens of a backbone."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from timm.layers import LayerNorm
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from remask.heads.partial_block import entered, last_rows
from remask.heads.rows import cell_rows
from remask.tokens import scatter, sincos_positions, take
from remask.types import Features, Grid
from remask.views import Views


class Decoder(nn.Module):
    """MAE's decoder (2111.06377, section 3), DMJD's masked prediction branch: transformer blocks over all tokens.

    Tokens stand in the order prefix, visible, masked: attention does not mind, so nothing is un-shuffled, and the
    last block and the output layer run for the masked rows only, which come last. A mask token plus its position is the
    same in every image, and so are its queries, keys and values in the first block: computed once per position.
    Predicts the masked region, or only its part that the views predict.
    """

    mask_token: Tensor
    positions: Tensor

    def __init__(
        self,
        width_in: int,
        width_out: int,
        grid: Grid,
        width: int = 512,
        depth: int = 8,
        heads: int = 16,
        mlp_ratio: float = 4.0,
        region: Literal["masked", "predicted"] = "masked",
    ) -> None:
        super().__init__()
        self.grid, self.width, self.region, self.checkpointing = grid, width, region, False
        self.embed = nn.Linear(width_in, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        nn.init.normal_(self.mask_token, std=0.02)
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio, qkv_bias=True, norm_layer=partial(LayerNorm, eps=1e-6)) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.predict: nn.Module = nn.Linear(width, width_out)
        # stored with the weights: a checkpoint's own table is taken as it is
        self.register_buffer("positions", sincos_positions(grid, width))

    def forward(self, features: Features, views: Views) -> Float[Tensor, "VB R P"]:
        masked, rows = views.masked, views.hidden
        if self.region == "predicted":
            masked, rows = views.masked_predicted_last, views.predicted.shape[1]
        return self.predict(self.norm(self._decoded(features, views, masked, rows)))

    def grid_tokens(self, features: Features, views: Views) -> Float[Tensor, "VB N d"]:
        """All tokens of the grid in raster order, before the output layer."""
        tokens = self._decoded(features, views, views.masked, None)[:, features.prefix.shape[1] :]
        places = torch.cat([views.visible, views.masked], dim=1)
        return self.norm(scatter(tokens, places, torch.zeros_like(tokens)))

    def _decoded(
        self, features: Features, views: Views, masked: Int[Tensor, "VB M"], rows: int | None
    ) -> Float[Tensor, "VB T d"]:
        """The last block's output for the last `rows` tokens of [prefix, visible, masked]; None: for all of them."""
        positions = self.positions
        if views.grid != self.grid:
            positions = sincos_positions(views.grid, self.width).to(positions.device)
        visible = self.embed(features.tokens) + positions[views.visible]
        # official: prefix tokens get a position row too, which is zero
        unmasked = torch.cat([self.embed(features.prefix), visible], dim=1)
        first, *rest = self.blocks
        x = self._run(entered, first, unmasked, self.mask_token[0] + positions, masked, None if rest else rows)
        for block in rest[:-1]:
            x = self._run(block, x)
        if rest:
            x = self._run(rest[-1], x) if rows is None else self._run(last_rows, rest[-1], x, rows)
        return x

    def _run(self, layer: Callable[..., Tensor], *inputs: Any) -> Tensor:
        return checkpoint(layer, *inputs, use_reentrant=False) if self.checkpointing else layer(*inputs)

    def describe(self) -> str:
        count = len(self.blocks)
        return f"decoder of {count} block{'s' * (count != 1)}, width {self.width}"


class TokenDecoder(nn.Module):
    """FastMIM's decoder (2212.06593): plain transformer blocks over all tokens of a backbone that drops none.

    No positions and no mask tokens: masked pixels were replaced before the backbone. Prefix tokens pass through.
    cells_per_token   rows and columns of mask cells in a token, for each of which it predicts a vector; (1, 1) unless
                      masks are finer than tokens
    eps               of the layer norms (official: 1e-6 over a ViT, 1e-5 over the others)
    """

    def __init__(
        self,
        width_in: int,
        width_out: int,
        width: int = 256,
        depth: int = 1,
        heads: int = 8,
        mlp_ratio: float = 4.0,
        cells_per_token: Grid = (1, 1),
        eps: float = 1e-6,
        region: str = "masked",
    ) -> None:
        super().__init__()
        self.width, self.cells_per_token, self.region, self.checkpointing = width, cells_per_token, region, False
        self.embed = nn.Linear(width_in, width)
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio, qkv_bias=True, norm_layer=partial(LayerNorm, eps=eps)) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=eps)
        self.predict = nn.Linear(width, width_out * cells_per_token[0] * cells_per_token[1])

    def forward(self, features: Features, views: Views) -> Float[Tensor, "VB R P"]:
        x, prefix = torch.cat([features.prefix, features.tokens], dim=1), features.prefix.shape[1]
        x = self.embed(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointing else block(x)
        x = self.norm(x[:, prefix:])
        if self.cells_per_token == (1, 1):
            return self.predict(take(x, views.ids(self.region)))
        return cell_rows(self.predict(x), views, self.region, self.cells_per_token)

    def describe(self) -> str:
        return (
            f"decoder of {len(self.blocks)} block{'s' * (len(self.blocks) != 1)}, width {self.width}, over all tokens"
        )
