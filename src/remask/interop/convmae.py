"""ConvMAE's official checkpoints ⇄ ours (Gao et al., arXiv 2205.03892). Every tensor is taken as it is stored.

official                                                     ours
patch_embed{1,2,3,4}.*  pos_embed  blocks{1,2,3}.*  norm.*   backbone.network.(the same)
stage1_output_decode.*  stage2_output_decode.*               backbone.fusions.{0,1}.*
mask_token  decoder_*                                        branches.0.head.*, as MAE's, without a class row
"""

import math
from collections.abc import Sequence

from torch import Tensor

from remask.backbones.convvit import ConvViT, create_convvit
from remask.backbones.convvit_network import ConvViTNetwork
from remask.errors import UserError
from remask.interop.mae import (
    DECODER,
    HEAD,
    MEAN,
    NETWORK,
    POSITIONS,
    STD,
    check,
    renamed,
    resize_positions,
    shape,
    sizes,
)
from remask.interop.state_dicts import Source, State, label, read
from remask.masking import Masking
from remask.method import Method
from remask.methods.convmae import convmae
from remask.targets import Pixels
from remask.types import Size

ENCODER = ("patch_embed", "pos_embed", "blocks1.", "blocks2.", "blocks3.", "norm.")
FUSION = {"stage1_output_decode.": "backbone.fusions.0.", "stage2_output_decode.": "backbone.fusions.1."}
OURS = {**{key: NETWORK + key for key in ENCODER}, **FUSION, **{key: HEAD + name for key, name in DECODER.items()}}
OFFICIAL = {name: key for key, name in OURS.items()}
BRANCHES = (*DECODER, "proj_embed.", "predictor.")  # of pre-training, DMJD's too: a backbone is loaded without them


def from_official(state: State) -> dict[str, Tensor]:
    """A pre-training state, or a part of one -> the state dict of `methods.convmae`. UserError for unknown keys."""
    return {renamed(key, OURS): tensor[0] if key == POSITIONS else tensor for key, tensor in state.items()}


def to_official(method: Method) -> dict[str, Tensor]:
    """The inverse of `from_official`, bit for bit. Raises UserError for tensors without a place in the layout."""
    state = {renamed(name, OFFICIAL): tensor for name, tensor in method.state_dict().items()}
    return {key: tensor[None] if key == POSITIONS else tensor for key, tensor in state.items()}


def load(
    source: Source,
    *,
    heads: int,
    decoder_heads: int,
    size: Size | None = None,
    ratio: float = 0.75,
    per_patch: bool = True,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> Method:
    """An official pre-training checkpoint, strictly, as a method that goes on training.

    heads, decoder_heads   required, never guessed, since weights fit any number (ConvMAE-B 12, decoder 16)
    size                   pixels of the images it was trained on; needed only where they were not square
    ratio, per_patch       masking ratio and normalised pixels, which the weights do not tell
    """
    where, state = label(source), read(source, "convmae", classifiers=True)
    if not any(key.startswith("decoder_") for key in state):
        raise UserError(f"{where} holds no decoder: load its backbone with load_backbone")
    backbone, size = build(state, where, heads, size, mean, std)
    width, depth, mlp_ratio = sizes(state, where, "decoder_blocks.", decoder_heads)
    target = Pixels(backbone.patch, mean, std, per_patch)
    method = convmae(backbone, Masking(ratio), target, size, width, depth, decoder_heads, mlp_ratio)
    check(state, to_official(method), where)
    method.load_state_dict(from_official(state))
    return method


def load_backbone(
    source: Source, *, heads: int, size: Size | None = None, mean: Sequence[float] = MEAN, std: Sequence[float] = STD
) -> ConvViT:
    """The encoder of a pre-training checkpoint, ConvMAE's or DMJD's, strictly. Arguments as in `load`.

    Where the state lacks the two fusion convolutions, which only masked views need, those start untrained.
    """
    where, state = label(source), read(source, "convmae")
    backbone, _ = build(state, where, heads, size, mean, std)
    encoder = {key: tensor for key, tensor in state.items() if not key.startswith(BRANCHES)}
    expected = {renamed(f"backbone.{key}", OFFICIAL): tensor for key, tensor in backbone.state_dict().items()}
    if not any(key.startswith(tuple(FUSION)) for key in encoder):
        expected = {**backbone.network.state_dict()}
    check(encoder, expected, where)
    ours = {name.removeprefix("backbone."): tensor for name, tensor in from_official(encoder).items()}
    backbone.load_state_dict(ours, strict=False)  # `check` has refused any other difference
    return backbone


def classifier_state(state: State, network: ConvViTNetwork) -> dict[str, Tensor]:
    """The tensors of an official pre-training state that fine-tuning loads into a classifier: the trunk, no fusion.

    The position table is resized to the network's grid. A network that averages its tokens has a new `fc_norm` and no
    `norm`, which is left out; the head is new. Load the result with strict=False.
    """
    own = network.state_dict()
    tensors = {key: state[key] for key in state if key in own and not key.startswith("head.")}
    return {**tensors, "pos_embed": resize_positions(state["pos_embed"], network.built_for, prefix=0)}


def build(
    state: State, where: str, heads: int, size: Size | None, mean: Sequence[float], std: Sequence[float]
) -> tuple[ConvViT, Size]:
    """A backbone of the state's sizes, its weights not yet loaded, and the image size of its position table."""
    kernels = [shape(state, f"patch_embed{stage}.proj.weight", where) for stage in (1, 2, 3)]
    strides, patch = [kernel[-1] for kernel in kernels], math.prod(kernel[-1] for kernel in kernels)
    hidden = [shape(state, f"blocks{stage}.0.mlp.fc1.weight", where) for stage in (1, 2)]
    depths = [len({key.split(".")[1] for key in state if key.startswith(f"blocks{stage}.")}) for stage in (1, 2)]
    _, depth, mlp_ratio = sizes(state, where, "blocks3.", heads)
    tokens = shape(state, "pos_embed", where)[1]
    side = math.isqrt(tokens)
    if size is None and side * side != tokens:
        raise UserError(f"{where} has positions for {tokens} tokens, which are no square: give the image size")
    size = size or (side * patch, side * patch)
    overrides = {
        "strides": strides,
        "dims": [kernel[0] for kernel in kernels],
        "depths": [*depths, depth],
        "num_heads": heads,
        "mlp_ratios": [*(out / width for out, width, *_ in hidden), mlp_ratio],
    }
    return create_convvit("convvit_base", size, mean, std, overrides=overrides), size


__all__ = ["build", "classifier_state", "from_official", "load", "load_backbone", "to_official"]
