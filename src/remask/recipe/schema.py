"""The schema of a pre-training recipe: its sections, and checks of combinations of keys."""

import math
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import Field, model_validator

from remask.recipe.distill import AverageSection, DistillSection
from remask.recipe.runtime import PretrainingRuntime, ProbeSection
from remask.recipe.schedule import OptimSection, ProgressSection
from remask.recipe.sections import (
    DISTILLING,
    DROPPING,
    METHODS,
    About,
    BackboneSection,
    DataSection,
    DMSection,
    JDSection,
    MaskingSection,
    MethodSection,
)
from remask.recipe.terms import UniformitySection
from remask.recipe.used import ATTENDING
from remask.recipe.values import Section


class Recipe(About):
    """One run, complete: what is trained on what, how, and what the paper reports for it."""

    data: DataSection
    backbone: BackboneSection
    masking: MaskingSection
    method: MethodSection
    dm: DMSection | None = Field(default=None, description="Disjoint masking; off when absent.")
    jd: JDSection | None = Field(default=None, description="Joint distillation; off when absent.")
    uniformity: UniformitySection | None = Field(default=None, description="U-MAE's term; off when absent.")
    optim: OptimSection
    distill: DistillSection | None = Field(default=None, description="Teachers of dmae and moma; off when absent.")
    average: AverageSection = AverageSection()
    progress: ProgressSection | None = Field(default=None, description="Growing image sizes; off when absent.")
    runtime: PretrainingRuntime = PretrainingRuntime()
    probe: ProbeSection | None = Field(default=None, description="kNN on the way; off when absent.")

    @property
    def across_batch(self) -> bool:
        """Whether some term compares the pictures of a batch with one another, so that no batch may be cut."""
        return self.uniformity is not None

    @model_validator(mode="before")
    @classmethod
    def _teachers(cls, value: Any) -> Any:
        """Check that the method has teachers, before the keys of [distill] are validated."""
        method = value.get("method") if isinstance(value, dict) else None
        name = method.get("name") if isinstance(method, dict) else None
        if name in METHODS and name not in DISTILLING and isinstance(value.get("distill"), dict):
            keys = ", ".join(f"distill.{key}" for key in value["distill"]) or "distill"
            raise ValueError(
                f"{keys}: [distill] belongs to dmae and moma, and method.name {name} has no teachers: choose one "
                "of those"
            )
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> "Recipe":
        for problem in _problems(self):
            raise ValueError(problem)
        return self


def _problems(recipe: Recipe) -> Iterator[str]:
    """Yields messages about keys that do not fit together, most likely mistake first."""
    masking, dm, optim, patch = recipe.masking, recipe.dm, recipe.optim, recipe.backbone.patch
    if dm and not dm.independent and dm.prediction < masking.ratio:
        yield (
            f"dm.prediction {dm.prediction:g} is below masking.ratio {masking.ratio:g}: "
            "a view cannot hide more than all views together; raise dm.prediction or lower masking.ratio"
        )
    if patch:
        yield from _grid_problems(recipe, patch)
    yield from _method_problems(recipe)
    yield from _network_problems(recipe)
    yield from _decoder_problems(recipe)
    yield from _progress_problems(recipe)
    yield from _distill_problems(recipe)
    yield from _across_problems(recipe)
    if (micro_batches := recipe.runtime.accumulate) != "auto" and optim.batch_size % micro_batches:
        yield f"runtime.accumulate {micro_batches} does not divide optim.batch_size {optim.batch_size}"
    if optim.batch_size % recipe.data.crops:
        yield f"data.crops {recipe.data.crops} does not divide optim.batch_size {optim.batch_size}"
    for where, width, heads in (
        ("backbone.", recipe.backbone.width, recipe.backbone.heads),
        ("method.decoder_", recipe.method.decoder_width, recipe.method.decoder_heads),
    ):
        has = where == "backbone." or recipe.method.name in ATTENDING
        if has and width and heads and width % heads:
            yield f"{where}heads {heads} does not divide {where}width {width}"


def _method_problems(recipe: Recipe) -> Iterator[str]:
    """Yields messages about invalid combinations of method, backbone and targets."""
    method, name = recipe.method, recipe.backbone.name
    replacing = name.startswith(("beit", "swin"))
    if method.name == "convmae" and not name.startswith("convvit"):
        yield (
            f"method.name convmae masks the convolutions of a ConViT; backbone.name {name} has none: use mae, or "
            "backbone convvit_base"
        )
    elif method.name == "mae" and name.startswith("convvit"):
        yield f"method mae on backbone.name {name} is ConvMAE: set method.name convmae"
    elif method.name in DROPPING and replacing:
        yield (
            f"method.name {method.name} drops masked tokens, and backbone.name {name} needs the whole grid for its "
            "relative positions and windows; use simmim, maskfeat or beit, or a vit"
        )
    elif method.name in DISTILLING and not recipe.distill:
        yield f"method.name {method.name} learns from teachers: name one with --teacher mae:FILE, or in [distill]"
    elif method.name not in (*DROPPING, "fastmim") and name.startswith("convvit"):
        yield (
            f"method.name {method.name} replaces masked tokens, and the masked convolutions of backbone.name {name} "
            "drop them; use convmae"
        )
    if (method.name == "beit") != (method.target.kind == "tokens"):
        yield (
            f"method.name beit classifies token ids, method.target.kind {method.target.kind} are none: set "
            "method.target tokens"
            if method.name == "beit"
            else f"method.name {method.name} regresses vectors, and method.target.kind tokens are ids: use method "
            "beit, or another target"
        )
    if method.name == "localmim" and method.target.kind != "hog":
        yield (
            f"method.name localmim predicts HOG in cells of several sizes, and method.target.kind {method.target.kind} "
            "has none: set method.target hog-l2"
        )
    if recipe.jd and recipe.jd.target.kind == "tokens":
        yield (
            "jd regresses vectors with smooth-l1, and jd.target.kind tokens are ids: choose hog, pixels-norm or a "
            "teacher's features"
        )


def _network_problems(recipe: Recipe) -> Iterator[str]:
    """Yields a message about a number of class tokens for which published weights have no place."""
    section = recipe.backbone
    if section.class_tokens and "." in section.name:
        yield (
            f"backbone.class_tokens {section.class_tokens}: the weights of backbone.name {section.name} have "
            f"their own number: leave it out, or take random weights, {section.name.partition('.')[0]}"
        )


def _decoder_problems(recipe: Recipe) -> Iterator[str]:
    """Yields messages about the sizes of data2vec's decoder, and of localmim's cells."""
    method = recipe.method
    if method.name == "data2vec" and method.decoder_kernel % 2 == 0:
        yield f"method.decoder_kernel {method.decoder_kernel} is even: convolutions that keep the grid have an odd side"
    cells, layers = method.cells, method.decoder_layers
    if method.name == "localmim" and cells and layers and len(cells) != len(layers):
        yield f"method.cells {cells} are {len(cells)} for the {len(layers)} of method.decoder_layers: one for each"


def _distill_problems(recipe: Recipe) -> Iterator[str]:
    """Yields messages about keys of [distill] that do not fit together."""
    section, moma, data = recipe.distill, recipe.method.name == "moma", recipe.data
    if section and moma and len({*(section.layers or [-1])}) > 1:
        yield f"distill.layers {section.layers}: moma reads one block of the student for all teachers"
    if section and moma and section.cache and (data.flip or data.crop_scale != (1, 1)):
        yield (
            "distill.cache keeps the features of crops that come again, and these are random: leave it out, or set "
            "data.crop_scale = [1, 1] and data.flip = false"
        )


def _across_problems(recipe: Recipe) -> Iterator[str]:
    """Yields a message about a batch that would be cut, or has no pairs, where a term compares its pictures."""
    micro_batches, batch = recipe.runtime.accumulate, recipe.optim.batch_size
    if not recipe.across_batch:
        return
    if batch == 1:
        yield "optim.batch_size 1 has no pairs of pictures, which uniformity compares: raise it"
    if micro_batches not in (1, "auto"):
        yield (
            f"runtime.accumulate {micro_batches} would cut the batch, and uniformity compares all its pictures: leave "
            "it out; where memory is short lower optim.batch_size, or set runtime.checkpointing=true"
        )


def _progress_problems(recipe: Recipe) -> Iterator[str]:
    """Yields messages if the last size is not data.image_size, or the epochs do not add up."""
    if not recipe.progress:
        return
    sizes, epochs = recipe.progress.sizes, recipe.optim.epochs
    last, final = ("x".join(map(str, size)) for size in (sizes[-1], recipe.data.image_size))
    if last != final:
        yield f"progress.sizes end at {last}, and data.image_size is {final}: the last size is the one that is kept"
    elif sum(shares := recipe.progress.epochs or recipe.progress.even(epochs)) != epochs:
        yield f"progress.epochs {shares} add up to {sum(shares)}, and optim.epochs is {epochs}"
    elif min(shares) < 1:
        yield f"optim.epochs {epochs} is too few for {len(sizes)} sizes: give each one at least an epoch"


def _grid_problems(recipe: Recipe, patch: int) -> Iterator[str]:
    """Yields messages about sizes of image, patch, masking cell and HOG cell that do not divide each other."""
    yield from _cell_problems(recipe, patch)
    height, width = recipe.data.image_size
    cell = recipe.masking.cell_pixels or patch * recipe.masking.cell
    unit = math.lcm(patch, cell)
    nearest = "x".join(str(max(1, round(side / unit)) * unit) for side in (height, width))
    if height % patch or width % patch:
        yield f"data.image_size {height}x{width} cannot be cut into {patch}x{patch} patches; the nearest is {nearest}"
    elif height % unit or width % unit:
        yield (
            f"masking cells of {cell} px do not fit the {height // patch}x{width // patch} patches of "
            f"data.image_size {height}x{width}; the nearest is {nearest}"
        )
    for where, target in (("method", recipe.method.target), ("jd", recipe.jd and recipe.jd.target)):
        unit = math.gcd(patch, recipe.masking.cell_pixels or patch)
        if target and target.cell and unit % target.cell:
            whose = "patch" if unit == patch else "masking cell"
            yield f"{where}.target.cell {target.cell} does not divide the {whose} of {unit} pixels"
    yield from _low_pass_problems(recipe)


def _low_pass_problems(recipe: Recipe) -> Iterator[str]:
    """Yields a message about a low-pass that leaves nothing out: half a cycle a pixel is the finest, both ways."""
    sides = [min(size) for size in (recipe.progress.sizes if recipe.progress else [recipe.data.image_size])]
    for where, target in (("method", recipe.method.target), ("jd", recipe.jd and recipe.jd.target)):
        if target and target.low_pass and target.low_pass >= (finest := math.sqrt(0.5) * min(sides)):
            yield (
                f"{where}.target.low_pass {target.low_pass:g} leaves nothing out: images of {min(sides)} pixels have "
                f"up to {finest:.1f} cycles a side, along the diagonal; lower it"
            )


def _cell_problems(recipe: Recipe, patch: int) -> Iterator[str]:
    """Yields a message unless masking.cell_pixels is a multiple of the patch; fastmim also accepts divisors of it.

    simmim on a Swin accepts multiples of the stem's patch, which only the network knows: not checked here.
    """
    side, method = recipe.masking.cell_pixels, recipe.method.name
    if not side or side % patch == 0 or (method == "simmim" and recipe.backbone.name.startswith("swin")):
        return
    if patch % side:
        yield f"masking.cell_pixels {side} neither divides the patch of {patch} pixels nor is a multiple of it"
    elif method != "fastmim":
        yield (
            f"masking.cell_pixels {side} is finer than the patch of {patch} pixels, and method {method} hides whole "
            "patches; only fastmim hides parts of one, and simmim on a Swin"
        )


def recipe_keys(section: type[Section] = Recipe, prefix: str = "") -> dict[str, str]:
    """{dotted key: line of help} of all keys, sections included, in the order of the schema."""
    keys: dict[str, str] = {}
    for name, field in section.model_fields.items():
        inner = [kind for kind in (field.annotation, *get_args(field.annotation)) if isinstance(kind, type)]
        nested = next((kind for kind in inner if issubclass(kind, Section)), None)
        keys[prefix + name] = field.description or (nested and nested.__doc__) or ""
        if nested:
            keys |= recipe_keys(nested, f"{prefix}{name}.")
    return keys


__all__ = ["METHODS", "Recipe", "recipe_keys"]
