"""The verbs, for scripts as for the command line: each takes plain values and leaves its result in the run folder.

One verb a file, imported when it is first used, so that a mistake on the command line is answered before torch loads.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "pretrain": "pretraining", "refine": "refining", "resume": "resuming", "export": "exporting",
    "reconstruct": "reconstruction", "report": "reporting", "verify": "verifying",
    "codebook": "codebooks", "plan": "planning",
    "finetune": "finetuning", "segment": "segmentation", "detect": "detection", "evaluate": "testing",
    "probe": "probing", "embed": "embedding", "tsne": "projection", "attention": "attention_maps",
    "data_check": "surveying", "data_pack": "packing",
    "study_run": "studying", "study_report": "study_page",
    "recipes": "recipe_list", "show": "recipe_page", "doctor": "diagnosis",
    "ModelOptions": "subjects", "PlanOptions": "planning", "ProbeOptions": "probing", "TsneOptions": "projection",
    "parse_form": "forms", "probe_table": "probe_tables",
}  # fmt: skip
"""The file of each command, of its options, and of what a script needs besides."""

_FORMER = {"Asked": "ProbeOptions", "Look": "ModelOptions", "Mapped": "TsneOptions"}
"""Names of earlier versions, which scripts may still use."""

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    name = _FORMER.get(name, name)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"remask.commands.{_HOMES[name]}"), name)
