"""Any network that returns a map of features, for methods that hide pixels before the stem (FastMIM, 2212.06593).

By timm name (Swin v2, PVTv2, Twins, ConvNeXt, ResNet, …), or CMT, which is ours. Nothing is forked: the network is
called as it is, and its map becomes tokens in raster order.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn

from remask.backbones import Mode
from remask.backbones.cmt_network import VARIANTS, Cmt
from remask.backbones.normalise import Normalise
from remask.errors import UserError, first_line
from remask.tokens import divisible_grid
from remask.types import Features, Grid, Images, Size
from remask.views import Views


class Hierarchical(nn.Module):
    """A timm network, or one like it, as an encoder of whole images; it can neither drop nor replace tokens.

    network     with forward_features, forward_intermediates, feature_info; its state dict is the export
    size        pixels of the images it was built for; a blank one is encoded to find the grid
    mean, std   per channel, of pixel values 0..1
    origin      name and arguments with which it is rebuilt
    Layers are stages: the entries of `feature_info`, each on its own grid and with its own width.
    """

    modes: tuple[Mode, ...] = ()

    def __init__(
        self,
        network: Any,
        size: Size,
        mean: Sequence[float],
        std: Sequence[float],
        origin: tuple[str, dict[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        if not (hasattr(network, "forward_intermediates") and getattr(network, "feature_info", None)):
            raise UserError(
                f"{type(network).__name__} returns no map of features; choose another backbone, pvt_v2_b2 for "
                "instance: this one lacks the forward_intermediates or feature_info that timm's networks have"
            )
        self.network, self.origin, self.channels, self.size = network, origin, len(mean), size
        self.normalise = Normalise(mean, std)
        self.stages = [str(entry["module"]) for entry in network.feature_info]
        self.depth, self.prefix = len(self.stages), int(getattr(network, "num_prefix_tokens", 0))
        with torch.enable_grad():
            tokens, grid = self._measure_grid(size)
            self._freeze_unused(tokens)
        self.width = self.stem_width = tokens.shape[-1]
        self.patch: Size = (size[0] // grid[0], size[1] // grid[1])

    @property
    def head_norm(self) -> Callable[[Tensor], Tensor] | None:
        """The final norm that the network has in its head; a property, so that a state dict has each tensor once."""
        return _norm_of_head(self.network)

    def grid(self, size: Size) -> Grid:
        return divisible_grid(size, self.patch)

    def embed(self, images: Images) -> Float[Tensor, "B C H W"]:
        """Normalised pixels, which is all that views share: they differ from the stem on."""
        self.grid((images.shape[-2], images.shape[-1]))
        return self.normalise(images)

    def encode(
        self,
        patches: Float[Tensor, "B C H W"],
        views: Views | None = None,
        mask_token: Float[Tensor, "F"] | None = None,
        layers: Sequence[int] = (-1,),
    ) -> dict[int, Features]:
        if views is not None:
            raise UserError(
                f"{type(self.network).__name__} can neither drop nor replace tokens; choose method fastmim, or a ViT"
            )
        if max(layers) >= self.depth or min(layers) < -1:
            name = type(self.network).__name__
            raise UserError(f"layers {[*layers]} were asked of a {name} of {self.depth} stages; -1 is its end")
        out: dict[int, Features] = {}
        if inner := sorted({layer for layer in layers if layer >= 0}):  # timm returns them in ascending order
            maps = self._intermediates(patches, inner)
            out = {layer: _features(m.flatten(2).transpose(1, 2)) for layer, m in zip(inner, maps, strict=True)}
        if -1 in layers:
            tokens = self._final(patches)
            out[-1] = Features(tokens[:, : self.prefix], tokens[:, self.prefix :])
        return out

    def forward(self, images: Images, normalised: bool = False) -> Features:
        """Features of the whole image, after the final norm; float images in 0..1 need `normalised=True`."""
        self.normalise.refuse_unnormalised(images, normalised)
        return self.encode(self.embed(images))[-1]

    def pyramid(self, images: Images) -> list[Float[Tensor, "B _ _ _"]]:
        """The map at the end of every stage, [B, C, H, W], finest first, without the final norm."""
        return self._intermediates(self.embed(images), range(self.depth))

    def _intermediates(self, pixels: Float[Tensor, "B C H W"], stages: Sequence[int]) -> list[Tensor]:
        return self.network.forward_intermediates(
            pixels, indices=list(stages), output_fmt="NCHW", intermediates_only=True
        )

    def _final(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B T D"]:
        """Prefix tokens and the last map in raster order, however the network lays it out."""
        x = self.network.forward_features(pixels)
        if not isinstance(x, Tensor) or x.ndim not in (3, 4):
            raise UserError(f"{type(self.network).__name__} returns no map of features; choose another backbone")
        if x.ndim == 3:
            return x if self.head_norm is None else self.head_norm(x)
        last = x.shape[-1] == self.network.num_features and x.shape[1] != self.network.num_features
        if self.head_norm is not None:
            x = self.head_norm(x)
        return x.flatten(1, 2) if last else x.flatten(2).transpose(1, 2)

    def _measure_grid(self, size: Size) -> tuple[Tensor, Grid]:
        """The tokens of a blank image, and their grid: of that many tokens the one with equal strides."""
        training, where = self.network.training, next(self.network.parameters()).device
        self.network.eval()
        try:
            tokens = self._final(torch.zeros(1, self.channels, *size, device=where))
        except UserError:
            raise
        except Exception as error:  # the network may raise anything
            raise UserError(
                f"{type(self.network).__name__} does not take images of {size[0]}×{size[1]} px: "
                f"{(str(error).splitlines() or ['a size that its stages do not divide'])[0]}"
            ) from error
        self.network.train(training)
        count = tokens.shape[1] - self.prefix
        strides = [s for s in range(1, min(size) + 1) if size[0] % s == size[1] % s == 0]
        stride = next((s for s in strides if size[0] * size[1] == count * s * s), None)
        if stride is None or stride != self.network.feature_info[-1].get("reduction", stride):  # a stage rounded
            raise UserError(
                f"{type(self.network).__name__} makes {count} tokens of an image of {size[0]}×{size[1]} px, which is "
                "no grid of its whole strides; choose a size that its stages divide, such as 128 or 224, or another "
                "backbone"
            )
        return tokens, (size[0] // stride, size[1] // stride)

    def _freeze_unused(self, tokens: Tensor) -> None:
        """Freeze the parameters on which the map does not depend, such as those of a classifier."""
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(tokens.sum(), parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.requires_grad_(gradient is not None)

    def param_depth(self, name: str) -> int:
        """`name` as in `network.named_parameters()`; a stage counts as a block, the stem as embedding."""
        for number, stage in enumerate(self.stages):
            if name.startswith(stage + "."):
                return number + 1
        ends = ("norm", "head", "fc", "conv_head", "bn2", "final_conv")
        return self.depth + 1 if name.startswith(ends) else 0


def _features(tokens: Float[Tensor, "R N D"]) -> Features:
    return Features(tokens.new_zeros(tokens.shape[0], 0, tokens.shape[-1]), tokens)


def _norm_of_head(network: Any) -> Callable[[Tensor], Tensor] | None:
    """The final norm, where timm has it in the classifier (ConvNeXt, MaxViT): it would be exported untrained there."""
    norm = getattr(getattr(network, "head", None), "norm", None)
    if not isinstance(norm, nn.Module):
        return None
    return norm if any(p.shape == (network.num_features,) for p in norm.parameters()) else None


def known(name: str) -> bool:
    """Whether a network of this name exists, here or in timm."""
    return name in VARIANTS or timm.is_model(name)


def create_hierarchical(
    name: str,
    size: Size,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    drop_path: float = 0.0,
    overrides: Mapping[str, Any] | None = None,
) -> Hierarchical:
    """Any timm network that returns a map of features, or cmt_s and cmt_micro, for images of `size` pixels.

    overrides   the network's own arguments in timm
    Raises UserError for an unknown name, a network without such a map, or a size that it does not take.
    """
    options = {**({"drop_path_rate": drop_path} if drop_path else {}), **(overrides or {})}
    if name in VARIANTS:
        network: Any = Cmt(**{**VARIANTS[name], **options, "img_size": size, "in_chans": len(mean)})
        return Hierarchical(network, size, mean, std, origin=(name, options))
    if not known(name):
        near = difflib.get_close_matches(name, [*VARIANTS, *timm.list_models()], n=3)
        raise UserError(f"no backbone is called {name!r}; did you mean {' or '.join(near) or 'pvt_v2_b2'}?")
    fixed: dict[str, Any] = {"in_chans": len(mean), "num_classes": 0, **options}
    network, arguments = _network(name, size, fixed)
    return Hierarchical(network, size, mean, std, origin=(name, arguments))


def _network(name: str, size: Size, fixed: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The network and its arguments, with `img_size` where it takes one; convolutional networks do not."""
    for arguments in ({**fixed, "img_size": size}, fixed):
        try:
            return timm.create_model(name, pretrained=False, **arguments), arguments
        except TypeError as error:
            unknown = first_line(error)
        except Exception as error:  # timm may raise anything
            why = (str(error).splitlines() or ["a size that its stages do not divide"])[0]
            raise UserError(f"timm cannot build {name} for {size[0]}×{size[1]} px: {why}") from error
    raise UserError(f"timm cannot build {name} with {fixed}: {unknown}")


__all__ = ["Hierarchical", "create_hierarchical", "known"]
