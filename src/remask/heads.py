"""Heads: the `h` of the equation, (features, views) -> predictions for the rows of a region, in raster order."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.layers import LayerNorm, Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from remask.tokens import finer, sincos_positions, take
from remask.types import Features, Grid
from remask.views import Views


class Head(Protocol):
    """Predicts the rows of one region from a backbone's features."""

    def __call__(self, features: Features, views: Views) -> Float[Tensor, "VB R P"]: ...

    def describe(self) -> str:
        """A few words for the printed equation."""
        ...


class Decoder(nn.Module):
    """MAE's decoder (2111.06377, section 3), DMJD's masked prediction branch: transformer blocks over all tokens.

    Tokens stand in the order prefix, visible, masked: attention does not mind, so nothing is un-shuffled, and the
    last block and the output layer run for the masked rows only, which come last. What enters at a masked place is the
    same in every image, and so are its queries, keys and values in the first block: they are computed once per place.
    Predicts the masked region.
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
    ) -> None:
        super().__init__()
        self.grid, self.width, self.checkpointing = grid, width, False
        self.embed = nn.Linear(width_in, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        nn.init.normal_(self.mask_token, std=0.02)
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio, qkv_bias=True, norm_layer=partial(LayerNorm, eps=1e-6)) for _ in range(depth)
        )
        self.norm = _norm(width)
        self.predict = nn.Linear(width, width_out)
        # stored with the weights: a checkpoint's own table is taken as it is
        self.register_buffer("positions", sincos_positions(grid, width))

    def forward(self, features: Features, views: Views) -> Float[Tensor, "VB M P"]:
        positions = self.positions
        if views.grid != self.grid:
            positions = sincos_positions(views.grid, self.width).to(positions.device)
        visible = self.embed(features.tokens) + positions[views.visible]
        # official: prefix tokens get a position row too, which is zero
        seen = torch.cat([self.embed(features.prefix), visible], dim=1)
        first, *rest = self.blocks
        x = self._run(_entered, first, seen, self.mask_token[0] + positions, views.masked, not rest)
        for block in rest[:-1]:
            x = self._run(block, x)
        if rest:
            x = self._run(_tail, rest[-1], x, views.hidden)
        return self.predict(self.norm(x))

    def _run(self, layer: Callable[..., Tensor], *inputs: Any) -> Tensor:
        return checkpoint(layer, *inputs, use_reentrant=False) if self.checkpointing else layer(*inputs)

    def describe(self) -> str:
        return f"decoder of {len(self.blocks)} blocks, width {self.width}"


class Projector(nn.Module):
    """DMJD's visible distillation branch (2301.00230, section III-C): a projector and a one-layer predictor.

    Three Linear + LayerNorm with GELU between them, the last norm without affine, then one Linear. Token by token:
    each visible token predicts its own target (Eq. 5). `layers` is 1 for the linear projector of Table V. `fine` as in
    `TokenDecoder`.
    # official: predictions in shuffled order meet targets in raster order; here aligned, see docs/decisions/0001.
    """

    def __init__(
        self,
        width_in: int,
        width_out: int,
        width: int = 512,
        region: str = "visible",
        layers: int = 3,
        fine: Grid = (1, 1),
    ) -> None:
        super().__init__()
        self.region, self.width, self.layers, self.fine = region, width, layers, fine
        parts: list[nn.Module] = []
        for i in range(layers - 1):
            parts += [nn.Linear(width if i else width_in, width), _norm(width), nn.GELU()]
        last = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.project = nn.Sequential(*parts, nn.Linear(width if layers > 1 else width_in, width), last)
        self.predict = nn.Linear(width, width_out * fine[0] * fine[1])

    def forward(self, features: Features, views: Views) -> Float[Tensor, "VB R P"]:
        if self.fine == (1, 1):
            return self.predict(self.project(_rows(features, views, self.region)))
        return _finer_rows(self.predict(self.project(features.tokens)), views, self.region, self.fine)

    def describe(self) -> str:
        return f"projector of {self.layers} layer{'s' * (self.layers > 1)}, width {self.width}, and predictor"


class Linear(nn.Module):
    """One linear layer on each token of a region (SimMIM, MaskFeat, BEiT). `fine` as in `TokenDecoder`."""

    def __init__(self, width_in: int, width_out: int, region: str = "masked", fine: Grid = (1, 1)) -> None:
        super().__init__()
        self.region, self.fine = region, fine
        self.predict = nn.Linear(width_in, width_out * fine[0] * fine[1])

    def forward(self, features: Features, views: Views) -> Float[Tensor, "VB R P"]:
        if self.fine == (1, 1):
            return self.predict(_rows(features, views, self.region))
        return _finer_rows(self.predict(features.tokens), views, self.region, self.fine)

    def describe(self) -> str:
        return "linear"


class Align(nn.Module):
    """A student's tokens in the space of a teacher (DMAE 2208.12256, MOMA 2302.02089), each by itself.

    kind    "linear": one layer · "mlp": two of the teacher's width with GELU between them
    region  "seen": prefix tokens, then the visible ones
    """

    def __init__(
        self, width_in: int, width_out: int, kind: Literal["linear", "mlp"] = "linear", region: str = "seen"
    ) -> None:
        super().__init__()
        self.kind, self.region = kind, region
        linear = kind == "linear"
        self.project = nn.Linear(width_in, width_out) if linear else Mlp(width_in, width_out, width_out)

    def forward(self, features: Features, views: Views) -> Float[Tensor, "VB R P"]:
        return self.project(_rows(features, views, self.region))

    def describe(self) -> str:
        return "linear" if self.kind == "linear" else "MLP of 2 layers"


class TokenDecoder(nn.Module):
    """FastMIM's decoder (2212.06593): plain transformer blocks over all tokens of a backbone that saw them all.

    No positions and no mask tokens: what is hidden was replaced before the backbone. Prefix tokens pass through.
    fine    rows and columns into which the grid of the masks cuts a token (1, 1 unless masks are finer than tokens);
            a token then predicts a vector for each part
    eps     of the layer norms (official: 1e-6 over a ViT, 1e-5 over the others)
    """

    def __init__(
        self,
        width_in: int,
        width_out: int,
        width: int = 256,
        depth: int = 1,
        heads: int = 8,
        mlp_ratio: float = 4.0,
        fine: Grid = (1, 1),
        eps: float = 1e-6,
        region: str = "masked",
    ) -> None:
        super().__init__()
        self.width, self.fine, self.region, self.checkpointing = width, fine, region, False
        self.embed = nn.Linear(width_in, width)
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio, qkv_bias=True, norm_layer=partial(LayerNorm, eps=eps)) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=eps)
        self.predict = nn.Linear(width, width_out * fine[0] * fine[1])

    def forward(self, features: Features, views: Views) -> Float[Tensor, "VB R P"]:
        x, prefix = torch.cat([features.prefix, features.tokens], dim=1), features.prefix.shape[1]
        x = self.embed(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointing else block(x)
        x = self.norm(x[:, prefix:])
        if self.fine == (1, 1):
            return self.predict(take(x, views.rows(self.region)))
        return _finer_rows(self.predict(x), views, self.region, self.fine)

    def describe(self) -> str:
        return (
            f"decoder of {len(self.blocks)} block{'s' * (len(self.blocks) != 1)}, width {self.width}, over all tokens"
        )


def _norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=1e-6)


def _rows(features: Features, views: Views, region: str) -> Float[Tensor, "VB R D"]:
    """A backbone that drops masked tokens returns the visible rows; one that replaces them returns all."""
    if region == "seen":
        return torch.cat([features.prefix, _rows(features, views, "visible")], dim=1)
    if features.tokens.shape[1] == views.mask.shape[-1]:
        return take(features.tokens, views.rows(region))
    if region == "masked":
        raise ValueError("a linear head on masked tokens needs a backbone that replaces them; this one dropped them")
    return features.tokens


def _finer_rows(predicted: Float[Tensor, "VB n FP"], views: Views, region: str, fine: Grid) -> Float[Tensor, "VB R P"]:
    """The rows of a region on a grid that is finer than the tokens."""
    grid = views.grid[0] // fine[0], views.grid[1] // fine[1]
    return take(finer(predicted, grid, fine), views.rows(region))


def _entered(
    block: Block,
    seen: Float[Tensor, "R S D"],
    places: Float[Tensor, "N D"],
    ids: Int[Tensor, "R M"],
    tail: bool,
) -> Float[Tensor, "R T D"]:
    """A timm block of what was seen and, after it, the rows `ids` of `places`; with `tail` evaluated for these only.

    All rows together take M·R of N places: their queries, keys and values are projected for the fewer of the two.
    """
    attention = block.attn
    x = torch.cat([seen, F.embedding(ids, places).to(seen.dtype)], dim=1)
    if ids.numel() <= len(places):
        qkv = attention.qkv(block.norm1(x))
    else:
        projected = F.embedding(ids, attention.qkv(block.norm1(places)))
        qkv = torch.cat([attention.qkv(block.norm1(seen)), projected], dim=1)
    q, k, v = _by_head(qkv, attention.num_heads)
    count = ids.shape[1] if tail else x.shape[1]
    return _mixed(block, x[:, -count:], q[:, :, -count:], k, v)


def _tail(block: Block, x: Float[Tensor, "R T D"], count: int) -> Float[Tensor, "R M D"]:
    """A timm block evaluated for the last `count` tokens only; they attend to all. Exact, and cheaper by the rest."""
    attention, width, normed = block.attn, x.shape[-1], block.norm1(x)
    weight, bias = attention.qkv.weight, attention.qkv.bias
    q = _by_head(F.linear(normed[:, -count:], weight[:width], bias[:width]), attention.num_heads, 1)
    kv = _by_head(F.linear(normed, weight[width:], bias[width:]), attention.num_heads, 2)
    return _mixed(block, x[:, -count:], *q, *kv)


def _by_head(x: Float[Tensor, "R T nD"], heads: int, parts: int = 3) -> Sequence[Float[Tensor, "R h T d"]]:
    return x.unflatten(-1, (parts, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def _mixed(
    block: Block,
    x: Float[Tensor, "R Q D"],
    q: Float[Tensor, "R h Q d"],
    k: Float[Tensor, "R h T d"],
    v: Float[Tensor, "R h T d"],
) -> Float[Tensor, "R Q D"]:
    """A timm block from its queries, keys and values on."""
    attention = block.attn
    if attention.fused_attn:
        mixed = F.scaled_dot_product_attention(q, k, v)
    else:
        mixed = ((q * attention.scale) @ k.transpose(-2, -1)).softmax(dim=-1) @ v
    x = x + attention.proj(mixed.transpose(1, 2).flatten(2))
    return x + block.mlp(block.norm2(x))


__all__ = ["Align", "Decoder", "Head", "Linear", "Projector", "TokenDecoder"]
