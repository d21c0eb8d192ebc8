"""Combinations of keys of a pre-training recipe that do not fit together, in sentences that name the keys."""

import math
from collections.abc import Iterator
from typing import Any

from remask.recipe.masking import GUIDED
from remask.recipe.sections import DISTILLING, DROPPING
from remask.recipe.used import ATTENDING


def problems(recipe: Any) -> Iterator[str]:
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
    yield from _refine_problems(recipe)
    yield from _masking_problems(recipe)
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


def _method_problems(recipe: Any) -> Iterator[str]:
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
    elif method.name not in (*DROPPING, "fastmim", "refiner") and name.startswith("convvit"):
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


def _refine_problems(recipe: Any) -> Iterator[str]:
    """Yields messages about whole crops: which method compares them, and how many there are."""
    method, masking, optim = recipe.method.name, recipe.masking, recipe.optim
    if (method == "refiner") != (masking.pattern == "none"):
        other = "compares whole crops: set masking.pattern none and masking.ratio 0"
        yield f"method.name {method} {other if method == 'refiner' else 'predicts what is hidden: choose a pattern'}"
    if method != "refiner":
        return
    if recipe.progress:
        yield "progress.sizes: queue and average of method.name refiner do not grow with images: leave [progress] out"
    if recipe.data.crops != 2:
        yield f"data.crops {recipe.data.crops}: method.name refiner compares two crops of a picture; set data.crops 2"
    elif not recipe.refine.neighbours <= recipe.refine.queue:
        yield (
            f"refine.neighbours {recipe.refine.neighbours} are more than refine.queue {recipe.refine.queue} holds: "
            "lower them, or raise the queue"
        )
    elif optim.batch_size < recipe.refine.neighbours:
        yield (
            f"optim.batch_size {optim.batch_size} is smaller than refine.neighbours {recipe.refine.neighbours}: after "
            "a step the queue would hold fewer than are drawn from; raise the batch, or lower the neighbours"
        )


def _network_problems(recipe: Any) -> Iterator[str]:
    """Yields a message about a number of class tokens for which published weights have no place."""
    section = recipe.backbone
    if section.class_tokens and "." in section.name:
        yield (
            f"backbone.class_tokens {section.class_tokens}: the weights of backbone.name {section.name} have "
            f"their own number: leave it out, or take random weights, {section.name.partition('.')[0]}"
        )


def _decoder_problems(recipe: Any) -> Iterator[str]:
    """Yields messages about the sizes of data2vec's decoder, and of localmim's cells."""
    method = recipe.method
    if method.name == "data2vec" and method.decoder_kernel % 2 == 0:
        yield f"method.decoder_kernel {method.decoder_kernel} is even: convolutions that keep the grid have an odd side"
    cells, layers = method.cells, method.decoder_layers
    if method.name == "localmim" and cells and layers and len(cells) != len(layers):
        yield f"method.cells {cells} are {len(cells)} for the {len(layers)} of method.decoder_layers: one for each"


def _distill_problems(recipe: Any) -> Iterator[str]:
    """Yields messages about keys of [distill] that do not fit together."""
    section, moma, data = recipe.distill, recipe.method.name == "moma", recipe.data
    if section and moma and len({*(section.layers or [-1])}) > 1:
        yield f"distill.layers {section.layers}: moma reads one block of the student for all teachers"
    if section and moma and section.cache and (data.flip or data.crop_scale != (1, 1)):
        yield (
            "distill.cache keeps the features of crops that come again, and these are random: leave it out, or set "
            "data.crop_scale = [1, 1] and data.flip = false"
        )


def _masking_problems(recipe: Any) -> Iterator[str]:
    """Yields messages about patterns that do not go with the method, or with growing images."""
    pattern = recipe.masking.pattern
    if pattern == "loss" and recipe.method.name == "moma":
        yield (
            'masking.pattern "loss" ranks masked patches by their loss, and method.name moma predicts none of them: '
            'choose masking.pattern "attention", "green" or "random"'
        )
    if pattern in GUIDED and recipe.progress:
        yield (
            f'masking.pattern "{pattern}" goes by a moving average, which does not grow with progress.sizes: leave '
            "[progress] out, or choose another masking.pattern"
        )


def _across_problems(recipe: Any) -> Iterator[str]:
    """Yields a message about a batch that would be cut, or has no pairs, where a term compares its pictures."""
    micro_batches, batch = recipe.runtime.accumulate, recipe.optim.batch_size
    if not recipe.across_batch:
        return
    term = "uniformity" if recipe.uniformity else "method.name refiner"
    if batch == 1:
        yield f"optim.batch_size 1 has no pairs of pictures, which {term} compares: raise it"
    if micro_batches not in (1, "auto"):
        yield (
            f"runtime.accumulate {micro_batches} would cut the batch, and {term} compares all its pictures: leave "
            "it out; where memory is short lower optim.batch_size, or set runtime.checkpointing=true"
        )


def _progress_problems(recipe: Any) -> Iterator[str]:
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


def _grid_problems(recipe: Any, patch: int) -> Iterator[str]:
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


def _low_pass_problems(recipe: Any) -> Iterator[str]:
    """Yields a message about a low-pass that leaves nothing out: half a cycle a pixel is the finest, both ways."""
    sides = [min(size) for size in (recipe.progress.sizes if recipe.progress else [recipe.data.image_size])]
    for where, target in (("method", recipe.method.target), ("jd", recipe.jd and recipe.jd.target)):
        if target and target.low_pass and target.low_pass >= (finest := math.sqrt(0.5) * min(sides)):
            yield (
                f"{where}.target.low_pass {target.low_pass:g} leaves nothing out: images of {min(sides)} pixels have "
                f"up to {finest:.1f} cycles a side, along the diagonal; lower it"
            )


def _cell_problems(recipe: Any, patch: int) -> Iterator[str]:
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


__all__ = ["problems"]
