"""MoCo v3's ViT checkpoints → a backbone (Chen et al., arXiv 2104.02057). Every tensor is taken as it is stored.

official                                                                                ours
module.base_encoder.{cls_token,pos_embed,patch_embed.*,blocks.*,norm.*}                 network.(the same)
module.momentum_encoder.(the same)                                                      the same, where asked for
module.base_encoder.head.{0,1,3,4,6,7}.*  module.momentum_encoder.head.*                projector, left out
module.predictor.*                                                                      left out

Its position table is the transpose of MAE's, so that none is ever computed here.
"""

from collections.abc import Sequence

from torch import Tensor

from remask.backbones.vit import ViT
from remask.errors import UserError
from remask.interop import state_dicts
from remask.interop.beit import counterpart
from remask.interop.mae import DECODER, ENCODER, MEAN, STD, _backbone, check
from remask.interop.state_dicts import Source, State, label
from remask.types import Size

WRAPPED = "module."
BASE, MOMENTUM, PREDICTOR = "base_encoder.", "momentum_encoder.", "predictor."
KNOWN = {prefix: prefix for prefix in (BASE, MOMENTUM, PREDICTOR)}
PROJECTOR = tuple(f"head.{layer}." for layer in (0, 1, 3, 4, 6, 7))
STEM = "patch_embed.proj.0.weight"


def from_official(state: State, momentum: bool = False, where: str = "the state") -> dict[str, Tensor]:
    """A pre-training state -> the state dict of a ViT's network: of the base encoder, or of the momentum encoder.

    A linear probe's state, which has plain names, holds the base encoder alone. Raises UserError for unknown keys, an
    encoder that is absent, and a convolutional stem.
    """
    named = {key.removeprefix(WRAPPED): tensor for key, tensor in state.items()}
    if any(key.startswith(ENCODER) for key in named):  # linear-vit-*.pth.tar
        if any(key.startswith(tuple(DECODER)) for key in named):
            raise UserError(
                f"{where} holds an encoder under plain names, as MoCo v3's linear probes do, but a decoder beside it: "
                "open it as mae:FILE"
            )
        if momentum:
            raise UserError(
                f"{where} holds one encoder under plain names, as MoCo v3's linear probes do (linear-vit-*.pth.tar): "
                "give the pre-training checkpoint, vit-*.pth.tar"
            )
        named = {BASE + key: tensor for key, tensor in named.items()}
    for key in named:
        counterpart(key, KNOWN, "MoCo v3")
    prefix = MOMENTUM if momentum else BASE
    encoder = {key.removeprefix(prefix): tensor for key, tensor in named.items() if key.startswith(prefix)}
    if not encoder:
        raise UserError(f"{where} holds no {prefix}*: give a whole MoCo v3 checkpoint, or ask for its other encoder")
    if STEM in encoder:
        raise UserError(
            f"{where} holds a ViT with a convolutional stem (vit_conv_*), whose tokens overlap and cannot be dropped: "
            "give a checkpoint of MoCo v3's vit_small or vit_base"
        )
    return {key: tensor for key, tensor in encoder.items() if not key.startswith(PROJECTOR)}


def load_backbone(
    source: Source,
    *,
    heads: int,
    momentum: bool = False,
    size: Size | None = None,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> ViT:
    """An encoder of a pre-training checkpoint, strictly.

    heads      required, never guessed, since weights fit any number (ViT-S has 12 here, and 6 in timm; ViT-B 12)
    momentum   the momentum encoder in place of the base encoder
    size       pixels of the images it was trained on; needed only where they were not square
    # official: the patch projection is frozen, and so is the table; here the table alone, because a student that starts
    # from these weights trains its projection (MOMA).
    """
    where = label(source)
    state = from_official(read(source), momentum, where)
    backbone, _ = _backbone(state, where, heads, size, mean, std)
    check(state, backbone.network.state_dict(), where)
    backbone.network.load_state_dict(state)
    return backbone


def read(source: Source) -> State:
    """The tensors of a file or dict: those of both encoders and beside them, or a linear probe's under plain names."""
    state = state_dicts.read(source, "mocov3")
    return state if both(state) else state_dicts.read(source, "mae")


def both(state: State) -> bool:
    """Whether a state has pre-training's names, which tell the two encoders apart; a linear probe has plain names."""
    return any(key.startswith(tuple(KNOWN)) for key in state)


__all__ = ["both", "from_official", "load_backbone", "read"]
