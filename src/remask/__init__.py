"""remask: efficient masked image modeling (DMJD, MAE and friends).

`import remask` loads nothing heavy; each name below is loaded when it is first used.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "backbones.makers": ("create_backbone",),
    "backbones.masked_input": ("Dropped", "PixelsReplaced", "TokensReplaced"),
    "build.pretraining": ("build_method",),
    "commands.run_handle": ("Run", "pretrain"),
    "downstream.export": ("load_export",),
    "errors": ("UserError",),
    "heads": ("CrossDecoder", "Decoder", "Linear", "ProjectionHead", "Projector", "TokenDecoder"),
    "images.loading.loader": ("Loader",),
    "images.sources.datasets": ("from_dataset",),
    "images.sources.opening": ("open_source",),
    "masking": ("Masking",),
    "method": ("Branch", "Method", "equation"),
    "methods": (
        "beit",
        "convmae",
        "crossmae",
        "data2vec",
        "dm",
        "dmae",
        "fastmim",
        "guided_by_attention",
        "guided_by_loss",
        "jd",
        "localmim",
        "mae",
        "maskfeat",
        "moma",
        "refiner",
        "simmim",
        "umae",
    ),
    "recipe": ("load_recipe",),
    "runs.opening": ("open_run",),
    "masking.green": ("Green",),
    "masking.scores": ("Blocks", "InverseBlocks", "random"),
    "targets": ("Hog", "Pixels"),
    "targets.moving_average": ("MovingAverage",),
    "targets.tokens": ("Codebook",),
    "training.optim": ("learning_rate", "parameter_groups"),
    "views": ("Views",),
}
"""The module of each public name."""
_MODULES = {name: module for module, names in _HOMES.items() for name in names}

__all__ = ["__version__", *sorted(_MODULES)]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'remask' has no attribute {name!r}")
    found = getattr(import_module(f"remask.{_MODULES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
