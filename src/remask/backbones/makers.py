"""Who makes a backbone, by how its name begins: one list for recipes and for exports that are opened again."""

from collections.abc import Callable, Mapping

from remask.backbones import Backbone
from remask.backbones.beit import create_beit
from remask.backbones.convvit import create_convvit
from remask.backbones.hierarchical import create_hierarchical
from remask.backbones.swin import create_swin
from remask.backbones.vit import create_vit

NETWORKS: Mapping[str, Callable[..., Backbone]] = {
    "convvit": create_convvit, "beit": create_beit, "swin_": create_swin, "vit_": create_vit, "deit": create_vit,
    "": create_hierarchical,
}  # fmt: skip
"""The rest return a map of features and can do no more."""


def maker(name: str) -> Callable[..., Backbone]:
    """The `create_…` function of a name."""
    return next(create for start, create in NETWORKS.items() if name.startswith(start))


__all__ = ["NETWORKS", "maker"]
