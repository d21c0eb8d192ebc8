"""The equation of the library, in one place. Every paper is a `Method` with other parts; none is a class of its own.

L(x) = Σ_b λ_b · mean over views v and tokens i ∈ Ω_b(v) of  d_b( h_b( f(x, v) )_i ,  τ_b(x, v)_i )
"""

import dataclasses
from collections.abc import Sequence

import torch
from jaxtyping import Float, Num
from torch import Generator, Tensor, nn

from remask.backbones import Backbone
from remask.backbones.masked_input import Dropped, MaskedInput
from remask.color_jitter import BatchColorJitter
from remask.errors import UserError, setting
from remask.masking import Masking
from remask.masking.guided import GuideModule
from remask.masking.scores import ALL, Guide
from remask.method.branch import Branch, Pair, Region
from remask.targets import Target
from remask.targets.loss_of import LossOf
from remask.targets.moving_average import Average, AverageReader
from remask.tokens import divisible_grid, grid_of
from remask.types import Features, Grid, Images, Size
from remask.views import Views


class Method(nn.Module):
    """A backbone, a masking, how masked views enter the backbone, and the branches that predict.

    sees     Dropped() unless given, TokensReplaced(), PixelsReplaced(): what becomes of masked tokens
    jitter   colours that the backbone alone sees; targets are of the image as it is (MOMA)
    average  the teacher of `MovingAverage` targets and of guides; made from the backbone where one of them needs it
    guide    what adaptive masks go by (methods/guided.py)
    Raises UserError for a backbone that cannot be masked this way.
    """

    branches: Sequence[Branch]

    def __init__(
        self,
        backbone: Backbone,
        masking: Masking,
        branches: Sequence[Branch],
        sees: MaskedInput | None = None,
        jitter: BatchColorJitter | None = None,
        average: Average | None = None,
        guide: GuideModule | None = None,
    ) -> None:
        super().__init__()
        if masking.predicted != "all" and not any(branch.region == "predicted" for branch in branches):
            raise UserError(
                f"the masking says that tokens are predicted {masking.predicted!r}, and no branch of this method "
                'predicts less than all: give one the region "predicted", or predict "all"'
            )
        self.sees: MaskedInput = sees or Dropped()
        self.sees.prepare(backbone)
        self.backbone, self.masking, self.jitter = backbone, masking, jitter
        self.branches = nn.ModuleList(branches)  # type: ignore[assignment]
        readers = [branch.target for branch in branches if isinstance(branch.target, AverageReader)]
        self.average = (average or Average(backbone)) if readers or guide else None
        self.guide = guide
        self.draws_images = any(getattr(branch.target, "draws_images", False) for branch in branches)
        if readers and self.mask_unit != backbone.patch:
            keys = "method.name, masking.cell_pixels and method.target.kind average, or jd.target.kind average,"
            raise UserError(
                f"{setting(keys, 'the moving average and mask_unit')} do not go together: masks are finer than tokens "
                "here, and the moving average has one vector for a token"
            )
        for target in readers:
            target.read(self.average)  # type: ignore[arg-type]

    def with_(
        self,
        masking: Masking | None = None,
        branches: Sequence[Branch] | None = None,
        guide: GuideModule | None = None,
    ) -> "Method":
        """This method with another masking, branches, guide: how plug-ins are made. Modules are shared, not copied."""
        masking, branches, guide = masking or self.masking, branches or [*self.branches], guide or self.guide
        return Method(self.backbone, masking, branches, self.sees, self.jitter, self.average, guide)

    def forward(
        self,
        images: Images,
        views: Views | None = None,
        generator: Generator | None = None,
        normalised: bool = False,
    ) -> dict[str, Float[Tensor, ""]]:
        """Losses by branch name and their weighted "total".

        views        drawn here by `draw` with `generator` unless given
        normalised   floats in 0..1 are meant; UserError otherwise, for they look like pixels that nobody normalised
        """
        self.backbone.normalise.refuse_unnormalised(images, normalised)
        views = views or self.draw(images, generator)
        pairs = self.pairs(images, views)
        losses = {b.name: b.loss(*pairs[b.name], views) for b in self.branches}
        total = torch.stack([b.term(losses[b.name]) for b in self.branches]).sum()  # DMJD Eq. (6)
        learned = {f"weight/{b.name}": b.learned.detach() for b in self.branches if b.learned is not None}
        return {**losses, **learned, "total": total}

    def pairs(self, images: Images, views: Views) -> dict[str, Pair]:
        """Per branch the predictions and the targets of its region: what a loss compares and a figure shows."""
        images = self.backbone.normalise.deep(images)
        features = self.encode(images, views, tuple({layer for branch in self.branches for layer in branch.layers}))
        targets = self.targets(images, views)
        pairs: dict[str, Pair] = {}
        for b in self.branches:
            target = b.target(pairs) if isinstance(b.target, LossOf) else targets[b.target]
            pairs[b.name] = b(b.read(features), target, views)
        return pairs

    def targets(self, images: Images, views: Views) -> dict[Target, Num[Tensor, "_ _ T"]]:
        """τ(x, v) of every target, once however many branches have it; those of the moving average from one pass."""
        targets = {branch.target for branch in self.branches if not isinstance(branch.target, LossOf)}
        readers = [target for target in targets if isinstance(target, AverageReader)]
        wanted = {key for target in readers for key in target.wanted}
        features = self.average(images, sorted(wanted)) if self.average else {}
        return {t: t.combine(features, views) if isinstance(t, AverageReader) else t(images, views) for t in targets}

    def before_step(self, progress: float) -> None:
        """What precedes a step, after a share `progress` of the training: whether the backbone is trained."""
        self.sees.before_step(progress)

    def after_step(self, progress: float, taken: Tensor | None = None) -> None:
        """What follows an update of the weights, after a share `progress` of the training: the moving average.

        taken   [] on the device, 0 where the update was skipped: the average then stays
        """
        if self.average:
            self.average.follow(self.backbone, progress, taken)
            self._heads_followed(self.average.decay_at(progress), taken)
        if self.guide:
            self.guide.follow(self.average, progress, taken)

    def restart_average(self) -> None:
        """Let the moving average equal the student, after its first weights were set."""
        if self.average:
            self.average.restart(self.backbone)
            self._heads_followed(0.0)
        if self.guide:
            self.guide.restart(self.average)

    def _heads_followed(self, decay: float, taken: Tensor | None = None) -> None:
        for branch in self.branches:
            if isinstance(branch.target, AverageReader):
                branch.target.follow(branch.head, decay, taken)

    def encode(self, images: Images, views: Views, layers: Sequence[int] = (-1,)) -> dict[int, Features]:
        """f(x, v) at the named blocks, in the colours of the views."""
        if self.jitter and views.colours is not None:
            images = self.jitter(images, views.colours)
        return self.sees.encode(self.backbone, images, views, layers)

    def draw(
        self, images: Images, generator: Generator | None = None, rows: slice = ALL, batch: int | None = None
    ) -> Views:
        """The masked views of a batch and their colours, drawn on the generator's device and moved to the images'.

        rows    return those of these images only, the same as among all
        batch   images of the whole batch, where only those of `rows` are given
        """
        batch, images = (len(images), images[rows]) if batch is None else (batch, images)
        grid = self.grid((images.shape[-2], images.shape[-1]))
        views = self.masking(batch, grid, generator, rows, self._guide(images, grid, generator))
        if self.jitter:
            views = dataclasses.replace(views, colours=self.jitter.draw(batch, generator)[rows])
        if self.draws_images:
            chance = torch.rand(batch, generator=generator, device=generator.device if generator else None)
            views = dataclasses.replace(views, chance=chance[rows])
        return views.to(images.device)

    def _guide(self, images: Images, grid: Grid, generator: Generator | None) -> Guide | None:
        """What the masks of these images go by, once for all views, on the device where they are drawn."""
        device = generator.device if generator else torch.get_default_device()
        return self.guide(self.average, images, *self.masking.cells(grid)).to(device) if self.guide else None

    @property
    def across_batch(self) -> bool:
        """Whether some branch compares pictures of a batch with one another, so that no batch may be cut."""
        return any(branch.across_batch for branch in self.branches)

    @property
    def mask_unit(self) -> Size:
        """Pixels of a token of the grid of masks, heads and targets: the backbone's, unless masks are finer."""
        return self.sees.mask_unit or self.backbone.patch

    @property
    def cells_per_token(self) -> Grid:
        """Rows and columns of that grid in a token of the backbone; (1, 1) unless masks are finer."""
        return grid_of(self.backbone.patch, self.sees.mask_unit) if self.sees.mask_unit else (1, 1)

    def grid(self, size: Size) -> Grid:
        """The grid of masks, heads and targets for images of `size` pixels. UserError where either does not fit."""
        of_backbone = self.backbone.grid(size)
        return divisible_grid(size, self.sees.mask_unit) if self.sees.mask_unit else of_backbone

    @property
    def former_names(self) -> dict[str, str]:
        """Keys of state dicts written before 2026-12, and what they are called now."""
        return {old: f"sees.{new}" for old, new in self.sees.former_names.items()}

    def __str__(self) -> str:
        return equation(self, self.backbone.size)


def equation(method: Method, size: Size) -> str:
    """The equation with a method's names and numbers, for images of `size` pixels: what `remask show` prints.

    Raises UserError where patches or masking do not fit the size.
    """
    grid, backbone, views = method.grid(size), method.backbone, method.masking.views
    counts = method.masking.counts(grid)
    visible = counts.tokens - counts.hidden
    tokens = {"masked": counts.hidden, "predicted": counts.per_view, "visible": visible}
    tokens["encoded"] = visible + backbone.prefix
    over = f"{views} views, {{}} each" if views > 1 else "1 view, {}"
    rows = {region: f"{count} {region} tokens" for region, count in tokens.items()} | {"pooled": "one pooled row"}
    rows_of = {b.name: "all pairs of pictures" if b.across_batch else rows[b.region] for b in method.branches}
    terms = [b.describe(over.format(rows_of[b.name])) for b in method.branches]
    unit = "" if method.mask_unit == backbone.patch else " of {}×{} px".format(*method.mask_unit)
    name = type(backbone if backbone.modes else backbone.network).__name__
    return "\n".join(
        [
            "L(x) = " + "\n     + ".join(terms),
            "",
            f"f  {name} of width {backbone.width}, depth {backbone.depth}, patches of {backbone.patch[0]}×"
            f"{backbone.patch[1]} px; sees {method.sees.describe()}{', in other colours' if method.jitter else ''}",
            f"x  image of {size[0]}×{size[1]} px, {'×'.join(map(str, grid))} = {counts.tokens} tokens{unit}",
            f"v  {method.masking.describe(grid)}",
            *([f"g  {method.guide.describe()}"] if method.guide else []),
        ]
    )


__all__ = ["Branch", "Method", "Pair", "Region", "equation"]
