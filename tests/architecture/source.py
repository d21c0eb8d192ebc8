"""The library's source as syntax trees, for the tests that read it instead of running it."""

import ast
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "src" / "remask"


@dataclass(frozen=True)
class Edge:
    """One import of a library module by another: `name` is what was taken from it, if anything was named."""

    importer: str
    imported: str
    name: str | None
    line: int
    inside_function: bool


@dataclass(frozen=True)
class Module:
    name: str
    path: Path

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, filename=str(self.path))

    @property
    def part(self) -> str:
        """Its place in the import order: `backbones` for `remask.backbones.vit`, `remask` for the package itself."""
        pieces = self.name.split(".")
        return pieces[1] if len(pieces) > 1 else pieces[0]

    @property
    def where(self) -> str:
        return str(self.path.relative_to(ROOT))

    def edges(self, known: frozenset[str]) -> list[Edge]:
        """Every import of another library module, at any depth and under TYPE_CHECKING too."""
        return list(_edges(self, known))

    def imports(self, known: frozenset[str]) -> list[Edge]:
        """`edges`, looked for."""
        lazy = {
            id(node)
            for function in ast.walk(self.tree)
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
            for node in ast.walk(function)
        }
        found: list[Edge] = []
        for node in ast.walk(self.tree):
            targets: list[tuple[str, str | None]]
            if isinstance(node, ast.Import):
                targets = [(alias.name, None) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                source = self._absolute(node)
                # `from remask import tokens` imports a module; `from remask.tokens import take` a name out of one.
                targets = [
                    (f"{source}.{alias.name}", None) if f"{source}.{alias.name}" in known else (source, alias.name)
                    for alias in node.names
                ]
            else:
                continue
            found += [
                Edge(self.name, target, name, node.lineno, id(node) in lazy)
                for target, name in targets
                if target in known or target.split(".")[0] == "remask"
            ]
        return found

    def _absolute(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        package = self.name.split(".") if self.path.name == "__init__.py" else self.name.split(".")[:-1]
        base = package[: len(package) - node.level + 1]
        return ".".join([*base, node.module] if node.module else base)


@cache
def _edges(module: Module, known: frozenset[str]) -> tuple[Edge, ...]:
    """Several tests ask for the imports of all modules; a module is walked through once."""
    return tuple(module.imports(known))


@cache
def _modules(library: Path) -> tuple[Module, ...]:
    """The same objects for every test, so that a file is read and parsed once."""
    found = []
    for path in sorted(library.rglob("*.py")):
        pieces = ["remask", *path.relative_to(library).with_suffix("").parts]
        found.append(Module(".".join(pieces[:-1] if pieces[-1] == "__init__" else pieces), path))
    return tuple(found)


def modules(library: Path = LIBRARY) -> list[Module]:
    """Every module of the library, in the order of its name."""
    return list(_modules(library))


def functions(module: Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method of a module, nested ones too."""
    return [node for node in ast.walk(module.tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
