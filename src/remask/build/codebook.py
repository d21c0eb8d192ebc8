"""Codebooks: the words of BEiT's τ, fitted by k-means on the user's own pictures (after 2106.08254, section 2.1)."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from remask.build.pixel_rule import with_pixel_rule
from remask.build.pretraining import build_backbone, build_target, codebook_features, scaling_of
from remask.errors import UserError
from remask.files.escaping import printable
from remask.images.loading.loader import Batch, TooManyBad, iterate
from remask.images.sources.opening import Source, open_source
from remask.images.sources.subset import Subset
from remask.images.transforms import CentreCrop
from remask.method import Method
from remask.recipe import Recipe, choose
from remask.recipe import Target as TargetRecipe
from remask.seeds import generator
from remask.targets.tokens import Codebook, fit_codebook, save_codebook

FILE = "codebook.safetensors"
ROWS = 200_000
"""Patches that k-means sees at most; more change little and cost minutes."""


class Words(NamedTuple):
    """The centres of a codebook, and what they were fitted on."""

    centres: Float[Tensor, "V P"]
    about: dict[str, Any]

    def save(self, path: Path) -> None:
        save_codebook(path, self.centres, self.about)


def fit(recipe: Recipe, source: Source, say: Callable[[str], None], seed: int = 0) -> Words:
    """k-means over the patches of the source's pictures, as the recipe's [method] target asks.

    At most 200,000 patches of evenly drawn pictures. Raises UserError where there are fewer patches than words.
    """
    part, patch = recipe.method.target, _patch(recipe)
    described = codebook_features(part)
    target = build_target(described, recipe, patch)
    per_picture = (recipe.data.image_size[0] // patch[0]) * (recipe.data.image_size[1] // patch[1])
    drawn = torch.randperm(len(source), generator=generator(seed, "codebook"))[: -(-ROWS // per_picture)].tolist()
    say(f"a codebook of {part.vocabulary} words over {target.describe()}: reading {len(drawn)} pictures")
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
    seen = torch.cat(rows)
    say(f"k-means over {len(seen)} patches of {seen.shape[1]} numbers")
    about = {"target": described.model_dump(mode="json"), "patch": list(patch), "pictures": read}
    return Words(fit_codebook(seen, part.vocabulary, seed), about)


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


def create(
    data: str,
    out: Path,
    *,
    recipe: str = "beit-vit-b",
    target: str = "hog",
    vocabulary: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    settings: Sequence[str] = (),
    exclude: Sequence[str] = (),
    quiet: bool = False,
) -> Path:
    """Fit a k-means codebook on pictures, for `method.target.file`; patch and picture size come from the recipe.

    target  a vector target by its word (hog, hog-l2, pixels, pixels-norm) or a teacher's name as "timm:NAME"
    """
    if out.exists():
        raise UserError(f"{out} exists already; choose another --out")
    over = {"over": "features", "teacher": target} if ":" in target else {"over": target}
    words = {"vocabulary": vocabulary} if vocabulary else {}
    tokens = {"kind": "tokens", "tokenizer": "codebook", "file": None, **words, **over}
    chosen = choose(recipe, {"method.name": "beit", "method.target": tokens}, settings=settings)
    source = open_source(data, limit=limit, exclude=exclude)
    say: Callable[[str], None] = (lambda line: None) if quiet else print
    chosen, line = with_pixel_rule(chosen, source)  # as a run of this recipe would read the same images
    say(line)
    fitted = fit(chosen, source, say, seed)
    fitted.save(out)
    return out


def install(words: Words, method: Method) -> None:
    """Give a method whose codebook was still empty its words."""
    for branch in method.branches:
        if isinstance(branch.target, Codebook):
            branch.target.centres.copy_(words.centres)


def with_file(recipe: Recipe, file: str) -> Recipe:
    """The recipe with its codebook read from a file."""
    target = recipe.method.target
    kept = target.model_copy(update={"file": file, "over": "hog", "teacher": None, "weights": None})
    part = recipe.method.model_copy(update={"target": TargetRecipe.model_validate(kept.model_dump())})
    return recipe.model_copy(update={"method": part})


def _patch(recipe: Recipe) -> tuple[int, int]:
    """Pixels of a token, asked of the network where the recipe does not say."""
    if recipe.backbone.patch:
        return recipe.backbone.patch, recipe.backbone.patch
    with torch.device("meta"):
        return build_backbone(recipe).patch


__all__ = ["FILE", "Words", "create", "fit", "install", "with_file"]
