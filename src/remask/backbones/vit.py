"""Plain vision transformers: any timm `VisionTransformer`, dropping masked tokens (MAE) or replacing them (SimMIM)."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float, Num
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from remask.backbones import Mode
from remask.backbones.normalise import Normalise
from remask.backbones.refusals import refuse_unless, why_named
from remask.backbones.tables import resize_positions
from remask.errors import UserError, first_line
from remask.tokens import divisible_grid, patchify, sincos_positions
from remask.types import END, INPUT, Features, Grid, Images, Size
from remask.views import Views

# Sizes for small images and CPUs, as overrides of a timm model, so that timm.create_model rebuilds them.
SMALL: dict[str, tuple[str, dict[str, int]]] = {
    "vit_micro": ("vit_tiny_patch16_224", {"patch_size": 4, "embed_dim": 128, "depth": 6, "num_heads": 4}),
    "vit_tiny": ("vit_tiny_patch16_224", {"patch_size": 8, "embed_dim": 192, "depth": 12, "num_heads": 3}),
}


class Patches(NamedTuple):
    """The image cut into patches, not yet embedded: a masked view embeds only its visible ones."""

    pixels: Num[Tensor, "B N P"]
    grid: Grid


class ViT(nn.Module):
    """A timm vision transformer as a masked encoder. Images are normalised here, on their device.

    network        the timm model; its state dict is the export
    mean, std      per channel, of pixel values 0..1
    origin         name and arguments with which `timm.create_model` rebuilds the network
    class_tokens   how many of its prefix tokens are class tokens: the first, unless its registers are meant as such
    """

    modes: tuple[Mode, ...] = ("drop", "replace")
    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        network: Any,
        mean: Sequence[float],
        std: Sequence[float],
        origin: tuple[str, dict[str, Any]] | None = None,
        class_tokens: int | None = None,
    ) -> None:
        super().__init__()
        refuse_unless(network, VisionTransformer, ("_pos_embed", "forward_features"))
        stem = network.patch_embed
        if not isinstance(stem, PatchEmbed) or not isinstance(stem.proj, nn.Conv2d):
            raise UserError(
                f"{type(network).__name__} has no plain patch embedding; choose a ViT without a hybrid stem"
            )
        self.network, self.origin = network, origin
        self.patch: Size = (int(stem.patch_size[0]), int(stem.patch_size[1]))
        self.built_for: Grid = (int(stem.grid_size[0]), int(stem.grid_size[1]))
        self.width, self.depth = int(network.embed_dim), len(network.blocks)
        self.size: Size = (self.built_for[0] * self.patch[0], self.built_for[1] * self.patch[1])
        self.stem_width = self.width
        self.prefix, self.channels = int(network.num_prefix_tokens), stem.proj.in_channels
        self.class_tokens = class_tokens or min(self.prefix, 1)
        self.normalise = Normalise(mean, std)
        pixels = self.patch[0] * self.patch[1]
        self.register_buffer("shift", torch.tensor(mean).repeat(pixels) * 255, persistent=False)
        self.register_buffer("scale", 1 / (torch.tensor(std).repeat(pixels) * 255), persistent=False)

    def grid(self, size: Size) -> Grid:
        return divisible_grid(size, self.patch)

    def embed(self, images: Images) -> Patches:
        grid = self.grid((images.shape[-2], images.shape[-1]))
        return Patches(patchify(self.normalise.deep(images), self.patch), grid)

    def encode(
        self,
        patches: Patches,
        views: Views | None = None,
        mask_token: Float[Tensor, "D"] | None = None,
        layers: Sequence[int] = (-1,),
    ) -> dict[int, Features]:
        positions, prefix = self._positions(patches.grid)
        if views is None:
            x = self._project(patches.pixels) + positions
        elif mask_token is None:
            x = self._visible(patches.pixels, views) + positions[views.visible]
        else:
            x = views.repeat(self._project(patches.pixels))
            x = torch.where(views.mask.flatten(0, 1).unsqueeze(-1), mask_token.to(x.dtype), x) + positions
        x = torch.cat([prefix.expand(x.shape[0], -1, -1), x], dim=1)
        return self._blocks(self.network.norm_pre(self.network.pos_drop(x)), layers)

    def forward(self, images: Images, normalised: bool = False) -> Features:
        """Features of the whole image, after the final norm; float images in 0..1 need `normalised=True`."""
        self.normalise.refuse_unnormalised(images, normalised)
        return self.encode(self.embed(images))[-1]

    def _visible(self, patches: Num[Tensor, "B N P"], views: Views) -> Float[Tensor, "VB K D"]:
        """Visible tokens only. All views together see K·V of N patches: embed the fewer of the two."""
        if views.visible.shape[1] * views.mask.shape[0] < patches.shape[1]:
            return self._project(views.gather(patches, "visible"))
        return views.gather(self._project(patches), "visible")

    def _project(self, patches: Num[Tensor, "R N P"]) -> Float[Tensor, "R N D"]:
        """The patch convolution as a matrix product; integers are normalised on the way."""
        if not patches.is_floating_point():
            patches = (patches.float() - self.shift) * self.scale
        conv = self.network.patch_embed.proj
        return self.network.patch_embed.norm(F.linear(patches, conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias))

    def _positions(self, grid: Grid) -> tuple[Float[Tensor, "*n D"], Float[Tensor, "1 S D"]]:
        """Position rows of the grid, resized where it is not the one built for, and the prefix tokens with theirs."""
        net = self.network
        tokens = [t for t in (net.cls_token, net.reg_token) if t is not None]
        prefix = torch.cat(tokens, 1) if tokens else net.patch_embed.proj.weight.new_zeros(1, 0, self.width)
        if net.pos_embed is None:
            return prefix.new_zeros(1, self.width), prefix
        own = 0 if net.no_embed_class else self.prefix
        table = resize_positions(net.pos_embed, self.built_for, grid, own)
        return table[0, own:], prefix + table[:, :own] if own else prefix

    def _blocks(self, x: Float[Tensor, "R T D"], layers: Sequence[int]) -> dict[int, Features]:
        """Features at the given layers; later blocks do not run."""
        out: dict[int, Features] = {}
        last = self.depth if END in layers else max(*layers, END) + 1
        if INPUT in layers:
            out[INPUT] = Features(x[:, : self.prefix], x[:, self.prefix :])
        for i, block in enumerate(self.network.blocks[:last]):
            x = checkpoint(block, x, use_reentrant=False) if self.network.grad_checkpointing else block(x)
            if i in layers:
                out[i] = Features(x[:, : self.prefix], x[:, self.prefix :])
        if END in layers:
            x = self.network.norm(x)
            out[END] = Features(x[:, : self.prefix], x[:, self.prefix :])
        return out

    def param_depth(self, name: str) -> int:
        """`name` as in `network.named_parameters()`."""
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1
        early = ("patch_embed", "cls_token", "reg_token", "pos_embed", "norm_pre")
        return 0 if name.startswith(early) else self.depth + 1


def create_vit(
    name: str,
    size: Size,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    positions: str = "sincos",
    drop_path: float = 0.0,
    overrides: Mapping[str, int | float] | None = None,
    class_tokens: int | None = None,
) -> ViT:
    """A ViT by timm name or by one of the small names here, for images of `size` pixels and len(mean) channels.

    positions      "sincos": MAE's fixed table, stored and frozen; "learned": the network's own
    overrides      timm arguments (patch_size, embed_dim, depth, num_heads, mlp_ratio)
    class_tokens   as many (Pixio, 2512.15715): timm's class token and its registers, each with a row of its own; their
                   mean is the class token of probes and figures. The network's own unless given
    Raises UserError for an unknown name, a model that is not a VisionTransformer, or a size no patch divides.
    """
    base, small = SMALL.get(name, (name, {}))
    if not timm.is_model(base):
        near = difflib.get_close_matches(name, [*SMALL, *timm.list_models("*vit*")], n=3)
        raise UserError(f"no backbone is called {name!r}; did you mean {' or '.join(near) or 'vit_base_patch16_224'}?")
    arguments: dict[str, Any] = {
        **small,
        **(overrides or {}),
        **({"reg_tokens": class_tokens - 1} if class_tokens else {}),
        "img_size": size,
        "in_chans": len(mean),
        "num_classes": 0,
        "global_pool": "",
        "fc_norm": False,
    }
    try:
        network = timm.create_model(base, pretrained=False, drop_path_rate=drop_path, **arguments)
    except Exception as error:  # timm may raise anything
        raise UserError(f"timm cannot build {name} with {arguments}: {first_line(error)}") from error
    if not isinstance(network, VisionTransformer):
        raise UserError(f"{name} is a {type(network).__name__}, not a plain vision transformer: {why_named(base)}")
    if class_tokens and network.cls_token is None:
        raise UserError(f"{name} has no class token, of which there could be {class_tokens}: choose another ViT")
    backbone = ViT(network, mean, std, (base, arguments), class_tokens)
    grid = backbone.grid(size)
    if positions == "sincos" and network.pos_embed is not None:
        own = 0 if network.no_embed_class else backbone.prefix
        network.pos_embed = nn.Parameter(sincos_positions(grid, backbone.width, own)[None], requires_grad=False)
    return backbone


__all__ = ["SMALL", "Patches", "ViT", "create_vit"]
