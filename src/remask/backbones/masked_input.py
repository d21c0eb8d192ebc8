"""What a backbone sees of a masked view: the visible tokens alone, or all of them with the masked ones replaced.

The mask token or mask pixel belongs to the object here, so that nothing of pre-training lives in the backbone.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from remask.backbones import Backbone, Mode
from remask.errors import UserError
from remask.types import Features, Images, Size
from remask.views import Views

STD = 0.02


class MaskedInput(Protocol):
    """How a masked view enters a backbone."""

    mask_unit: Size | None
    """Pixels of a token of the grid of masks, heads and targets, where it is smaller than the backbone's token."""

    former_names: dict[str, str]
    """State-dict keys of checkpoints written before 2026-12, and the keys that replaced them."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """The mask token, where there is one."""
        ...

    def prepare(self, backbone: Backbone) -> None:
        """Make the mask token, once. Raises UserError for a backbone that cannot be masked this way."""
        ...

    def encode(
        self, backbone: Backbone, images: Images, views: Views, layers: Sequence[int] = (-1,)
    ) -> dict[int, Features]:
        """f(x, v) at the named blocks; -1 is the end, after the final norm."""
        ...

    def before_step(self, progress: float) -> None:
        """What precedes a step, after a share `progress` of the training."""
        ...

    def describe(self) -> str:
        """A few words for the printed equation."""
        ...


class _Masked(nn.Module):
    """What the ways to mask share: nothing changes between steps."""

    mask_unit: Size | None = None

    def before_step(self, progress: float) -> None:
        """Nothing to do."""


class Dropped(_Masked):
    """Masked tokens are left out; the backbone computes the visible ones alone (MAE, 2111.06377)."""

    def __init__(self) -> None:
        super().__init__()
        self.former_names = dict[str, str]()

    def prepare(self, backbone: Backbone) -> None:
        """Raises UserError for a backbone that cannot leave tokens out."""
        _refuse_unless(backbone, "drop")

    def encode(
        self, backbone: Backbone, images: Images, views: Views, layers: Sequence[int] = (-1,)
    ) -> dict[int, Features]:
        """Tokens [VB, K, D] by block. The stem runs once per image."""
        return backbone.encode(backbone.embed(images), views, layers=layers)

    def describe(self) -> str:
        return "the visible patches of a view"


class TokensReplaced(_Masked):
    """Masked tokens become one learned vector after the stem (BEiT 2106.08254, SimMIM 2111.09886, MaskFeat 2112.09133).

    mask_unit   pixels (height, width) of one token of the masks' grid, if smaller than the backbone's (SimMIM's Swin)
    """

    mask_token: nn.Parameter | None

    def __init__(self, mask_unit: Size | None = None) -> None:
        super().__init__()
        self.mask_unit, self.mask_token = mask_unit, None
        self.former_names = {"fill": "mask_token"}

    def prepare(self, backbone: Backbone) -> None:
        """Raises UserError for a backbone that cannot replace tokens."""
        _refuse_unless(backbone, "replace")
        if self.mask_token is None:
            self.mask_token = nn.Parameter(STD * torch.randn(backbone.stem_width))

    def encode(
        self, backbone: Backbone, images: Images, views: Views, layers: Sequence[int] = (-1,)
    ) -> dict[int, Features]:
        """Tokens [VB, N, D] by block. The stem runs once per image."""
        return backbone.encode(backbone.embed(images), views, mask_token=self.mask_token, layers=layers)

    def describe(self) -> str:
        return "all patches, the masked ones replaced by a learned vector"


class PixelsReplaced(_Masked):
    """Masked pixels become one learned colour before the stem, which works with any network (FastMIM, 2212.06593).

    mask_unit   pixels (height, width) of one token of the masks' grid, if smaller than the backbone's
    """

    mask_pixel: nn.Parameter | None

    def __init__(self, mask_unit: Size | None = None) -> None:
        super().__init__()
        self.mask_unit, self.mask_pixel = mask_unit, None
        self.former_names = {"fill": "mask_pixel"}

    def prepare(self, backbone: Backbone) -> None:
        """Make the mask pixel, once; any backbone is accepted."""
        if self.mask_pixel is None:
            self.mask_pixel = nn.Parameter(STD * torch.randn(backbone.channels))

    def encode(
        self, backbone: Backbone, images: Images, views: Views, layers: Sequence[int] = (-1,)
    ) -> dict[int, Features]:
        """Tokens [VB, N, D] by block. The stem runs once per view, since its pixels differ."""
        return backbone.encode(backbone.embed(self.hide(backbone, images, views)), layers=layers)

    def hide(self, backbone: Backbone, images: Images, views: Views) -> Float[Tensor, "VB C H W"]:
        """Normalised pixels of every view, the masked ones replaced by the learned colour."""
        assert self.mask_pixel is not None
        hidden = views.pixels(self.mask_unit or backbone.patch).flatten(0, 1).unsqueeze(1)
        return torch.where(hidden, self.mask_pixel.view(-1, 1, 1), views.repeat(backbone.normalise(images)))

    def describe(self) -> str:
        return "all patches, masked pixels replaced by a learned colour"


class AllTokens(_Masked):
    """Nothing is masked: the backbone computes all tokens, of an image in one view (MIM-Refiner, 2402.10093).

    frozen   share of the training, from its beginning, in which the heads alone are trained
    """

    def __init__(self, frozen: float = 0.0) -> None:
        super().__init__()
        self.frozen, self.trained, self.former_names = frozen, True, dict[str, str]()

    def prepare(self, backbone: Backbone) -> None:
        """Any backbone is accepted."""

    def before_step(self, progress: float) -> None:
        """Train the backbone from the end of its frozen share on."""
        self.trained = progress >= self.frozen

    def encode(
        self, backbone: Backbone, images: Images, views: Views, layers: Sequence[int] = (-1,)
    ) -> dict[int, Features]:
        """Tokens [B, N, D] by block, without gradient while the backbone is frozen."""
        with torch.set_grad_enabled(self.trained and torch.is_grad_enabled()):
            return backbone.encode(backbone.embed(images), layers=layers)

    def describe(self) -> str:
        return "whole images"


def _refuse_unless(backbone: Backbone, mode: Mode) -> None:
    if mode not in backbone.modes:
        raise UserError(
            f"{backbone.network.__class__.__name__} cannot {mode} masked tokens, as this method asks; "
            "choose another backbone, or method fastmim, which hides pixels"
        )


__all__ = ["AllTokens", "Dropped", "MaskedInput", "PixelsReplaced", "TokensReplaced"]
