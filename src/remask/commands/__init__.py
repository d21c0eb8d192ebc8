"""The verbs, for scripts as for the command line: each takes plain values and leaves its result in the run folder.

One verb a file, imported when it is first used, so that a mistake on the command line is answered before torch loads.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from remask.commands.data import data_check, data_pack, parse_form
    from remask.commands.downstream import detect, evaluate, finetune, segment
    from remask.commands.exporting import export
    from remask.commands.looking import Mapped, attention, embed, tsne
    from remask.commands.pretraining import pretrain, reconstruct
    from remask.commands.probing import Asked, probe, probe_table
    from remask.commands.reporting import report
    from remask.commands.resuming import resume
    from remask.commands.subject import Look

_HOMES = {
    "data": ("data_check", "data_pack", "parse_form"),
    "downstream": ("detect", "evaluate", "finetune", "segment"),
    "exporting": ("export",),
    "looking": ("Mapped", "attention", "embed", "tsne"),
    "pretraining": ("pretrain", "reconstruct"),
    "probing": ("Asked", "probe", "probe_table"),
    "reporting": ("report",),
    "resuming": ("resume",),
    "subject": ("Look",),
}
"""Where each name is defined."""


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"remask.commands.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Asked", "Look", "Mapped", "attention", "data_check", "data_pack", "detect", "embed", "evaluate", "export",
    "finetune", "parse_form", "pretrain", "probe", "probe_table", "reconstruct", "report", "resume", "segment", "tsne",
]  # fmt: skip
