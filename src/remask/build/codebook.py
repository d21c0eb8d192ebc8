"""Codebooks for BEiT: visual words, the centroids of k-means on the user's own images (2106.08254, section 2.1)."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from remask.build.pretraining import build_backbone, build_target, codebook_features, scaling_of
from remask.errors import UserError
from remask.files.escaping import printable
from remask.images.loading.loader import Batch, TooManyBad, iterate
from remask.images.sources.opening import Source
from remask.images.sources.subset import Subset
from remask.images.transforms import CentreCrop
from remask.method import Method
from remask.recipe import Recipe
from remask.recipe import Target as TargetRecipe
from remask.seeds import generator
from remask.targets.tokens import Codebook, fit_codebook, save_codebook

FILE = "codebook.safetensors"
ROWS = 200_000
"""Maximum number of patches for k-means; more patches change little and cost minutes."""


class Words(NamedTuple):
    """A codebook: centroids [words, features] and their description {"target", "patch", "pictures"}."""

    centres: Float[Tensor, "V P"]
    about: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write centroids and description to a safetensors file."""
        save_codebook(path, self.centres, self.about)


def fit(recipe: Recipe, source: Source, say: Callable[[str], None], seed: int = 0) -> Words:
    """The centroids of k-means over patches of the source's images; the recipe's target sets their number.

    Reads at most `ROWS` patches, of randomly drawn images. Raises UserError for fewer patches than words, or too many
    unusable images.
    """
    section, patch = recipe.method.target, _patch(recipe)
    features = codebook_features(section)
    target = build_target(features, recipe, patch)
    per_image = (recipe.data.image_size[0] // patch[0]) * (recipe.data.image_size[1] // patch[1])
    indices = torch.randperm(len(source), generator=generator(seed, "codebook"))[: -(-ROWS // per_image)].tolist()
    say(f"a codebook of {section.vocabulary} words over {target.describe()}: reading {len(indices)} pictures")
    crop, data = CentreCrop(recipe.data.image_size), recipe.data
    scaling, subset, rows, images_read = scaling_of(data), Subset(source, indices), list[Tensor](), 0
    batches = iterate(
        subset, crop, 64, channels=data.channels, max_bad=max(data.max_bad, 0.01), scaling=scaling,
        report=lambda line: say(f"skipped {line}"),
    )  # fmt: skip
    for images in _usable(batches, len(subset), source.name):
        rows.append(target(scaling.ready(images) if scaling else images, None).flatten(0, 1))  # type: ignore[arg-type]  # no views
        images_read += len(images)
    if not rows:
        raise UserError(f"{source.name} has no picture to fit a codebook on")
    patches = torch.cat(rows)
    say(f"k-means over {len(patches)} patches of {patches.shape[1]} numbers")
    description = {"target": features.model_dump(mode="json"), "patch": list(patch), "pictures": images_read}
    return Words(fit_codebook(patches, section.vocabulary, seed), description)


def _usable(batches: Iterator[Batch], total: int, name: str) -> Iterator[Tensor]:
    """Yields the images of the batches. Raises UserError, which names three, if too many images are unusable."""
    try:
        for batch in batches:
            yield batch.images
    except TooManyBad as error:
        first = "; ".join(f"{where}: {reason}" for where, reason in list(error.bad.items())[:3])
        raise UserError(
            f"at least {len(error.bad)} of {total} images of {printable(name)} cannot be used for the codebook "
            f"({first}): remask data check names them all; repair them, or leave them out with --exclude"
        ) from None


def install(words: Words, method: Method) -> None:
    """Copy the centroids into the codebooks of the method's targets (zeros until then)."""
    for branch in method.branches:
        if isinstance(branch.target, Codebook):
            branch.target.centres.copy_(words.centres)


def with_file(recipe: Recipe, file: str) -> Recipe:
    """A copy of the recipe that reads its codebook from `file`."""
    target = recipe.method.target
    from_file = target.model_copy(update={"file": file, "over": "hog", "teacher": None, "weights": None})
    method = recipe.method.model_copy(update={"target": TargetRecipe.model_validate(from_file.model_dump())})
    return recipe.model_copy(update={"method": method})


def _patch(recipe: Recipe) -> tuple[int, int]:
    """Pixels (height, width) of a token: the recipe's, or else the network's default."""
    if recipe.backbone.patch:
        return recipe.backbone.patch, recipe.backbone.patch
    with torch.device("meta"):
        return build_backbone(recipe).patch


__all__ = ["FILE", "Words", "fit", "install", "with_file"]
