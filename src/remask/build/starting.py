"""Loads a student's initial weights from [backbone].weights or the tag of a timm name, and describes them."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from remask.backbones.makers import tag_of
from remask.backbones.tables import resize_state
from remask.errors import UserError, naming
from remask.files.paths import home_expanded
from remask.files.tensors import refuse_non_finite
from remask.heads import Decoder
from remask.interop import convmae, mae
from remask.interop.encoder_files import LAYOUT_OF
from remask.interop.encoders import open_encoder
from remask.interop.fetching import fetched
from remask.interop.loaded import Loaded, loaded_of, remember, resized
from remask.interop.mae import DECODER, HEAD, check
from remask.interop.state_dicts import read
from remask.method import Method
from remask.recipe import Recipe, load_recipe
from remask.recipe.formats import rules_of
from remask.recipe.networks import split_spec
from remask.recipe.used import DECODING
from remask.targets.cached import Cached
from remask.training.checkpoint import intact, load_weights
from remask.training.run_folder import RunFolder, is_task_run

DECODERS = {"mae": ("mae", "dmae"), "dmae": ("mae", "dmae"), "convmae": ("convmae",), "dmjd": ("convmae",)}
"""Kinds of files with a decoder → methods whose decoder has the same layout."""

POSITIONS = HEAD + "positions"


def start_from(method: Method, recipe: Recipe, rebuild: Callable[[Recipe], Any]) -> None:
    """Load [backbone].weights, or the weights of the tag in backbone.name; `loaded_of(backbone)` describes them.

    rebuild   recipe → backbone, for the run that is started from: its last checkpoint is read
    Position tables are resized, and all loaded weights are trained (MOMA). A decoder in the file is loaded too if the
    method has one of the same sizes. Raises UserError for weights that are unavailable or do not fit.
    """
    spec, backbone = recipe.backbone.weights, method.backbone
    if next(backbone.network.parameters()).device.type == "meta":
        return
    if spec is None:
        if tag_of(recipe.backbone.name):
            _named_weights(backbone, recipe)
        return
    with naming(["backbone.weights"]):
        spec, stated = split_spec(spec)
        source = _source(spec, stated, backbone, recipe, rebuild)
    if not hasattr(source, "built_for"):
        _same_network(source, backbone, spec)
        return
    if source.patch != backbone.patch:
        raise UserError(
            f"backbone.weights {spec} has patches of {source.patch[0]} px, the student of {backbone.patch[0]}; change "
            "one"
        )
    before, after = (source.built_for[0] * source.patch[0], source.built_for[1] * source.patch[1]), _size(recipe)
    state = resize_state(source.network.state_dict(), backbone.network, before, after, backbone.patch)
    check(state, backbone.network.state_dict(), spec)
    with torch.no_grad():
        backbone.network.load_state_dict(state)
    loaded = loaded_of(source) or Loaded(spec, len(state))
    lines = (*loaded.said, *resized(state, before, after, backbone.patch))
    remember(backbone, _with_decoder(loaded._replace(said=lines), method, recipe))


def loaded_lines(method: Method) -> list[str]:
    """Lines that describe the loaded weights of the backbone and of the targets, without repetition."""
    targets = [branch.target for branch in method.branches]
    networks = [method.backbone, *(target.target if isinstance(target, Cached) else target for target in targets)]
    return list(dict.fromkeys(loaded.line for network in networks if (loaded := loaded_of(network))))


def _same_network(source: Any, backbone: Any, spec: str) -> None:
    """Load the weights of a network whose tables cannot be resized, into one of the same sizes."""
    state, own = source.network.state_dict(), backbone.network.state_dict()
    if {key: value.shape for key, value in state.items()} != {key: value.shape for key, value in own.items()}:
        network = type(source.network).__name__
        raise UserError(
            f"backbone.weights {spec} is a {network}, whose weights fit the same network at the same image size alone: "
            "start from those, or from a ViT or a ConViT"
        )
    backbone.network.load_state_dict(state)
    remember(backbone, loaded_of(source) or Loaded(spec, len(state)))


def _source(
    spec: str, stated: Mapping[str, Any], backbone: Any, recipe: Recipe, rebuild: Callable[[Recipe], Any]
) -> Any:
    """The network whose weights the student takes, with the student's heads: weights do not show their number."""
    if stated.keys() - {"heads"}:
        raise UserError(f"backbone.weights {spec} takes heads and no more: pictures are normalised as [data] says")
    kind, _, name = spec.partition(":")
    folder = Path(home_expanded(name))
    if kind == "run" and (folder / "recipe.toml").is_file() and not is_task_run(folder):
        return _of_run(folder, rebuild)
    if kind in ("timm", "untrained", "run"):
        return open_encoder(spec, heads=stated.get("heads"))
    blocks = getattr(backbone.network, "blocks", None) or getattr(backbone.network, "blocks3", None)  # of a ConvViT
    own = getattr(getattr(blocks[0], "attn", None), "num_heads", None) if blocks is not None else None
    heads = stated.get("heads", own)
    if own is not None and heads != own:
        raise UserError(
            f"backbone.weights {spec} was said to have {heads} heads, and the student has {own}: set backbone.heads"
        )
    return open_encoder(spec, heads=heads, mean=recipe.data.mean, std=recipe.data.std)


def _of_run(folder: Path, rebuild: Callable[[Recipe], Any]) -> Any:
    """The backbone of a run of pre-training, with the weights of its last checkpoint."""
    run = RunFolder.open(folder)
    file = intact(run) / "model.safetensors"
    backbone = rebuild(load_recipe(folder / "recipe.toml", rules_of(run.format), environment={}, strict=False))
    load_weights(file, backbone, "backbone.")
    return backbone


def _named_weights(backbone: Any, recipe: Recipe) -> None:
    """Load timm's weights for the tag of backbone.name; timm resizes the tables and adapts the first layer."""
    name, (base, arguments) = recipe.backbone.name, backbone.origin
    cure = (
        f"give backbone.name={name.partition('.')[0]} to start from random weights, "
        "and with it backbone.weights=dino:FILE where the weights are at hand as a file"
    )
    spec = f"backbone.name {name}"
    network = fetched(lambda: timm.create_model(base, pretrained=True, **arguments), spec, cure)
    state = network.state_dict()
    check(state, backbone.network.state_dict(), spec)
    backbone.network.load_state_dict(state)
    cfg = network.pretrained_cfg
    before = int(cfg["input_size"][1]), int(cfg["input_size"][2])
    remember(backbone, Loaded(f"timm:{name}", len(state), said=resized(state, before, _size(recipe), backbone.patch)))


def _with_decoder(loaded: Loaded, method: Method, recipe: Recipe) -> Loaded:
    """Load the file's decoder if it fits; returns the record of the loading with a line about the decoder."""
    kind, _, name = loaded.spec.partition(":")
    if kind not in DECODERS or not any(key.startswith("decoder") for key in loaded.left_out):
        return loaded
    head, state = method.branches[0].head, read(Path(home_expanded(name)), LAYOUT_OF.get(kind, kind))
    layout = convmae if kind in ("convmae", "dmjd") else mae
    theirs = layout.from_official({key: tensor for key, tensor in state.items() if key.startswith(tuple(DECODER))})
    if recipe.method.name not in DECODERS[kind] or not isinstance(head, Decoder):
        other = f"method {recipe.method.name} has {'none' if recipe.method.name not in DECODING else 'another'}"
        return loaded._replace(said=(*loaded.said, f"its decoder was left out: {other}"))
    own = {HEAD + key: tensor for key, tensor in head.state_dict().items()}
    if why := next(_differences(theirs, own), None):
        return loaded._replace(said=(*loaded.said, f"its decoder was left out, for {why}"))
    refuse_non_finite(theirs, name)
    if theirs[POSITIONS].shape != own[POSITIONS].shape:
        theirs[POSITIONS] = own[POSITIONS]  # another grid: keep the method's sine-cosine positions
    head.load_state_dict({key.removeprefix(HEAD): tensor for key, tensor in theirs.items()})
    left_out = tuple(key for key in loaded.left_out if not key.startswith(tuple(DECODER)))
    line = f"its decoder too, {len(theirs)} tensors, with {recipe.method.decoder_heads} heads as the recipe says"
    return loaded._replace(said=(*loaded.said, line), left_out=left_out)


def _differences(theirs: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Iterator[str]:
    """Yields, in words, the differences between the file's decoder and ours that prevent loading it."""
    for key, tensor in own.items():
        name = key.removeprefix(HEAD)
        if key not in theirs:
            yield f"it has no {name}"
        elif key != POSITIONS and theirs[key].shape != tensor.shape:
            yield f"its {name} is {[*theirs[key].shape]} and the recipe's {[*tensor.shape]}"
    yield from (f"the recipe's has no {key.removeprefix(HEAD)}" for key in theirs if key not in own)


def _size(recipe: Recipe) -> tuple[int, int]:
    return recipe.data.image_size


__all__ = ["loaded_lines", "start_from"]
