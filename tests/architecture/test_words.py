"""Identifiers use the field's words: those that once had private meanings here are not taken up again."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator

from tests.architecture.source import LIBRARY, Module, modules

INSTEAD = {
    "asked": "options, request, queries", "evolve": "with_", "fill": "mask_token, mask_pixel", "finer": "mask_unit",
    "fitted": "trained, padded", "grown": "resized", "held": "cached, kept", "learner": "ddp_model",
    "maker": "builder", "parts": "rows, sections, chunks, micro_batches, modules", "part": "the same, one of them",
    "rehearse": "dry_run", "rehearsed": "dry_run", "seen": "encoded, visible", "settle": "choose, fix",
    "twin": "untrained", "voters": "bank", "whole": "full_state, atomic_write",
    "look": "options", "mapped": "options",
}  # fmt: skip
"""Words of DESIGN's list, and what to say in their place."""

ALLOWED = {
    "held_out": "held-out data is what the field says",
    "masked_fill": "torch's", "fill_diagonal_": "torch's", "fill_": "torch's",
    "fill": "torchvision's name for the colour of what a warp uncovers",
    "HELD_OUT": "the same", "HeldOut": "the same", "cli_look": "the module cli/look.py",
}  # fmt: skip
"""Identifiers that may have such a word, and why."""


def identifiers(module: Module) -> Iterator[str]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name


def words(identifier: str) -> list[str]:
    return [word.lower() for word in re.findall(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+", identifier)]


def test_private_words_stay_out_of_identifiers() -> None:
    found: dict[str, set[str]] = defaultdict(set)
    for module in modules():
        for name in {*identifiers(module)} - ALLOWED.keys():
            if bad := INSTEAD.keys() & set(words(name)):
                found[f"{module.path.relative_to(LIBRARY)}: {name}"] |= bad
    assert not {place: [INSTEAD[word] for word in bad] for place, bad in found.items()}


def test_the_test_sees_a_private_word() -> None:
    assert words("_held_outMaker") == ["held", "out", "maker"]
