"""docs/equation.md says where each symbol of the papers lives; every line of its map must be true."""

import ast
import re

import pytest

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


@pytest.mark.parametrize(("symbol", "name", "file"), ROWS, ids=[f"{symbol}-{name}" for symbol, name, _ in ROWS])
def test_the_name_stands_in_its_file(symbol: str, name: str, file: str) -> None:
    assert name in defined(ast.parse((ROOT / file).read_text(encoding="utf-8"))), f"{symbol}: no {name} in {file}"


@pytest.mark.parametrize("symbol", NEEDED)
def test_the_symbol_is_in_the_map(symbol: str) -> None:
    assert any(symbol in re.split(r", ", row[0]) for row in ROWS), f"{symbol} is missing in docs/equation.md"


def test_every_method_is_in_the_map() -> None:
    from remask.recipe import METHODS

    assert set(METHODS) <= {name for _, name, _ in ROWS}
