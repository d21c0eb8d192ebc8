"""DMAE's official checkpoints ⇄ ours (Bai et al., arXiv 2208.12256): MAE's layout, and a head for each aligned pair.

official                                                              ours
MAE's keys                                                            as interop.mae says
aligned_feature_projection_heads.n.{weight,bias}          (Linear)    branches.(1+n).head.project.{weight,bias}
aligned_feature_projection_heads.n.{fc1,fc2}.{weight,bias}   (Mlp)    branches.(1+n).head.project.{fc1,fc2}.(the same)

The teacher is in no checkpoint. Fine-tuning ignores decoder and heads, and so does `load_backbone`.
"""

import re
from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from remask.backbones.vit import ViT
from remask.errors import UserError
from remask.interop import mae
from remask.interop.beit import own_state
from remask.interop.mae import DECODER, MEAN, OFFICIAL, POSITIONS, STD, _backbone, check, renamed, sizes
from remask.interop.state_dicts import Source, State, label, read
from remask.masking import Masking
from remask.method import Method
from remask.methods.dmae import dmae
from remask.targets import Pixels, Target
from remask.types import Size

HEADS = "aligned_feature_projection_heads."
SECTION = r"((?:fc[12]\.)?(?:weight|bias))"
THEIRS = re.compile(rf"{re.escape(HEADS)}(\d+)\.{SECTION}")
OURS = re.compile(rf"branches\.([1-9]\d*)\.head\.project\.{SECTION}")


def from_official(state: State) -> dict[str, Tensor]:
    """A pre-training state, or a part of one -> the state dict of `methods.dmae`. Raises UserError for unknown keys."""
    heads = {key: match for key in state if (match := THEIRS.fullmatch(key))}
    rest = {key: tensor for key, tensor in state.items() if key not in heads}
    named = {f"branches.{1 + int(match[1])}.head.project.{match[2]}": state[key] for key, match in heads.items()}
    return {**mae.from_official(rest), **named}


def to_official(method: Method) -> dict[str, Tensor]:
    """The inverse of `from_official`, bit for bit. Raises UserError for tensors without a place in the layout."""
    if method.backbone.prefix != 1:
        raise UserError(f"DMAE's layout has one class token, the backbone {method.backbone.prefix} prefix tokens")
    official = {}
    for name, tensor in own_state(method).items():
        if match := OURS.fullmatch(name):
            official[f"{HEADS}{int(match[1]) - 1}.{match[2]}"] = tensor
        else:
            key = renamed(name, OFFICIAL)
            official[key] = F.pad(tensor, (0, 0, 1, 0))[None] if key == POSITIONS else tensor
    return official


def load(
    source: Source,
    teachers: Sequence[Target],
    *,
    layers: Sequence[int],
    heads: int,
    decoder_heads: int,
    size: Size | None = None,
    ratio: float = 0.75,
    per_patch: bool = False,
    distance: Literal["l1", "squared"] = "l1",
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> Method:
    """An official pre-training checkpoint, strictly, as a method that goes on training.

    teachers, layers   as `methods.dmae` has them: the checkpoint holds a head for each pair, and nothing else of them
    heads, decoder_heads, size, ratio   as `interop.mae.load` has them
    per_patch          normalised pixels (official: raw ones, although MAE's own are normalised)
    """
    where, state = label(source), read(source, "mae", classifiers=True)
    if not any(key.startswith("decoder_") for key in state):
        raise UserError(f"{where} holds no decoder: load its backbone with load_backbone")
    backbone, size = _backbone(state, where, heads, size, mean, std)
    width, depth, mlp_ratio = sizes(state, where, "decoder_blocks.", decoder_heads)
    method = dmae(
        backbone, Masking(ratio), Pixels(backbone.patch, mean, std, per_patch), teachers, size, layers,
        head="mlp" if f"{HEADS}0.fc1.weight" in state else "linear", distance=distance,
        width=width, depth=depth, heads=decoder_heads, mlp_ratio=mlp_ratio,
    )  # fmt: skip
    check(state, to_official(method), where)
    method.load_state_dict({**method.state_dict(), **from_official(state)})
    return method


def load_backbone(
    source: Source, *, heads: int, size: Size | None = None, mean: Sequence[float] = MEAN, std: Sequence[float] = STD
) -> ViT:
    """The encoder of a pre-training checkpoint, strictly. Arguments as in `interop.mae.load`."""
    where, state = label(source), encoder_of(read(source))
    backbone, _ = _backbone(state, where, heads, size, mean, std)
    check(state, backbone.network.state_dict(), where)
    backbone.network.load_state_dict(state)
    return backbone


def encoder_of(state: State) -> dict[str, Tensor]:
    """A state without the tensors that only pre-training needs: decoder and alignment heads."""
    return {key: tensor for key, tensor in state.items() if not key.startswith((*DECODER, HEADS))}


__all__ = ["encoder_of", "from_official", "load", "load_backbone", "to_official"]
