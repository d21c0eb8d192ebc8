"""Codebooks: the words of BEiT's τ, fitted by k-means on the user's own images (after 2106.08254, section 2.1)."""

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
"""Patches that k-means reads at most; more change little and cost minutes."""


class Words(NamedTuple):
    """The centres of a codebook, and a description of what they were fitted on."""

    centres: Float[Tensor, "V P"]
    about: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        save_codebook(path, self.centres, self.about)


def fit(recipe: Recipe, source: Source, say: Callable[[str], None], seed: int = 0) -> Words:
    """The centres that k-means finds over patches of the source's images, as many as the recipe's target has words.

    At most 200,000 patches of randomly drawn images are read. Raises UserError where there are fewer than words.
    """
    wanted, patch = recipe.method.target, _patch(recipe)
    described = codebook_features(wanted)
    target = build_target(described, recipe, patch)
    per_image = (recipe.data.image_size[0] // patch[0]) * (recipe.data.image_size[1] // patch[1])
    drawn = torch.randperm(len(source), generator=generator(seed, "codebook"))[: -(-ROWS // per_image)].tolist()
    say(f"a codebook of {wanted.vocabulary} words over {target.describe()}: reading {len(drawn)} pictures")
    crop, data = CentreCrop(recipe.data.image_size), recipe.data
    scaling, some, rows, read = scaling_of(data), Subset(source, drawn), list[Tensor](), 0
    batches = iterate(
        some, crop, 64, channels=data.channels, max_bad=max(data.max_bad, 0.01), scaling=scaling,
        report=lambda line: say(f"skipped {line}"),
    )  # fmt: skip
    for images in _usable(batches, len(some), source.name):
        rows.append(target(scaling.ready(images) if scaling else images, None).flatten(0, 1))  # type: ignore[arg-type]  # no views
        read += len(images)
    if not rows:
        raise UserError(f"{source.name} has no picture to fit a codebook on")
    patches = torch.cat(rows)
    say(f"k-means over {len(patches)} patches of {patches.shape[1]} numbers")
    about = {"target": described.model_dump(mode="json"), "patch": list(patch), "pictures": read}
    return Words(fit_codebook(patches, wanted.vocabulary, seed), about)


def _usable(batches: Iterator[Batch], total: int, name: str) -> Iterator[Tensor]:
    """The images of the batches. Raises UserError, with the first that cannot be used, where those are too many."""
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
    """Copy the words into a method whose codebook is still empty."""
    for branch in method.branches:
        if isinstance(branch.target, Codebook):
            branch.target.centres.copy_(words.centres)


def with_file(recipe: Recipe, file: str) -> Recipe:
    """The recipe, which then reads its codebook from a file."""
    target = recipe.method.target
    kept = target.model_copy(update={"file": file, "over": "hog", "teacher": None, "weights": None})
    method = recipe.method.model_copy(update={"target": TargetRecipe.model_validate(kept.model_dump())})
    return recipe.model_copy(update={"method": method})


def _patch(recipe: Recipe) -> tuple[int, int]:
    """Pixels (height, width) of a token: the recipe's, or else the network's own."""
    if recipe.backbone.patch:
        return recipe.backbone.patch, recipe.backbone.patch
    with torch.device("meta"):
        return build_backbone(recipe).patch


__all__ = ["FILE", "Words", "fit", "install", "with_file"]
