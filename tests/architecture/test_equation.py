"""docs/equation.md says where each symbol of the papers lives; every line of its map must be true."""

import ast
import re

from tests.architecture.source import ROOT

MAP = (ROOT / "docs" / "equation.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| ([^|]+) \| [^|]+ \| `([\w.]+)` \| `([\w/.]+)` \|$", MAP, re.MULTILINE)
NEEDED = ("Eq. (2)", "Eq. (3)", "Eq. (4)", "Eq. (5)", "Eq. (6)", "m_corr", "m_pred", "K", "λ", "β", "η", "ETE")


def defined(tree: ast.Module) -> set[str]:
    """Names a module defines at its top level, and Class.method."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


def test_the_map_is_read_whole() -> None:
    lines = [line for line in MAP.splitlines() if line.startswith("| ")]
    assert len(ROWS) == len(lines) - 1 >= 25  # all but the heading


def test_names_stand_in_their_files() -> None:
    names = {file: defined(ast.parse((ROOT / file).read_text(encoding="utf-8"))) for _, _, file in ROWS}
    assert not [row for row in ROWS if row[1] not in names[row[2]]]


def test_symbols_are_in_the_map() -> None:
    mapped = {symbol for row in ROWS for symbol in re.split(r", ", row[0])}
    assert not [symbol for symbol in NEEDED if symbol not in mapped]


def test_every_method_is_in_the_map() -> None:
    from remask.recipe import METHODS

    assert set(METHODS) <= {name for _, name, _ in ROWS}
