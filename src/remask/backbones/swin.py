"""Swin (2103.14030) as SimMIM pre-trains it (2111.09886): any timm `SwinTransformer`, which replaces masked tokens.

Masks, heads and targets live on the grid of the last stage, where a masked token hides all stem tokens under it, or on
a finer one, of whole stem tokens.
"""

import copy
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from remask.backbones import Mode
from remask.backbones.normalise import Normalise
from remask.backbones.refusals import refuse_unless
from remask.errors import UserError, first_line, setting
from remask.tokens import grid_of, patchify
from remask.types import Features, Grid, Images, Size
from remask.views import Views

# A size for small images and CPUs (32 px: 16, 8 and 4 tokens a side), as overrides of a timm model.
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "swin_micro": (
        "swin_tiny_patch4_window7_224",
        {"patch_size": 2, "embed_dim": 32, "depths": (2, 2, 2), "num_heads": (2, 4, 8), "window_size": 4},
    ),
}


class Patches(NamedTuple):
    """The image's embedded and normed patches, on the grid of the first stage; all views share them."""

    tokens: Float[Tensor, "B h w F"]
    grid: Grid


class Swin(nn.Module):
    """A timm Swin transformer as an encoder that replaces masked tokens. Images are normalised here, on their device.

    network     the timm model; its state dict is the export
    mean, std   per channel, of pixel values 0..1
    origin      name and arguments with which `timm.create_model` rebuilds the network
    Layers are blocks, counted over all stages; the tokens of an earlier stage stand on its own grid, with its width.
    """

    modes: tuple[Mode, ...] = ("replace",)
    prefix = 0

    def __init__(
        self,
        network: Any,
        mean: Sequence[float],
        std: Sequence[float],
        origin: tuple[str, dict[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        refuse_unless(network, SwinTransformer, ("forward_features",))
        stem = network.patch_embed
        self.network, self.origin = network, origin
        self.depths = [len(stage.blocks) for stage in network.layers]
        self.depth, self.stride = sum(self.depths), 2 ** (len(self.depths) - 1)
        self.stem_patch: Size = (int(stem.patch_size[0]), int(stem.patch_size[1]))
        self.patch: Size = (self.stem_patch[0] * self.stride, self.stem_patch[1] * self.stride)
        self.width, self.stem_width = int(network.num_features), int(stem.proj.out_channels)
        self.size: Size = (int(stem.img_size[0]), int(stem.img_size[1]))
        self.channels = stem.proj.in_channels
        self.normalise = Normalise(mean, std)

    def grid(self, size: Size) -> Grid:
        """The grid of the last stage for images of `size` pixels.

        Raises UserError where a stage cannot halve its grid, or where a window does not tile one.
        """
        if size[0] % self.patch[0] or size[1] % self.patch[1]:
            raise UserError(
                f"an image of {size[0]}×{size[1]} px cannot be halved down to tokens of "
                f"{self.patch[0]}×{self.patch[1]} px; change {setting('data.image_size', 'the image size')}"
            )
        for i, stage in enumerate(self.network.layers):
            grid = grid_of(size, (self.stem_patch[0] * 2**i, self.stem_patch[1] * 2**i))
            window = stage.blocks[0].window_size
            if grid[0] % window[0] or grid[1] % window[1]:
                raise UserError(
                    f"windows of {window[0]}×{window[1]} do not tile the {grid[0]}×{grid[1]} tokens that stage {i + 1} "
                    f"has of an image of {size[0]}×{size[1]} px; change "
                    f"{setting('data.image_size', 'the image size')} or the window"
                )
        return grid_of(size, self.patch)

    def embed(self, images: Images) -> Patches:
        size = images.shape[-2], images.shape[-1]
        self.grid(size)
        pixels = self.normalise(images)
        conv = self.network.patch_embed.proj  # a matrix product, for its kernel and its stride are the patch
        tokens = F.linear(patchify(pixels, self.stem_patch), conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias)
        grid = grid_of(size, self.stem_patch)
        return Patches(self.network.patch_embed.norm(tokens).unflatten(1, grid), grid)

    def encode(
        self,
        patches: Patches,
        views: Views | None = None,
        mask_token: Float[Tensor, "F"] | None = None,
        layers: Sequence[int] = (-1,),
    ) -> dict[int, Features]:
        x = patches.tokens
        if views is not None:
            if mask_token is None:
                raise UserError("a Swin backbone replaces masked tokens and cannot drop them; choose a plain ViT")
            x = torch.where(self._hidden(views, patches.grid), mask_token, views.repeat(x))
        if max(layers) >= self.depth or min(layers) < -1:
            raise UserError(f"layers {[*layers]} were asked of a Swin of {self.depth} blocks; -1 is its end")
        return self._stages(x, layers)

    def forward(self, images: Images, normalised: bool = False) -> Features:
        """Features of the whole image, after the final norm; float images in 0..1 need `normalised=True`."""
        self.normalise.refuse_unnormalised(images, normalised)
        return self.encode(self.embed(images))[-1]

    def pyramid(self, images: Images) -> list[Float[Tensor, "B _ _ _"]]:
        """The map at the end of every stage, [B, C, H, W], finest first; the last after the final norm."""
        patches, ends = self.embed(images), [sum(self.depths[: i + 1]) - 1 for i in range(len(self.depths) - 1)]
        features, maps = self.encode(patches, layers=(*ends, -1)), []
        for i, end in enumerate((*ends, -1)):
            maps.append(features[end].tokens.unflatten(1, (patches.grid[0] // 2**i, -1)).permute(0, 3, 1, 2))
        return maps

    def _hidden(self, views: Views, grid: Grid) -> Tensor:
        """The mask on the grid of the stem, [VB, h, w, 1]."""
        mask = views.mask.flatten(0, 1).unflatten(1, views.grid)
        down, right = grid[0] // views.grid[0], grid[1] // views.grid[1]
        return mask.repeat_interleave(down, 1).repeat_interleave(right, 2).unsqueeze(-1)

    def _stages(self, x: Float[Tensor, "R h w F"], layers: Sequence[int]) -> dict[int, Features]:
        """Features at the given layers; later blocks do not run."""
        out, number, last = dict[int, Features](), 0, self.depth if -1 in layers else max(layers) + 1
        for stage in self.network.layers:
            if number >= last:
                break
            x = stage.downsample(x)
            for block in stage.blocks[: last - number]:
                block = sized(block, (x.shape[1], x.shape[2]))
                x = checkpoint(block, x, use_reentrant=False) if stage.grad_checkpointing else block(x)
                if number in layers:
                    out[number] = _features(x)
                number += 1
        if -1 in layers:
            out[-1] = _features(self.network.norm(x))
        return out

    def param_depth(self, name: str) -> int:
        """`name` as in `network.named_parameters()`. Blocks count over all stages; merging as the block before it."""
        if name.startswith("patch_embed"):
            return 0
        if not name.startswith("layers."):
            return self.depth + 1
        stage, kind, number = name.split(".")[1:4]
        before = sum(self.depths[: int(stage)])
        # official: merging ends a stage, in timm it begins the next one: the same count of blocks lies before it
        return before + int(number) + 1 if kind == "blocks" else before


def sized(block: Any, grid: Grid) -> Any:
    """A timm block for a grid: itself on the one it was built for, else a copy that shares its weights.

    Shifts and attention masks follow the grid; one window that covers an axis is not shifted.
    """
    if grid == tuple(block.input_resolution):
        return block
    other, window = copy.copy(block), block.window_size
    shift = (window[0] // 2, window[1] // 2) if any(block.target_shift_size) else (0, 0)
    other.shift_size = tuple(0 if g <= w else s for g, w, s in zip(grid, window, shift, strict=True))
    other.input_resolution, other.dynamic_mask = grid, True  # timm then makes the attention mask in its forward
    return other


def _features(x: Float[Tensor, "R h w D"]) -> Features:
    return Features(x.new_zeros(x.shape[0], 0, x.shape[-1]), x.flatten(1, 2))


def create_swin(
    name: str,
    size: Size,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    drop_path: float = 0.0,
    overrides: Mapping[str, Any] | None = None,
) -> Swin:
    """A Swin (v1) by timm name or by one of the small names here, for images of `size` pixels and len(mean) channels.

    overrides   timm arguments (patch_size, embed_dim, depths, num_heads, window_size, mlp_ratio); also depth, blocks in
                every stage, and num_heads as one number, which then doubles from stage to stage
    A window that is not given and does not tile the stages of these images becomes the output grid, as 7 is for 224 px.
    Raises UserError for an unknown name, a model that is not a SwinTransformer, or a size that no window fits.
    """
    base, small = SMALL.get(name, (name, {}))
    if not timm.is_model(base):
        near = difflib.get_close_matches(name, [*SMALL, *timm.list_models("swin_*")], n=3)
        known = " or ".join(near) or "swin_base_patch4_window7_224"
        raise UserError(f"no backbone is called {name!r}; did you mean {known}?")
    sizes = _per_stage({**small, **(overrides or {})})
    arguments = {**sizes, "img_size": size, "in_chans": len(mean), "num_classes": 0, "global_pool": ""}
    backbone = Swin(_network(name, base, drop_path, arguments), mean, std, origin=(base, arguments))
    try:
        backbone.grid(size)
    except UserError:
        if "window_size" in (overrides or {}) or size[0] % backbone.patch[0] or size[1] % backbone.patch[1]:
            raise
        arguments["window_size"] = grid_of(size, backbone.patch)
        backbone = Swin(_network(name, base, drop_path, arguments), mean, std, origin=(base, arguments))
    return backbone


def _per_stage(arguments: dict[str, Any]) -> dict[str, Any]:
    """One depth for all stages, and the heads of the first stage, as a number a stage."""
    stages = len(arguments.get("depths", range(4)))
    if "depth" in arguments:
        arguments["depths"] = (int(arguments.pop("depth")),) * stages
    if isinstance(heads := arguments.get("num_heads"), int):
        arguments["num_heads"] = tuple(heads * 2**i for i in range(stages))
    return arguments


def _network(name: str, base: str, drop_path: float, arguments: Mapping[str, Any]) -> SwinTransformer:
    try:
        network = timm.create_model(base, pretrained=False, drop_path_rate=drop_path, **arguments)
    except Exception as error:  # timm may raise anything
        raise UserError(f"timm cannot build {name} with {dict(arguments)}: {first_line(error)}") from error
    if not isinstance(network, SwinTransformer):
        raise UserError(f"{name} is a {type(network).__name__}, not a Swin transformer of version 1")
    for stage in network.layers:
        attention = stage.blocks[0].attn
        if attention.dim % attention.num_heads:
            raise UserError(f"{attention.num_heads} heads do not divide the width {attention.dim} of a stage of {name}")
    return network


__all__ = ["SMALL", "Patches", "Swin", "create_swin", "sized"]
