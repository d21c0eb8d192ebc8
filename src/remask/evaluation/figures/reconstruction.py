"""Figure of a method's predictions: each view's masked image, the predictions of the branches, the union of the views.

Pixel targets are drawn as images (MAE, figure 2), HOG targets as stars; other targets are not drawn.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from remask.evaluation.figures.glyphs import magnitudes, stars
from remask.evaluation.figures.sheet import SHORT_SIDE, Panel, Reconstruction, rgb, sheet
from remask.evaluation.probing.features import evaluating
from remask.method import Branch, Method, Pair
from remask.targets import Hog, Pixels
from remask.tokens import patchify, scatter, unpatchify
from remask.types import Grid, Images, Size
from remask.views import Views

_GREY = 128
_PAPER, _GIVEN, _MASKED, _VISIBLE = (18, 20, 26), (235, 235, 235), (255, 190, 80), (110, 170, 255)
_DIM = (90, 92, 100)


class _Group(NamedTuple):
    """The branches that share a target, with their predictions over the whole grid."""

    target: Hog | Pixels
    predicted: Float[Tensor, "V B N P"]
    """Predictions where a branch has them, else targets."""
    regions: tuple[str, ...]
    label: str = ""
    """What tells it from other groups of its kind, behind the heading."""


def reconstruct(method: Method, images: Images, views: Views) -> bytes:
    """A PNG with a row per image: original, each masked view and its predictions, the union of the views."""
    return sheet(panels(method, images, views))


def panels(method: Method, images: Images, views: Views) -> Reconstruction:
    """The panels of `reconstruct` and notes about them. The method is in evaluation mode during the pass."""
    with torch.inference_mode(), evaluating([method]):
        device = next(method.parameters()).device
        on_device, placed = method.backbone.normalise.deep(images.to(device)), views.to(device)
        pairs = method.pairs(on_device, placed)
        groups = [_group(target, method.branches, pairs, on_device, placed) for target in _drawable(method.branches)]
        groups = _labelled(groups)
    images = method.backbone.normalise.shown(images.to(device)).cpu()
    views, patch = views.to(torch.device("cpu")), method.mask_unit
    columns = [_original(images), *_targets(groups, images, views)]
    for v in range(len(views.mask)):
        columns.append(_visible(images, views, patch, v))
        columns += [_prediction(group, images, views, patch, v) for group in groups]
    columns.append(_union(images, views, patch))
    return Reconstruction([list(row) for row in zip(*columns, strict=True)], _notes(groups))


def _drawable(branches: Iterable[Branch]) -> list[Hog | Pixels]:
    """The distinct targets that can be drawn, in the order of the branches."""
    targets = {branch.target: None for branch in branches if isinstance(branch.target, Hog | Pixels)}
    return [target for target in targets if isinstance(target, Hog | Pixels)]


def _group(
    target: Hog | Pixels, branches: Iterable[Branch], pairs: dict[str, Pair], images: Tensor, views: Views
) -> _Group:
    canvas = views.repeat(target(images, views).float())
    regions = []
    for branch in branches:
        if branch.target is target:
            canvas = scatter(pairs[branch.name][0].float(), views.ids(branch.region), canvas)
            regions.append(branch.region)
    return _Group(target, canvas.unflatten(0, views.mask.shape[:2]).cpu(), tuple(regions))


def _labelled(groups: list[_Group]) -> list[_Group]:
    """The groups; of several HOG targets (LocalMIM) each with the size of its cells."""
    hogs = [group.target for group in groups if isinstance(group.target, Hog)]
    if len(hogs) < 2:
        return groups
    return [g._replace(label=f"\n{g.target.cell} px") if isinstance(g.target, Hog) else g for g in groups]


def _original(images: Tensor) -> list[Panel]:
    return [Panel("original", rgb(image)) for image in images]


def _visible(images: Tensor, views: Views, patch: Size, v: int) -> list[Panel]:
    """The images with the masked patches of view `v` in grey."""
    hidden = _pixels_of(views.mask[v], views.grid, patch)
    grey = torch.where(hidden.unsqueeze(1), torch.tensor(_GREY, dtype=torch.uint8), images)
    heading = f"view {v + 1}\n{100 * views.corruption_rate:.3g} % hidden"
    return [Panel(heading, rgb(image)) for image in grey]


def _prediction(group: _Group, images: Tensor, views: Views, patch: Size, v: int) -> list[Panel]:
    if isinstance(group.target, Pixels):
        return _pixel_prediction(group.target, group, images, views, patch, v)
    return _hog_prediction(group.target, group, images, views, v)


def _pixel_prediction(target: Pixels, group: _Group, images: Tensor, views: Views, patch: Size, v: int) -> list[Panel]:
    """Images with predictions at masked patches; without a masked branch, predictions at visible ones, others grey."""
    predicted, hidden = group.predicted[v], _pixels_of(views.mask[v], views.grid, patch).unsqueeze(1)
    if target.per_patch:
        var, centre = torch.var_mean(patchify(_compared(target, images), patch), dim=-1, keepdim=True)
        predicted = predicted * (var + 1e-6).sqrt() + centre
    painted = _shown(target, unpatchify(predicted, views.grid, patch))
    if "masked" in group.regions:
        painted = torch.where(hidden, painted, images)
    else:
        painted = torch.where(hidden, torch.tensor(_GREY, dtype=torch.uint8), painted)
    return [Panel(f"prediction {v + 1}", rgb(image)) for image in painted]


def _compared(target: Pixels, images: Tensor) -> Float[Tensor, "B C H W"]:
    """The normalised image that a target's patches are cut from, of images that may lie elsewhere."""
    return target.compared(images.to(target.mean.device)).cpu()


def _shown(target: Pixels, normalised: Float[Tensor, "B C H W"]) -> UInt8[Tensor, "B C H W"]:
    return (normalised * target.std.cpu() + target.mean.cpu()).mul(255).round().clamp(0, 255).to(torch.uint8)


def _targets(groups: Sequence[_Group], images: Tensor, views: Views) -> list[list[Panel]]:
    """A column for each target that is not the image itself."""
    columns = []
    for group in groups:
        if isinstance(pixels := group.target, Pixels) and pixels.low_pass is not None:
            shown = _shown(pixels, _compared(pixels, images))
            columns.append([Panel(f"target, up to\n{pixels.low_pass:g} cycles", rgb(image)) for image in shown])
        if isinstance(hog := group.target, Hog):
            magnitude, full, side = _magnitudes(hog, images, views)
            strokes = stars(magnitude, full, side, hog.flavour)
            colours = torch.tensor(_GIVEN).expand(*strokes.shape, 3)
            columns.append([Panel(f"HOG target{group.label}", image) for image in _painted(strokes, colours)])
    return columns


def _hog_prediction(hog: Hog, group: _Group, images: Tensor, views: Views, v: int) -> list[Panel]:
    """Stars of predictions, coloured by region; for a region without prediction the target, dimmed."""
    _, full, side = _magnitudes(hog, images, views)
    strokes = stars(magnitudes(hog, group.predicted[v], views.grid), full, side, hog.flavour)
    hidden = _pixels_of(views.mask[v], views.grid, (side * hog.patch[0] // hog.cell, side * hog.patch[1] // hog.cell))
    masked = _MASKED if "masked" in group.regions else _DIM
    visible = _VISIBLE if "visible" in group.regions else _DIM
    colours = torch.where(hidden.unsqueeze(-1), torch.tensor(masked), torch.tensor(visible))
    return [Panel(f"HOG prediction {v + 1}{group.label}", image) for image in _painted(strokes, colours)]


def _magnitudes(hog: Hog, images: Tensor, views: Views) -> tuple[Tensor, Tensor, int]:
    """The target's magnitudes [B, bins, h, w], the magnitude of a full stroke [B], and the pixels per cell."""
    magnitude = magnitudes(hog, hog(images.to(hog.mean.device), views).cpu(), views.grid)
    full = magnitude.flatten(1).quantile(0.99, dim=1)
    return magnitude, full, max(8, -(-SHORT_SIDE // min(magnitude.shape[-2:])))


def _painted(brightness: Float[Tensor, "B Y X"], colours: Tensor) -> UInt8[Tensor, "B Y X 3"]:
    paper, light = torch.tensor(_PAPER, dtype=torch.float32), brightness.unsqueeze(-1)
    return (paper + light * (colours - paper)).round().to(torch.uint8)


def _union(images: Tensor, views: Views, patch: Size) -> list[Panel]:
    """The image at patches that some view masks; hatched elsewhere."""
    covered = views.mask.any(0)
    shown = _pixels_of(covered, views.grid, patch)
    result = []
    for image, mask, share in zip(images, shown, covered.float().mean(1).tolist(), strict=True):
        enlarged = rgb(image)
        factor = enlarged.shape[0] // image.shape[-2]
        mask = mask.repeat_interleave(factor, 0).repeat_interleave(factor, 1)
        enlarged = torch.where(mask.unsqueeze(-1), enlarged, _hatching(enlarged.shape[0], enlarged.shape[1]))
        result.append(Panel("union of the views", enlarged, f"predicted {100 * share:.3g} %"))
    return result


def _hatching(height: int, width: int) -> UInt8[Tensor, "height width 3"]:
    """Diagonal stripes in two greys."""
    stripe = (torch.arange(height)[:, None] + torch.arange(width)) // max(3, min(height, width) // 40) % 2
    return (_GREY + 40 * stripe).to(torch.uint8).unsqueeze(-1).expand(-1, -1, 3)


def _pixels_of(tokens: Bool[Tensor, "B N"], grid: Grid, patch: Size) -> Bool[Tensor, "B H W"]:
    return tokens.unflatten(1, grid).repeat_interleave(patch[0], 1).repeat_interleave(patch[1], 2)


def _notes(groups: Sequence[_Group]) -> list[str]:
    """Notes that explain the panels, one per target."""
    notes = []
    for group in groups:
        masked, visible = "masked" in group.regions, "visible" in group.regions
        if isinstance(group.target, Pixels):
            sentences = (
                ["Prediction: masked patches are predicted, visible ones are the image's own."] if masked else []
            )
            if group.target.per_patch:
                sentences.append("Targets are normalised per patch: each patch is drawn with its true mean and spread.")
        else:
            sentences = ["HOG: strokes lie along the edges of a cell, as long and bright as they are strong."]
            sentences += ["Orange: predicted at masked patches."] if masked else []
            sentences += ["Blue: predicted at visible patches."] if visible else []
            sentences += ["Grey: not predicted, the target."] if not (masked and visible) else []
        notes.append(" ".join(sentences))
    return notes


__all__ = ["panels", "reconstruct"]
