"""Names in files of weights: entries that hold them, prefixes of wrappers, classifiers, and those of each layout."""

import re
from collections.abc import Mapping
from typing import NamedTuple

ENTRIES = (
    "model", "state_dict", "model_state", "model_state_dict", "module", "net", "network", "weights", "params", "state",
    "student", "encoder", "backbone",
)  # fmt: skip
"""Names of entries that hold weights, the likeliest first; entries of other names are searched as well."""

AVERAGES = frozenset((
    "ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema", "model_ema_state_dict", "ema_model_state_dict",
    "model_state_ema", "ema_state", "module_ema", "ema_module", "ema_encoder", "encoder_ema", "shadow", "teacher",
    "teacher_model", "teacher_encoder", "teacher_backbone", "target_encoder", "averaged_model", "swa_model",
))  # fmt: skip
"""Names, of entries and of prefixes, of a moving average of the weights."""

WRAPPERS = frozenset((
    "module", "model", "encoder", "backbone", "_orig_mod", "student", "net", "network", "trunk", "vit", "visual",
    "online_encoder",
))  # fmt: skip
"""Words of prefixes that wrappers add; a network under another prefix is taken where it is the only one."""

CLASSIFIERS = re.compile(
    r"(?:head|heads|head_dist|fc|fc_norm|classifier|cls_head|classification_head|linear|linear_head|pre_logits)\."
)
"""Names of the layers that fine-tuning and linear probes put behind an encoder."""

NO_NETWORK = ("optimizer", "optimizers", "optimizer_states", "optim", "scaler", "loss_scaler", "lr_scheduler")
MOCO = frozenset(("base_encoder", "momentum_encoder"))
"""MoCo v3's two encoders, of which its specifications name one: no wrappers, and in no other layout."""

COUNTERS = ("n_averaged", "num_updates", "decay", "step", "epoch")
"""Tensors that averages and trainers store beside a network."""


class Layout(NamedTuple):
    """The names in files of one kind.

    anchors   names of tensors, of which each network has one, without any prefix
    native    beginning of a name that only the encoder has -> the prefix of official files for the encoder
    average   whether a moving average is preferred; False where the specification itself names the copy
    names     all names of the network, where they are known: the prefix is the one under which most of them stand
    """

    anchors: tuple[str, ...]
    native: Mapping[str, str] = {}
    average: bool = True
    names: frozenset[str] = frozenset()


PATCHES = ("patch_embed.proj.weight",)
CONVVIT = Layout(("patch_embed1.proj.weight",))
LAYOUTS: Mapping[str, Layout] = {
    "mae": Layout(PATCHES),
    "mocov3": Layout(
        (
            "base_encoder.patch_embed.proj.weight", "momentum_encoder.patch_embed.proj.weight",
            "base_encoder.patch_embed.proj.0.weight", "momentum_encoder.patch_embed.proj.0.weight",
        ),
        average=False,
    ),
    "convmae": CONVVIT,
    "beit": Layout(PATCHES),
    "simmim": Layout(PATCHES, {"": "encoder."}),
    "maskfeat": Layout((*PATCHES, "patch_embed.projection.weight"), {"patch_embed.projection.": "backbone."}),
    "fastmim": Layout(
        (*PATCHES, "patch_embed1.proj.weight", "stem_conv1.weight"),
        {"layers.": "encoder.", "patch_embed1.": "encoder.", "stem_conv1.": "encoder."},
    ),
}  # fmt: skip

__all__ = [
    "AVERAGES", "CLASSIFIERS", "COUNTERS", "ENTRIES", "LAYOUTS", "MOCO", "NO_NETWORK", "WRAPPERS", "Layout",
]  # fmt: skip
