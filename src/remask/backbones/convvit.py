"""ConvViT as a masked encoder (ConvMAE, arXiv 2205.03892; DMJD, 2301.00230), part of `f` in the equation: drops only.

Masks are drawn on the grid of the third stage; a token is a cell of positions in the first two. What a masked cell
computes there reaches no visible token, because a depth-wise convolution sees it as zero and everything else works
position by position or inside a cell. So only visible cells are computed, [R, K, positions, C], and the 5×5 depth-wise
convolution alone sees a map, filled with zeros where cells are masked.

# official: both views run whole maps and multiply the convolution's input by the mask; here the same numbers on visible
# cells, at .75 with 1.65 times fewer operations in the whole method (docs/decisions/0006).
"""

import difflib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

from remask.backbones import Mode
from remask.backbones.convvit_network import ConvViTNetwork, Mix, Sizes, nest
from remask.backbones.normalise import Normalise
from remask.errors import UserError, setting
from remask.types import END, INPUT, Features, Grid, Images, Size
from remask.views import Views

SIZES: dict[str, Sizes] = {
    "convvit_base": Sizes(),  # ConvMAE
    "convvit_base_wide": Sizes(mlp_ratios=(8, 8, 4)),  # DMJD
    "convvit_large": Sizes(dims=(384, 768, 1024), depths=(2, 2, 23), num_heads=16, mlp_ratios=(8, 8, 4)),
    "convvit_micro": Sizes((1, 2, 2), (32, 64, 128), (1, 1, 4), 4),  # ours, for images of 32 px
}


class Patches(NamedTuple):
    """The image cut into cells, not yet embedded: a masked view embeds only its visible cells.

    A cell's vector runs over positions of stage 2, of stage 1 inside those, pixels inside those, and channels.
    """

    pixels: Num[Tensor, "B N P"]
    grid: Grid


class Stages(NamedTuple):
    """Features of the visible cells after the first two stages, and the input of the third, without positions."""

    first: Float[Tensor, "R K S1 C1"]
    second: Float[Tensor, "R K S2 C2"]
    third: Float[Tensor, "R K D"]


class ConvViT(nn.Module):
    """A ConvViT as a masked encoder. Images are normalised here, on their device.

    network     the plain trunk; its state dict is the export
    fusions     convolutions that add both conv stages to the last block's output before the final norm, in masked views
                only: they belong to pre-training (official: stage1_output_decode, stage2_output_decode)
    mean, std   per channel, of pixel values 0..1
    origin      name and overrides with which `create_convvit` rebuilds the network
    """

    modes: tuple[Mode, ...] = ("drop",)
    prefix = 0
    fusions: Sequence[nn.Conv2d]
    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        network: ConvViTNetwork,
        mean: Sequence[float],
        std: Sequence[float],
        origin: tuple[str, dict[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        self.network, self.origin = network, origin
        sizes, (_, second, third) = network.sizes, network.sizes.strides
        self.patch: Size = (sizes.patch, sizes.patch)
        self.built_for, self.channels = network.built_for, network.channels
        self.width, self.depth = sizes.dims[2], sizes.depths[2]
        self.size: Size = (self.built_for[0] * self.patch[0], self.built_for[1] * self.patch[1])
        self.stem_width = self.width
        sides = (second * third, third)
        self.fusions = nn.ModuleList(  # type: ignore[assignment]
            nn.Conv2d(dim, self.width, side, side) for dim, side in zip(sizes.dims[:2], sides, strict=True)
        )
        self.normalise = Normalise(mean, std)
        pixels = sizes.patch**2
        self.register_buffer("shift", torch.tensor(mean).repeat(pixels) * 255, persistent=False)
        self.register_buffer("scale", 1 / (torch.tensor(std).repeat(pixels) * 255), persistent=False)

    def grid(self, size: Size) -> Grid:
        return self.network.grid(size)

    def embed(self, images: Images) -> Patches:
        grid = self.grid((images.shape[-2], images.shape[-1]))
        first, second, third = self.network.sizes.strides
        (rows, cols), inner = grid, (third, second, first)
        cells = nest(self.normalise.deep(images), (rows, *inner), (cols, *inner))
        return Patches(cells.flatten(3).flatten(1, 2), grid)

    def encode(
        self,
        patches: Patches,
        views: Views | None = None,
        mask_token: Float[Tensor, "D"] | None = None,
        layers: Sequence[int] = (-1,),
    ) -> dict[int, Features]:
        """As in `Backbone`; layers are blocks of the third stage, INPUT enters it; only the END has fusion and norm."""
        if mask_token is not None:
            raise UserError("ConvViT drops masked tokens and cannot replace them; choose a method that drops")
        stages, table = self._stages(patches, views), self.network.positions(patches.grid)
        x = stages.third + (table if views is None else table[views.visible])
        fused = self._fused(stages) if views is not None and -1 in layers else None
        return self._blocks(x, fused, layers)

    def forward(self, images: Images, normalised: bool = False) -> Features:
        """Features of the whole image, after the final norm; float images in 0..1 need `normalised=True`."""
        self.normalise.refuse_unnormalised(images, normalised)
        return self.encode(self.embed(images))[-1]

    def pyramid(self, images: Images) -> list[Float[Tensor, "B D h w"]]:
        """Maps of the whole image at four strides, for dense tasks."""
        self.grid((images.shape[-2], images.shape[-1]))
        return self.network.pyramid(self.normalise(images))

    def _stages(self, patches: Patches, views: Views | None) -> Stages:
        """Both conv stages on the visible cells; without views on all cells."""
        net, (_, inner, outer) = self.network, self.network.sizes.strides
        if views is None:
            batch, tokens = patches.pixels.shape[:2]
            x, ids = self._embed(patches.pixels), torch.arange(tokens, device=patches.pixels.device).expand(batch, -1)
        else:
            x, ids = self._visible(patches.pixels, views), views.visible
        mix = on_map(ids, patches.grid, (outer, inner))
        for block in net.blocks1:
            x = net.run(block, x, mix)
        second = net.patch_embed2.windows(x.unflatten(2, (outer**2, inner**2)).flatten(3))
        mix = on_map(ids, patches.grid, (outer,))
        for block in net.blocks2:
            second = net.run(block, second, mix)
        return Stages(x, second, net.patch_embed4(net.patch_embed3.windows(second.flatten(2))))

    def _visible(self, patches: Num[Tensor, "B N P"], views: Views) -> Float[Tensor, "VB K S C"]:
        """Visible cells only. All views together see K·V of N cells: embed the fewer of the two."""
        if views.visible.shape[1] * views.mask.shape[0] < patches.shape[1]:
            return self._embed(views.gather(patches, "visible"))
        embedded = self._embed(patches)
        return views.gather(embedded.flatten(2), "visible").unflatten(2, embedded.shape[2:])

    def _embed(self, patches: Num[Tensor, "R N P"]) -> Float[Tensor, "R N S C"]:
        """The first patch embedding of every position of a cell; integers are normalised on the way."""
        if not patches.is_floating_point():
            patches = (patches.float() - self.shift) * self.scale
        _, second, third = self.network.sizes.strides
        return self.network.patch_embed1.windows(patches.unflatten(2, ((second * third) ** 2, -1)))

    def _fused(self, stages: Stages) -> Float[Tensor, "R K D"]:
        """Multi-scale features for the decoder: each stage through a convolution of one cell (ConvMAE, section 3.2)."""
        _, inner, outer = self.network.sizes.strides
        first, second = self.fusions
        fine_weight = nest(first.weight, (outer, inner), (outer, inner)).flatten(1)
        coarse_weight = nest(second.weight, (outer,), (outer,)).flatten(1)
        return F.linear(stages.first.flatten(2), fine_weight, first.bias) + F.linear(
            stages.second.flatten(2), coarse_weight, second.bias
        )

    def _blocks(
        self, x: Float[Tensor, "R K D"], fused: Float[Tensor, "R K D"] | None, layers: Sequence[int]
    ) -> dict[int, Features]:
        """Features at the given layers of the third stage; later blocks do not run."""
        out: dict[int, Features] = {}
        last = self.depth if END in layers else max(*layers, END) + 1
        if INPUT in layers:
            out[INPUT] = Features(x[:, :0], x)
        for i, block in enumerate(self.network.blocks3[:last]):
            x = self.network.run(block, x)
            if i in layers:
                out[i] = Features(x[:, :0], x)
        if END in layers:
            x = self.network.norm(x if fused is None else x + fused)
            out[END] = Features(x[:, :0], x)
        return out

    def param_depth(self, name: str) -> int:
        """`name` as in `network.named_parameters()`; both conv stages count as embedding (official)."""
        if name.startswith("blocks3."):
            return int(name.split(".")[1]) + 1
        return 0 if name.startswith(("patch_embed", "pos_embed", "blocks")) else self.depth + 1


def on_map(ids: Int[Tensor, "R K"], grid: Grid, factors: Sequence[int]) -> Mix:
    """A depth-wise convolution over the cells `ids` alone: it sees them on a map that is zero elsewhere.

    factors   how a cell is cut into positions, coarse to fine, in the order in which they are stored
    """
    (rows, cols), side = grid, 1
    down = right = torch.zeros(1, dtype=ids.dtype, device=ids.device)  # offsets of a cell's positions, in their order
    for factor in factors:
        step, side = torch.arange(factor, device=ids.device), side * factor
        down = (down[:, None] * factor + step.repeat_interleave(factor)).flatten()
        right = (right[:, None] * factor + step.repeat(factor)).flatten()
    height, width = rows * side, cols * side
    row = torch.arange(len(ids), device=ids.device)[:, None, None]
    top, left = (ids // cols * side)[..., None], (ids % cols * side)[..., None]
    places = ((row * height + top + down) * width + left + right).flatten()
    return partial(_convolve, places=places, shape=(len(ids), height, width))


def _convolve(
    conv: nn.Conv2d, x: Float[Tensor, "R K S C"], places: Int[Tensor, "E"], shape: tuple[int, int, int]
) -> Float[Tensor, "R K S C"]:
    channels = x.shape[-1]
    dense = x.new_zeros(shape[0] * shape[1] * shape[2], channels).index_copy_(0, places, x.reshape(-1, channels))
    mixed = conv(dense.view(*shape, channels).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return mixed.reshape(-1, channels).index_select(0, places).view(x.shape)


def create_convvit(
    name: str,
    size: Size,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    drop_path: float = 0.0,
    overrides: Mapping[str, Any] | None = None,
) -> ConvViT:
    """A ConvViT by name, for images of `size` pixels and len(mean) channels, with MAE's sin-cos table, frozen.

    overrides   strides, dims, depths, mlp_ratios (three numbers each), num_heads; or in their place `width` (or
                `embed_dim`) of the third stage (the others keep their proportion to it, to the nearest multiple of 4),
                `depth` of the third stage, `patch_size` (16 is strides 4, 2, 2; 8 is 2, 2, 2; 4 is 1, 2, 2)
    Raises UserError for unknown names and overrides, sizes that do not fit, and images that the stride does not divide.
    """
    if name not in SIZES:
        near = difflib.get_close_matches(name, SIZES, n=3)
        raise UserError(f"no ConvViT is called {name!r}; did you mean {' or '.join(near) or ', '.join(SIZES)}?")
    sizes = _overridden(SIZES[name], overrides or {})
    network = ConvViTNetwork(size, len(mean), sizes, drop_path)
    return ConvViT(network, mean, std, origin=(name, sizes._asdict()))


def _overridden(sizes: Sizes, overrides: Mapping[str, Any]) -> Sizes:
    changed = {"width" if key == "embed_dim" else key: value for key, value in overrides.items()}
    short = {"width": "dims", "depth": "depths", "patch_size": "strides"}
    for key in changed:
        if key not in (*short, *Sizes._fields):
            near = difflib.get_close_matches(key, [*short, *Sizes._fields], n=1)
            raise UserError(f"ConvViT has no size {key!r}; did you mean {(near or ['width'])[0]}?")
        if short.get(key) in changed:
            raise UserError(f"ConvViT cannot take both {key} and {short[key]}; give one of them")
    if (width := changed.pop("width", None)) is not None:
        changed["dims"] = (*(max(4, round(dim * width / sizes.dims[2] / 4) * 4) for dim in sizes.dims[:2]), width)
    if (depth := changed.pop("depth", None)) is not None:
        changed["depths"] = (*sizes.depths[:2], depth)
    if (patch := changed.pop("patch_size", None)) is not None:
        if patch < 4 or patch % 4:
            raise UserError(f"backbone.patch_size {patch}: the patches of a ConvViT are a multiple of 4 pixels")
        changed["strides"] = (patch // 4, 2, 2)
    converted = {key: tuple(value) if isinstance(value, list) else value for key, value in changed.items()}
    return _checked(Sizes(**{**sizes._asdict(), **converted}))


def _checked(sizes: Sizes) -> Sizes:
    for key, value in sizes._asdict().items():
        numbers = value if isinstance(value, tuple) else (value,)
        if len(numbers) != (1 if key == "num_heads" else 3) or min(numbers) <= 0:
            raise UserError(f"ConvViT's {key} cannot be {value}: positive numbers, one for each of three stages")
    if sizes.dims[2] % sizes.num_heads:
        raise UserError(
            f"{sizes.num_heads} heads do not divide ConvViT's width {sizes.dims[2]}; "
            f"change {setting('backbone.heads or .width', 'num_heads or embed_dim')}"
        )
    return sizes


__all__ = ["SIZES", "ConvViT", "Patches", "Stages", "create_convvit", "on_map"]
