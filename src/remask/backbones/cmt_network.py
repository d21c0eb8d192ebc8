"""CMT's plain network: convolutions and attention in every block of four stages. Its state dict is the export.

Part of `f` in the equation. CMT: Convolutional Neural Networks Meet Vision Transformers (Guo et al., arXiv 2107.06263),
in the form that FastMIM pre-trains (arXiv 2212.06593): the parameters have the names of that encoder. Its convolutions
overlap, so masked pixels are hidden before the stem and nothing is dropped. Channels come last inside: linear layers
and LayerNorms then need no copy, and convolutions and BatchNorms see the same memory as a channels_last map.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import DropPath
from torch import Tensor, nn

from remask.errors import UserError, setting
from remask.types import Grid, Size

STAGES = "abcd"
STRIDE = 32  # of the last stage; the stem halves, and then every stage does

# Arguments of `Cmt` by name. The small one, for 32 and 64 px on CPUs, thins keys out less: CMT's own ratios give every
# stage the last grid's number of keys, at 32 px a single one, over which attention has no choice.
VARIANTS: dict[str, dict[str, Any]] = {
    "cmt_s": {},
    "cmt_micro": {
        "stem_width": 16,
        "embed_dims": (24, 48, 96, 192),
        "depths": (1, 1, 2, 1),
        "num_heads": (1, 2, 4, 4),
        "sr_ratios": (4, 2, 1, 1),
    },
}


class Cmt(nn.Module):
    """The trunk of CMT, as a feature extractor or with a classifier on top. The defaults are CMT-S.

    img_size        pixels of the images that the position biases are built for; any other size that 32 divides is taken
                    too, the biases are then resized on the way
    in_chans        of the images, which come normalised
    num_classes     0: the map after the final norm. Else logits, from the mean of its cells
                    # official: fine-tuning puts a 1×1 convolution to 1280, BatchNorm and Swish in place of the norm
    stem_width      channels of the three convolutions before the first stage
    embed_dims, depths, num_heads, sr_ratios    by stage; a sr ratio is the stride at which keys and values are taken
    drop_path_rate  of the last block; from 0 at the first it grows evenly over the blocks of all stages
    Raises UserError for an image size, a width or a ratio that does not fit.

    It starts as the official encoder does in pre-training: Linear Xavier-uniform, convolutions Kaiming-normal by their
    fan-out (which counts all channels of a depth-wise one too), biases 0, position biases from N(0, 1).
    BatchNorm cannot train on a single image of 32×32 px: the last stage has one cell.
    """

    def __init__(
        self,
        img_size: int | Sequence[int] = 224,
        in_chans: int = 3,
        num_classes: int = 0,
        stem_width: int = 32,
        embed_dims: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (3, 3, 16, 3),
        num_heads: Sequence[int] = (1, 2, 4, 8),
        mlp_ratio: float = 4.0,
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        check_stages(embed_dims, depths, num_heads, sr_ratios)
        self.built_for: Size = (img_size, img_size) if isinstance(img_size, int) else (img_size[0], img_size[1])
        self.in_chans, self.num_classes, self.num_features = in_chans, num_classes, embed_dims[-1]
        self.depths, self.sr_ratios = tuple(depths), tuple(sr_ratios)
        self.feature_info = [
            {"num_chs": width, "reduction": 4 * 2**i, "module": f"blocks_{STAGES[i]}"}
            for i, width in enumerate(embed_dims)
        ]
        widths, total = (stem_width, *embed_dims), sum(depths)
        rates = (drop_path_rate * i / max(total - 1, 1) for i in range(total))
        for i, width in enumerate((in_chans, stem_width, stem_width)):
            self.add_module(f"stem_conv{i + 1}", nn.Conv2d(width, stem_width, 3, 1 if i else 2, padding=1))
            self.add_module(f"stem_norm{i + 1}", nn.BatchNorm2d(stem_width))
        for i, (grid, keys) in enumerate(self.grids(self.built_for)):
            sizes = widths[i + 1], num_heads[i], mlp_ratio, sr_ratios[i]
            table = torch.randn(num_heads[i], grid[0] * grid[1], keys[0] * keys[1])
            self.add_module(f"patch_embed_{STAGES[i]}", PatchEmbed(widths[i], widths[i + 1]))
            self.register_parameter(f"relative_pos_{STAGES[i]}", nn.Parameter(table))
            self.add_module(f"blocks_{STAGES[i]}", nn.ModuleList(Block(*sizes, next(rates)) for _ in range(depths[i])))
        self.norm = nn.LayerNorm(self.num_features, eps=1e-6)
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.apply(initialise)

    def grids(self, size: Size) -> list[tuple[Grid, Grid]]:
        """Grids of the queries and of the keys by stage. Raises UserError where the stages do not halve the image."""
        if min(size) < STRIDE or size[0] % STRIDE or size[1] % STRIDE:
            raise UserError(
                f"an image of {size[0]}×{size[1]} px cannot be halved down to CMT's cells of {STRIDE}×{STRIDE} px; "
                f"change {setting('data.image_size', 'the image size')}"
            )
        rows, columns = size[0] // 4, size[1] // 4
        queries = [(rows // 2**i, columns // 2**i) for i in range(len(STAGES))]
        return [(q, (q[0] // ratio, q[1] // ratio)) for q, ratio in zip(queries, self.sr_ratios, strict=True)]

    def relative(self, stage: int, size: Size) -> Float[Tensor, "heads Nq Nk"]:
        """A stage's position bias for images of `size` pixels, resized where they are not the ones built for."""
        (old, old_keys), (new, new_keys) = (self.grids(pixels)[stage] for pixels in (self.built_for, size))
        return resize_relative(getattr(self, f"relative_pos_{STAGES[stage]}"), (old, new), (old_keys, new_keys))

    def stages(self, images: Float[Tensor, "B C H W"], last: int = 3) -> list[Float[Tensor, "B _ _ _"]]:
        """The ends of the stages up to number `last`, channels last, before any final norm."""
        size = int(images.shape[-2]), int(images.shape[-1])
        self.grids(size)
        x, ends = images, list[Tensor]()
        for i in (1, 2, 3):
            x = getattr(self, f"stem_norm{i}")(F.gelu(getattr(self, f"stem_conv{i}")(x)))
        x = x.permute(0, 2, 3, 1)
        for i, name in enumerate(STAGES[: last + 1]):
            x, bias = getattr(self, f"patch_embed_{name}")(x), self.relative(i, size)
            for block in getattr(self, f"blocks_{name}"):
                x = block(x, bias)
            ends.append(x)
        return ends

    def forward_features(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """The map of the last stage after the final norm, a cell for 32×32 pixels."""
        return self.norm(self.stages(images)[-1]).permute(0, 3, 1, 2)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B *rest"]:
        """Logits where there are classes, or else `forward_features`."""
        x = self.forward_features(images)
        return self.head(x.mean((2, 3))) if self.num_classes else x

    def forward_intermediates(
        self,
        x: Float[Tensor, "B C H W"],
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Ends of the stages as NCHW maps, finest first; alone, or after the output of `forward_features`, as in timm.

        indices     None: all, a number: the last so many, else those named
        norm        whether the last stage's map is taken after the final norm; no other has one
        """
        if output_fmt != "NCHW":
            raise UserError(f"CMT gives its intermediate maps as NCHW, not as {output_fmt}; ask for output_fmt='NCHW'")
        chosen = named_stages(indices)
        ends = self.stages(x, max(chosen) if stop_early and intermediates_only else len(STAGES) - 1)
        normed = [*ends[:-1], self.norm(ends[-1])] if len(ends) == len(STAGES) else ends
        maps = [(normed if norm else ends)[i].permute(0, 3, 1, 2) for i in sorted(chosen)]
        return maps if intermediates_only else (normed[-1].permute(0, 3, 1, 2), maps)

    def resized(self, state: Mapping[str, Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
        """The state dict of such a network built for images of `size` pixels, its position biases resized to ours.

        Raises UserError where the state holds no biases, or not those of that size.
        """
        out = dict(state)
        for name, old, new in zip(STAGES, self.grids(size), self.grids(self.built_for), strict=True):
            key, (queries, keys) = f"relative_pos_{name}", old
            shape, cells = tuple(state[key].shape) if key in state else (), (queries[0] * queries[1], keys[0] * keys[1])
            if shape[1:] != cells:
                raise UserError(
                    f"{key} has the shape {shape}, where {size[0]}×{size[1]} px give {cells[0]}×{cells[1]} a head; "
                    "check the image size and the sr ratios that the state was made with"
                )
            out[key] = resize_relative(state[key], (queries, new[0]), (keys, new[1]))
        return out


class PatchEmbed(nn.Module):
    """A 2×2 convolution of stride 2, then LayerNorm over the channels (eps 1e-5; all others' is 1e-6)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, 2, 2)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Float[Tensor, "B H W C"]) -> Float[Tensor, "B h w D"]:
        return self.norm(over_maps(self.proj, x))


class Block(nn.Module):
    """Local perception (`proj`, a convolution with a shortcut, never dropped), then pre-norm attention and MLP."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, sr_ratio: int, drop_path: float) -> None:
        super().__init__()
        self.proj = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads, sr_ratio)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Float[Tensor, "B h w D"], bias: Float[Tensor, "heads Nq Nk"]) -> Float[Tensor, "B h w D"]:
        x = x + over_maps(self.proj, x)
        x = x + self.drop_path(self.attn(self.norm1(x), bias))
        return x + self.drop_path(over_maps(self.mlp, self.norm2(x)))


class Attention(nn.Module):
    """CMT's lightweight attention: keys and values come from a map that a depth-wise convolution has thinned out."""

    def __init__(self, width: int, heads: int, sr_ratio: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))
        thin = (nn.Conv2d(width, width, sr_ratio, sr_ratio, groups=width), nn.BatchNorm2d(width))
        self.sr = nn.Sequential(*thin[: 2 if sr_ratio > 1 else 0])

    def forward(self, x: Float[Tensor, "B h w D"], bias: Float[Tensor, "heads Nq Nk"]) -> Float[Tensor, "B h w D"]:
        thinned = over_maps(self.sr, x)
        q, k, v = (
            layer(tokens).flatten(1, 2).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer, tokens in ((self.q, x), (self.k, thinned), (self.v, thinned))
        )
        # CMT, LMHSA: softmax(QKᵀ / √d + B) V
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype).unsqueeze(0))
        return self.proj(mixed.transpose(1, 2).flatten(2).unflatten(1, x.shape[1:3]))


class Mlp(nn.Module):
    """1×1, depth-wise 3×3 with a shortcut before its GELU, 1×1 without GELU; all end in BatchNorm, as the stem's do."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(width, hidden, 1), nn.GELU(), nn.BatchNorm2d(hidden))
        self.proj = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.proj_bn = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Sequential(nn.Conv2d(hidden, width, 1), nn.BatchNorm2d(width))

    def forward(self, x: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D h w"]:
        x = self.conv1(x)
        return self.conv2(self.proj_bn(F.gelu(x + self.proj(x))))


def over_maps(layer: nn.Module, x: Float[Tensor, "B H W C"]) -> Float[Tensor, "B h w D"]:
    """A layer for NCHW maps, applied to one with channels last."""
    return layer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def resize_relative(
    table: Float[Tensor, "heads Nq Nk"], queries: tuple[Grid, Grid], keys: tuple[Grid, Grid]
) -> Float[Tensor, "heads Mq Mk"]:
    """Position biases on other grids, given as (old, new): bicubic over the queries' grid, then over the keys'.

    The table itself on equal grids. # official: none (another size fails); its helper, never called, would resize the
    table as an image of Nq×Nk, in which the end of a row of cells runs into the beginning of the next.
    """
    if queries[0] != queries[1]:
        table = _resize(table.mT, *queries).mT
    return table if keys[0] == keys[1] else _resize(table, *keys)


def _resize(table: Float[Tensor, "heads M N"], old: Grid, new: Grid) -> Float[Tensor, "heads M K"]:
    """The last axis, a grid in raster order, on another grid, by the weights with which timm resizes position tables.

    As products, for on CPUs torch 2.15 errs in antialiased maps that become one column wide and of another height.
    """
    rows, columns = (
        F.interpolate(torch.eye(a)[None, None], (a, b), mode="bicubic", antialias=True)[0, 0].to(table)
        for a, b in zip(old, new, strict=True)
    )
    return torch.einsum("hmrc,ri,cj->hmij", table.unflatten(2, old), rows, columns).flatten(2)


def named_stages(indices: int | Sequence[int] | None) -> set[int]:
    """Numbers of the stages that timm's `indices` name. Raises UserError where there is no such stage."""
    count = len(STAGES)
    last = count if indices is None else indices
    named = range(count - last, count) if isinstance(last, int) else [i + count if i < 0 else i for i in last]
    if not named or not all(0 <= i < count for i in named):
        raise UserError(f"CMT has {count} stages, numbered from 0, and no {indices!r}")
    return set(named)


def check_stages(dims: Sequence[int], depths: Sequence[int], heads: Sequence[int], ratios: Sequence[int]) -> None:
    """Raise UserError for sizes of the stages that no CMT can have."""
    if any(len(numbers) != len(STAGES) for numbers in (dims, depths, heads, ratios)):
        raise UserError(f"CMT has {len(STAGES)} stages; give as many embed_dims, depths, num_heads and sr_ratios")
    for i, (width, number, ratio) in enumerate(zip(dims, heads, ratios, strict=True)):
        if number < 1 or width % number:
            raise UserError(f"{number} heads do not divide the width {width} of CMT's stage {i + 1}")
        if ratio < 1 or (8 // 2**i) % ratio:
            raise UserError(f"sr ratio {ratio} of CMT's stage {i + 1} must divide {8 // 2**i}, as 8, 4, 2, 1 do")


def initialise(module: nn.Module) -> None:
    """Initial weights of one layer, as in official pre-training; norms keep torch's."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
    elif isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
    if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
        nn.init.zeros_(module.bias)


__all__ = ["VARIANTS", "Cmt", "resize_relative"]
