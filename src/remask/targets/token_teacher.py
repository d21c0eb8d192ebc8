"""Targets from a frozen backbone of ours: its tokens at one depth, of the whole image or of the view the student sees.

DMAE (2208.12256) aligns blocks of two networks that see the same visible tokens; MOMA (2302.02089) has teachers that
see the whole image. The backbone is no submodule of the module that uses it, as in `remask.targets.map_teacher`.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Num
from torch import Tensor, nn

from remask.errors import UserError
from remask.targets.hog import pixel_values
from remask.targets.map_teacher import Frozen, resized
from remask.tokens import grid_of
from remask.types import Grid, Images, Size
from remask.views import Views


class TokenTeacher(nn.Module):
    """A frozen backbone's tokens as target: [B, S+N, D] of the whole image, or [VB, S+K, D] of every view.

    backbone     any remask backbone; it is frozen for good and goes into no state dict, so use it for nothing else
    patch        pixels of a student's token
    mean, std    constants by which float images were normalised; integers are pixel values
    layer        the block that is read, before any norm, and beyond which the network does not run; -1 is the last
    sees         "image": all of it, once however many views (MOMA) · "view": the student's visible tokens (DMAE)
    norm         of each vector: "layer": LayerNorm without affine, eps 1e-5 (MOMA) · "unit": length 1 · "none"
    final_norm   read after the network's own norm, which follows the last block
    size         pixels to which images are resized, bicubic and antialiased; None leaves them as they are
    prefix       whether the rows of its S prefix tokens come first, or are left out
    name         in the printed equation

    Tokens on another grid than the student's are resized, bilinear and antialiased; those of a view cannot be. Images
    with one channel are repeated for a teacher with three. Raises UserError where channels, layer or grid do not fit.
    """

    mean: Tensor
    std: Tensor
    black: Tensor
    white: Tensor

    def __init__(
        self,
        backbone: Any,
        patch: Size,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        layer: int = -1,
        sees: Literal["image", "view"] = "image",
        norm: Literal["layer", "unit", "none"] = "layer",
        final_norm: bool = False,
        size: Size | None = None,
        prefix: bool = True,
        name: str,
    ) -> None:
        super().__init__()
        _check(backbone, len(mean), layer, sees, final_norm, name)
        self.network, self.patch, self.size, self.norm, self.name = Frozen(backbone), patch, size, norm, name
        self.width, self.prefix, self.per_view = backbone.width, backbone.prefix * prefix, sees == "view"
        self.layer = -1 if final_norm else layer % backbone.depth
        ends = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(-1, backbone.channels, -1, -1)
        constants = {"mean": torch.tensor(mean).view(-1, 1, 1), "std": torch.tensor(std).view(-1, 1, 1)}
        constants |= dict(zip(("black", "white"), backbone.normalise(ends).clone(), strict=True))
        for key, values in constants.items():
            self.register_buffer(key, values, persistent=False)
        theirs = (ends / 255 - self.mean) / self.std
        self.alike = theirs.device.type != "meta" and torch.allclose(theirs, torch.stack([self.black, self.white]))

    @torch.no_grad()
    def forward(self, images: Images, views: Views | None = None) -> Float[Tensor, "_ _ D"]:
        backbone: Any = self.network.networks[0]
        pixels = self._pixels(images.expand(-1, backbone.channels, -1, -1))
        own, wanted = backbone.grid(pixels.shape[-2:]), grid_of((images.shape[-2], images.shape[-1]), self.patch)
        if self.per_view and own != wanted:
            raise UserError(
                f"the teacher {self.name} has a grid of {own[0]}×{own[1]} tokens and the student one of "
                f"{wanted[0]}×{wanted[1]}, so they cannot see the same: choose another size, or a teacher of the image"
            )
        assert views is not None or not self.per_view
        patches = backbone.embed(pixels)
        prefix, tokens = backbone.encode(patches, views if self.per_view else None, layers=(self.layer,))[self.layer]
        prefix, tokens = prefix.float(), tokens.float()  # bf16 under autocast
        if tokens.shape[-1] != self.width:
            raise UserError(f"the teacher {self.name} gives {tokens.shape[-1]} channels there, not {self.width}")
        if not self.per_view and own != wanted:
            tokens = on_grid(tokens, own, wanted)
        rows = torch.cat([prefix, tokens], dim=1) if self.prefix else tokens
        if self.norm == "none":
            return rows
        return F.layer_norm(rows, (self.width,)) if self.norm == "layer" else F.normalize(rows, dim=-1)

    def _pixels(self, images: Images) -> Num[Tensor, "B C h w"]:
        """The images as the backbone takes them: integers, or floats normalised by its own constants."""
        if self.size in (None, tuple(images.shape[-2:])) and (self.alike or not images.is_floating_point()):
            return images
        values = pixel_values(images, self.mean, self.std)
        values = resized(values, self.size) if self.size else values
        return self.black + values / 255 * (self.white - self.black)

    def describe(self) -> str:
        what = "view" if self.per_view else "image"
        depth = "its end" if self.layer == -1 else f"block {self.layer}"
        words = {"layer": ", LayerNorm", "unit": ", of unit length", "none": ""}[self.norm]
        return f"features of {self.name} at {depth}, which sees the {what}{words}"


def on_grid(tokens: Float[Tensor, "B n D"], own: Grid, wanted: Grid) -> Float[Tensor, "B N D"]:
    """Tokens on a grid of rows and columns, resized to another: bilinear, antialiased."""
    maps = tokens.transpose(1, 2).unflatten(2, own)
    return F.interpolate(maps, wanted, mode="bilinear", antialias=True).flatten(2).transpose(1, 2)


def _check(backbone: Any, channels: int, layer: int, sees: str, final_norm: bool, name: str) -> None:
    """Raise UserError for options that the backbone cannot serve."""
    if channels not in (1, backbone.channels):
        raise UserError(f"the teacher {name} sees {backbone.channels} channels, not {channels}; set data.channels")
    if not -1 <= layer < backbone.depth:
        raise UserError(f"the teacher {name} has blocks 0 to {backbone.depth - 1}, and no block {layer}")
    if final_norm and layer % backbone.depth != backbone.depth - 1:
        raise UserError(f"the norm of the teacher {name} follows its last block, not block {layer}; choose one of both")
    if sees == "view" and "drop" not in backbone.modes:
        raise UserError(f"the teacher {name} cannot drop masked tokens: choose a ViT, or let it see the image")


__all__ = ["TokenTeacher", "on_grid"]
