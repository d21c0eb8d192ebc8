"""Data flows one way, imports flow the other: each part imports only what stands to its left."""

import resource
import subprocess
import sys

from tests.architecture.source import ROOT, Edge, Module, modules

ORDER: tuple[frozenset[str], ...] = tuple(
    frozenset(step.split())
    for step in (
        "files.escaping",
        "errors",
        "files",
        "types seeds distances color_jitter",
        "tokens recipe images",
        "training",
        "views",
        "masking backbones heads targets",
        "method",
        "methods",
        "interop",
        "evaluation",
        "report",
        "build",
        "downstream",
        "tasks planning",
        "runs",
        "study",
        "commands",
        "cli",
        "__main__",
    )
)
RANK = {part: rank for rank, step in enumerate(ORDER) for part in step}
MODULES = modules()
KNOWN = frozenset(module.name for module in MODULES)
HEAVY = ("torchvision", "timm", "matplotlib", "sklearn")


def edges_of(module: Module) -> list[Edge]:
    return module.edges(KNOWN)


def part(name: str) -> str:
    """A room of the package, or a module of one that has a place of its own in the order."""
    pieces = name.split(".")
    own = ".".join(pieces[1:3])
    return own if own in RANK else pieces[1] if len(pieces) > 1 else pieces[0]


def misplaced(edge: Edge) -> str | None:
    """Why the import is against the order, or None."""
    above, below = part(edge.importer), part(edge.imported)
    if above == below or above == "remask":  # within one part, or the package's own front door
        return None
    where = f"{edge.importer}, line {edge.line}"
    if below == "remask":
        return None if edge.name == "__version__" else f"{where}: imports the front door, not the module behind it"
    for stranger in {above, below} - RANK.keys():
        return f"{where}: {stranger} has no place in the order"
    if RANK[below] >= RANK[above]:
        return f"{where}: {above} must not import {below}"
    return None


def imported_by(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after the statement."""
    code = f"import sys\n{statement}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_there_is_something_to_check() -> None:
    assert len(MODULES) >= 15
    assert sum(len(edges_of(module)) for module in MODULES) >= 10


def test_every_part_has_its_place_in_the_order() -> None:
    strangers = {module.part for module in MODULES} - RANK.keys() - {"remask"}
    assert not strangers, f"not in DESIGN.md's import order: {sorted(strangers)}"


def test_modules_import_only_what_stands_to_their_left() -> None:
    edges = [edge for module in MODULES for edge in edges_of(module)]
    assert not [fault for edge in edges if (fault := misplaced(edge))]


def test_modules_import_only_what_exists() -> None:
    edges = [(module.name, edge) for module in MODULES for edge in edges_of(module)]
    assert not [f"{name}:{edge.line}: {edge.imported}" for name, edge in edges if edge.imported not in KNOWN]


def test_few_names_stand_at_the_top() -> None:
    """28 and the front door: a subject is found in one guess. tasks/ is an address that exported scripts import."""
    top = {path.stem for path in (ROOT / "src" / "remask").iterdir() if not path.name.startswith("__")}
    assert len(top - {"py", "tasks"}) <= 28, sorted(top)


def test_the_check_sees_a_wrong_import() -> None:
    assert misplaced(Edge("remask.heads", "remask.targets.hog", "Hog", 1, True))
    assert misplaced(Edge("remask.views", "remask.masking", None, 1, False))
    assert misplaced(Edge("remask.views", "remask", "Masking", 1, False))
    assert not misplaced(Edge("remask.method", "remask.views", "Views", 1, False))


def test_no_cycle() -> None:
    """Imports inside functions count too: one that hides a cycle is a cycle."""
    graph = {module.name: {edge.imported for edge in edges_of(module)} & KNOWN for module in MODULES}
    remaining = {name: needs - {name} for name, needs in graph.items()}
    while free := {name for name, needs in remaining.items() if not needs}:
        remaining = {name: needs - free for name, needs in remaining.items() if name not in free}
    assert not remaining, f"in a cycle, or upon one: {sorted(remaining)}"


def test_no_drawer_for_odds_and_ends() -> None:
    drawers = {"utils", "util", "misc", "helpers", "common"}
    assert not [module.where for module in MODULES if module.name.split(".")[-1] in drawers]


def test_import_remask_is_light() -> None:
    assert not imported_by("import remask") & set(HEAVY)


def test_import_cli_is_light() -> None:
    """`remask --help` prints before torch has been looked at."""
    assert not imported_by("import remask.cli.main") & {"torch", *HEAVY}


def test_help_answers_within_a_second() -> None:
    """The one test of a time: of the processor, the least of three, where .2 s is usual."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "remask", "--help"], check=True, capture_output=True, timeout=120)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 1
