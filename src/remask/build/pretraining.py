"""Recipe → method: one dict literal per kind; no other file knows both the names in a recipe and the objects."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from remask.backbones import Backbone, stem_patch
from remask.backbones.checkpointing import set_checkpointing
from remask.backbones.hierarchical import create_hierarchical, known
from remask.backbones.makers import creator_of
from remask.backbones.refusals import refuse_tokens
from remask.backbones.vit import create_vit
from remask.build.starting import start_from
from remask.build.teachers import build_teachers, map_teacher, student_layers, weight_of
from remask.errors import UserError, in_recipe, naming
from remask.heads import CrossDecoder, Decoder, TokenDecoder
from remask.images.levels import Levels, Scaling
from remask.masking import Counts, Masking, count_of
from remask.masking.green import Green
from remask.masking.scores import Blocks, InverseBlocks, Score, random
from remask.masking.unmasked import Unmasked
from remask.method import Method
from remask.methods import (
    beit,
    convmae,
    crossmae,
    data2vec,
    dm,
    dmae,
    fastmim,
    jd,
    localmim,
    mae,
    maskfeat,
    moma,
    refiner,
    simmim,
    umae,
)
from remask.methods.defaults import hog_cell
from remask.methods.guided import guided_by_attention, guided_by_loss
from remask.recipe import Recipe
from remask.recipe import Target as TargetRecipe
from remask.recipe.masking import MaskingSection
from remask.recipe.sections import DataSection, MethodSection
from remask.seeds import seeded
from remask.targets import Hog, Pixels, Target
from remask.targets.dalle import Dalle, load_dalle
from remask.targets.moving_average import MovingAverage
from remask.targets.tokens import Codebook, StoredIds, read_codebook
from remask.tokens import cell_of
from remask.types import END, INPUT, Size

PATTERNS: Mapping[str, Score] = {
    "random": random,
    "cells": random,
    "blocks": Blocks(),
    "inverse-blocks": InverseBlocks(),
    "green": Green(),
}
GUIDES: Mapping[str, Callable[[Method, MaskingSection], Method]] = {
    "attention": lambda method, masking: guided_by_attention(method, masking.probability, masking.hints),
    "loss": lambda method, masking: guided_by_loss(method, masking.share),
}
"""Patterns that are a plug-in, which brings the score and its guide."""
UNDECAYED, TABLES = ("simmim", "beit"), ("cls_token", "pos_embed", "relative_position_bias_table")
"""Methods, and ends of their parameter names, without weight decay. MAE, MaskFeat and ConvMAE decay these too."""


def build_backbone(recipe: Recipe) -> Backbone:
    """The network of [backbone], for the size, normalisation and pixel range of [data]."""
    section, data = recipe.backbone, recipe.data
    sizes = {
        "patch_size": section.patch_size,
        "embed_dim": section.width,
        "depth": section.depth,
        "num_heads": section.heads,
    }
    overrides = {name: value for name, value in sizes.items() if value is not None}
    create = creator_of(section.name)
    if create is create_vit:
        create = partial(create_vit, positions=section.positions, class_tokens=section.class_tokens)
    if create is create_hierarchical and recipe.method.name not in ("fastmim", "refiner") and known(section.name):
        refuse_tokens(section.name, recipe.method.name)
    keys = ("patch_size", "width", "depth", "heads", "class_tokens")
    sized = [f"backbone.{key}" for key in keys if getattr(section, key)]
    if overrides and create is create_hierarchical:
        raise UserError(f"{section.name} has its own sizes: leave out {' and '.join(sized)}, or choose a vit")
    with in_recipe(), naming(sized):
        network = create(
            section.name, data.image_size, data.mean, data.std, drop_path=section.drop_path, overrides=overrides
        )
    network.normalise.read_by(Levels.of(data.range))
    return network


def scaling_of(data: DataSection) -> Scaling | None:
    """Scaling and normalisation of images of more than 8 bits, by [data]; None for 8 bits."""
    levels = Levels.of(data.range)
    return Scaling(levels, data.mean, data.std) if levels else None


def build_masking(recipe: Recipe, patch: Size, stem: Size | None = None) -> tuple[Masking, Size]:
    """The masking of [masking] with one view (DM adds the others), and the pixels (h, w) of a cell of its grid.

    Patterns with a guide are random here, until `build_method` plugs them in.
    masking.cell_pixels must be a multiple of `patch`; with fastmim it may also divide `patch`, and with simmim be a
    multiple of `stem`. Raises UserError for other sizes.
    """
    section, side, method = recipe.masking, recipe.masking.cell_pixels, recipe.method.name
    if section.pattern == "none":
        return Unmasked(), patch
    count = section.count or count_of(method)
    score = Green(section.blob) if section.pattern == "green" else PATTERNS.get(section.pattern, random)
    masking = Masking(section.ratio, score, section.cell, count=count, predicted=section.predicted)
    if not side:
        return masking, patch
    if method == "fastmim" and patch[0] % side == patch[1] % side == 0:
        return masking, (side, side)
    cell, mask_unit = cell_of(side, patch, stem if stem and method == "simmim" else patch, named="masking.cell_pixels")
    return replace(masking, cell=cell), mask_unit


def build_target(section: TargetRecipe, recipe: Recipe, patch: Size, backbone: Backbone | None = None) -> Target:
    """The target of a recipe's section, for tokens of `patch` pixels. A codebook without a file has zero centroids.

    backbone   the student's, for the kind "average"
    """
    data = recipe.data
    cell = section.cell or hog_cell(patch)
    kinds: dict[str, Callable[[], Target]] = {
        "pixels": lambda: Pixels(patch, data.mean, data.std, section.norm == "patch", section.low_pass),
        "hog": lambda: Hog(patch, data.mean, data.std, section.flavour, cell, section.bins, section.norm),  # type: ignore[arg-type]
        "features": lambda: map_teacher(str(section.teacher), section.weights, section.norm, recipe, patch),
        "tokens": lambda: _tokenizer(section, recipe, patch),
        "average": lambda: MovingAverage(backbone, section.top, section.layers, section.norm, section.outputs),  # type: ignore[arg-type]
    }
    return kinds[section.kind]()


def _tokenizer(section: TargetRecipe, recipe: Recipe, patch: Size) -> Target:
    if section.file is None:
        features = build_target(codebook_features(section), recipe, patch)
        return Codebook(features, torch.zeros(section.vocabulary, features.width))
    if section.tokenizer == "dalle":
        return Dalle(load_dalle(Path(section.file)), patch, recipe.data.mean, recipe.data.std)
    if section.tokenizer == "stored":
        return StoredIds(Path(section.file), patch, section.vocabulary)
    centres, about = read_codebook(Path(section.file))
    unknown = UserError(f"{section.file} does not say which features its words are of: fit it again")
    try:
        clustered = TargetRecipe.model_validate(about.get("target"))
    except ValidationError:
        raise unknown from None
    if clustered.kind not in ("pixels", "hog", "features"):
        raise unknown
    return Codebook(build_target(clustered, recipe, patch), centres)


def codebook_features(section: TargetRecipe) -> TargetRecipe:
    """The target whose features k-means clusters, for a codebook without a file."""
    if section.over != "features":
        return TargetRecipe.model_validate(section.over)
    return TargetRecipe.model_validate({"kind": "features", "teacher": section.teacher, "weights": section.weights})


def build_method(recipe: Recipe, start: bool = True) -> Method:
    """The recipe's method, then guided masks, DM, JD and U-MAE applied to it; branches with equal targets share one.

    start   load the initial weights that the recipe names
    Raises UserError for settings that do not fit together.
    """
    with in_recipe(), seeded(recipe.seed, "weights"):
        backbone, section = build_backbone(recipe), recipe.method
        masking, mask_unit = build_masking(recipe, backbone.patch, stem_patch(backbone))
        with naming(section.target.opened("method.target")):
            target = build_target(section.target, recipe, mask_unit, backbone)
        size = recipe.data.image_size
        decoder = _decoder(section)
        bases: dict[str, Callable[[], Method]] = {
            "mae": lambda: mae(backbone, masking, target, size, **decoder),
            "crossmae": lambda: crossmae(backbone, masking, target, size, **decoder),
            "simmim": lambda: simmim(backbone, masking, target, section.initial, mask_unit),
            "maskfeat": lambda: maskfeat(backbone, masking, target, section.initial),
            "beit": lambda: beit(backbone, masking, target, section.initial),
            "convmae": lambda: convmae(backbone, masking, target, size, **decoder),
            "fastmim": lambda: fastmim(backbone, masking, target, mask_unit, **decoder),
            "dmae": lambda: _dmae(recipe, backbone, masking, target, decoder),
            "data2vec": lambda: data2vec(backbone, masking, target, **decoder, class_weight=section.class_weight),
            "localmim": lambda: _localmim(recipe, backbone, masking, decoder),
            "moma": lambda: _moma(recipe, backbone, masking),
            "refiner": lambda: _refiner(recipe, backbone),
        }
        method = bases[section.name]()
        if start:
            start_from(method, recipe, build_backbone)
        if plug_in := GUIDES.get(recipe.masking.pattern):
            method = plug_in(method, recipe.masking)
        if recipe.dm:
            method = dm(method, recipe.dm.views, None if recipe.dm.independent else recipe.dm.prediction)
        if recipe.jd:
            shared = recipe.jd.target == section.target
            with naming(recipe.jd.target.opened("jd.target")):
                visible = target if shared else build_target(recipe.jd.target, recipe, mask_unit, backbone)
            method = jd(method, visible, recipe.jd.width, recipe.jd.beta, recipe.jd.weight, recipe.jd.layers)
        if recipe.uniformity:
            method = umae(method, recipe.uniformity.weight, recipe.uniformity.of)
        if method.average:
            method.average.decay, method.average.warmup = recipe.average.decay, recipe.average.warmup
        method.restart_average()
        counts(method, recipe)
    return method


def _decoder(section: MethodSection) -> dict[str, Any]:
    """The decoder's arguments in the method's function."""
    sizes = {
        "width": section.decoder_width, "depth": section.decoder_depth, "heads": section.decoder_heads,
        "mlp_ratio": section.decoder_mlp_ratio,
    }  # fmt: skip
    if section.name == "data2vec":
        return {"width": section.decoder_width, "depth": section.decoder_depth, "kernel": section.decoder_kernel}
    if section.name == "fastmim":
        return sizes
    names = {"input": INPUT, "end": END}
    given = section.decoder_layers
    layers = None if given is None else [names[i] if isinstance(i, str) else i for i in given]
    chosen = {} if section.name in ("crossmae", "localmim") else {"decoder": section.decoder}
    return sizes | {"layers": layers} | chosen


def _localmim(recipe: Recipe, backbone: Backbone, masking: Masking, decoder: dict[str, Any]) -> Method:
    section, target = recipe.method, recipe.method.target
    hog: dict[str, Any] = {"flavour": target.flavour, "norm": target.norm, "bins": target.bins}
    return localmim(backbone, masking, recipe.data.image_size, cells=section.cells, **hog, **decoder)


def _dmae(recipe: Recipe, backbone: Backbone, masking: Masking, target: Target, decoder: dict[str, Any]) -> Method:
    teachers, distill = build_teachers(recipe, backbone.patch), recipe.distill
    assert distill
    layers, size = student_layers(recipe, backbone), recipe.data.image_size
    decoder["decoder_layers"] = decoder.pop("layers")
    method = dmae(backbone, masking, target, teachers, size, layers, head=distill.head, **decoder)
    for branch, teacher in zip(method.branches[1:], distill.teachers, strict=True):
        branch.weight = weight_of(teacher, 1.0)
    return method


def _moma(recipe: Recipe, backbone: Backbone, masking: Masking) -> Method:
    teachers, distill = build_teachers(recipe, backbone.patch), recipe.distill
    assert distill
    weights = [weight_of(teacher, 1 / len(teachers)) for teacher in distill.teachers]
    layer = distill.layers[0] if distill.layers else -1
    return moma(
        backbone, masking, teachers, weights=weights, learned=distill.learned, head=distill.head, beta=distill.beta,
        layer=layer, jitter=distill.jitter,
    )  # fmt: skip


def _refiner(recipe: Recipe, backbone: Backbone) -> Method:
    section = recipe.refine
    return refiner(
        backbone, section.blocks, section.layers, width=section.width, hidden=section.hidden,
        predictor=section.predictor, pool=section.pool, queue=section.queue,
        neighbours=section.neighbours, temperature=section.temperature,
        frozen=section.frozen, jitter=section.jitter, pretrained=recipe.backbone.weights is not None,
    )  # fmt: skip


def counts(method: Method, recipe: Recipe) -> Counts:
    """Numbers of masked and predicted tokens on the recipe's grid. Raises UserError if the masking does not fit it."""
    return method.masking.counts(method.grid(recipe.data.image_size))


def checkpoint_blocks(method: Method) -> None:
    """Turn on activation checkpointing for the blocks of the backbone and of the decoders."""
    set_checkpointing(method.backbone, key="runtime.checkpointing")
    for module in method.modules():
        if isinstance(module, CrossDecoder | Decoder | TokenDecoder):
            module.checkpointing = True


def parameters(module: nn.Module) -> int:
    """Number of parameters, frozen ones included."""
    return sum(parameter.numel() for parameter in module.parameters())
