"""The equation of the library, in one place. Every paper is a `Method` with other parts; none is a class of its own.

L(x) = Σ_b λ_b · mean over views v and tokens i ∈ Ω_b(v) of  d_b( h_b( f(x, v) )_i ,  τ_b(x, v)_i )
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Num
from torch import Generator, Tensor, nn

from remask.backbones import Backbone
from remask.color_jitter import Jitter
from remask.distances import Distance
from remask.errors import UserError
from remask.heads import Head
from remask.masking import WHOLE, Masking
from remask.targets import Target, per_view
from remask.tokens import grid_of, whole_grid
from remask.types import Features, Grid, Images, Size
from remask.views import Views

Region = Literal["masked", "visible", "seen"]
"""Ω; "seen" is prefix tokens and then the visible ones, all that a network has which drops the others."""

Pair = tuple[Float[Tensor, "VB R P"], Num[Tensor, "VB R T"]]
"""Predictions, and targets: vectors of the same length, or one id a token (T = 1)."""


class Branch(nn.Module):
    """One term of the sum: λ · mean over Ω of d(h(f(x)), τ(x)), read from one depth of the backbone.

    learned   λ is trained, from `weight` on: exp(-s), and s is added to the term (Kendall et al., 1705.07115)
    """

    log_variance: Tensor | None

    def __init__(
        self,
        name: str,
        head: Head,
        target: Target,
        distance: Distance,
        region: Region,
        weight: float = 1.0,
        layer: int = -1,
        learned: bool = False,
    ) -> None:
        super().__init__()
        if region == "masked" and per_view(target):
            raise UserError(f"{target.describe()}: it knows nothing of masked tokens; choose a target that sees them")
        self.name, self.region, self.weight, self.layer = name, region, weight, layer
        self.head, self.target, self.distance = head, target, distance
        self.log_variance = nn.Parameter(torch.tensor(-math.log(weight))) if learned else None

    def forward(self, features: Features, targets: Num[Tensor, "_ _ T"], views: Views) -> Pair:
        """Predictions and targets of Ω, token by token. Rows of targets beyond the grid's are prefix tokens, first."""
        of_view = per_view(self.target)
        first = targets.shape[1] - (views.visible if of_view else views.mask).shape[-1]
        prefix, tokens = targets[:, :first], targets[:, first:]
        if not of_view:
            prefix, tokens = views.repeat(prefix), views.gather(tokens, self.region)
        return self.head(features, views), torch.cat([prefix, tokens], dim=1) if self.region == "seen" else tokens

    @property
    def learned(self) -> Float[Tensor, ""] | None:
        """λ = exp(-s), where it is trained."""
        return None if self.log_variance is None else (-self.log_variance).exp()

    def term(self, loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """λ · loss, and s beside it where λ is trained."""
        s = self.log_variance
        return self.weight * loss if s is None else (-s).exp() * loss + s


Replace = Literal["tokens", "pixels"]


class Method(nn.Module):
    """A backbone, a masking and the branches that predict.

    replace   None: masked tokens are dropped · "tokens": replaced by a learned vector after the stem · "pixels": their
              pixels by a learned colour before it (FastMIM), which any network bears
    unit      pixels of a token of the grid of masks, heads and targets, where masks are finer than the backbone's
    jitter    colours that the backbone alone sees; targets are of the image as it is (MOMA)
    """

    branches: Sequence[Branch]
    fill: Tensor | None

    def __init__(
        self,
        backbone: Backbone,
        masking: Masking,
        branches: Sequence[Branch],
        replace: Replace | None = None,
        unit: Size | None = None,
        jitter: Jitter | None = None,
    ) -> None:
        super().__init__()
        mode = {None: "drop", "tokens": "replace"}.get(replace)
        if mode and mode not in backbone.modes:
            raise UserError(
                f"{backbone.network.__class__.__name__} cannot {mode} masked tokens, as this method asks; "
                "choose another backbone, or method fastmim, which hides pixels"
            )
        self.backbone, self.masking, self.replace, self.finer, self.jitter = backbone, masking, replace, unit, jitter
        self.branches = nn.ModuleList(branches)  # type: ignore[assignment]
        width = backbone.fill_width if replace == "tokens" else backbone.channels if replace else 0
        self.fill = nn.Parameter(0.02 * torch.randn(width)) if width else None

    def evolve(self, masking: Masking | None = None, *added: Branch) -> "Method":
        """This method with another masking, with more branches: how plug-ins are made. Parts are shared, not copied."""
        branches = [*self.branches, *added]
        grown = Method(self.backbone, masking or self.masking, branches, self.replace, self.finer, self.jitter)
        grown.fill = self.fill
        return grown

    def forward(
        self, images: Images, views: Views | None = None, normalised: bool = False
    ) -> dict[str, Float[Tensor, ""]]:
        """Losses by branch name and their weighted "total", in views drawn by `draw` (here, unless given).

        normalised   floats in 0..1 are meant; UserError otherwise, for they look like pixels that nobody normalised
        """
        self.backbone.normalise.look(images, normalised)
        pairs = self.pairs(images, views or self.draw(images))
        losses = {b.name: b.distance(pairs[b.name][0].float(), pairs[b.name][1]).mean() for b in self.branches}
        total = torch.stack([b.term(losses[b.name]) for b in self.branches]).sum()  # DMJD Eq. (6)
        learned = {f"weight/{b.name}": b.learned.detach() for b in self.branches if b.learned is not None}
        return {**losses, **learned, "total": total}

    def pairs(self, images: Images, views: Views) -> dict[str, Pair]:
        """Per branch the predictions and the targets of its region: what a loss compares and a picture shows."""
        images = self.backbone.normalise.deep(images)
        features = self.encode(images, views, tuple({branch.layer for branch in self.branches}))
        targets = {target: target(images, views) for target in {branch.target for branch in self.branches}}
        return {b.name: b(features[b.layer], targets[b.target], views) for b in self.branches}

    def encode(self, images: Images, views: Views, layers: Sequence[int] = (-1,)) -> dict[int, Features]:
        """f(x, v) at the named depths: the stem once per image, or once per view where its pixels are hidden."""
        if self.jitter and views.colours is not None:
            images = self.jitter(images, views.colours)
        if self.replace == "pixels":
            return self.backbone.encode(self.backbone.embed(self.hide(images, views)), layers=layers)
        return self.backbone.encode(self.backbone.embed(images), views, fill=self.fill, layers=layers)

    def hide(self, images: Images, views: Views) -> Float[Tensor, "VB C H W"]:
        """The views as FastMIM's networks see them: normalised pixels, masked ones replaced by the learned colour."""
        assert self.fill is not None
        hidden = views.pixels(self.unit).flatten(0, 1).unsqueeze(1)
        return torch.where(hidden, self.fill.view(-1, 1, 1), views.repeat(self.backbone.normalise(images)))

    @property
    def unit(self) -> Size:
        """Pixels of a token of the grid of masks, heads and targets."""
        return self.finer or self.backbone.patch

    @property
    def fine(self) -> Grid:
        """Rows and columns of that grid in a token of the backbone."""
        return grid_of(self.backbone.patch, self.finer) if self.finer else (1, 1)

    def grid(self, size: Size) -> Grid:
        """The grid of masks, heads and targets for images of `size` pixels: the backbone's, or finer."""
        whole = self.backbone.grid(size)
        return whole_grid(size, self.finer) if self.finer else whole

    def draw(self, images: Images, generator: Generator | None = None, part: slice = WHOLE) -> Views:
        """The masked views of a batch and their colours, drawn on the generator's device and moved to the images'.

        part   return what some of the images have among all
        """
        grid = self.grid((images.shape[-2], images.shape[-1]))
        views = self.masking(images.shape[0], grid, generator, part)
        if self.jitter:
            views = dataclasses.replace(views, colours=self.jitter.draw(images.shape[0], generator)[part])
        return views.to(images.device)
