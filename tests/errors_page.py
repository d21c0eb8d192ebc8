"""docs/errors.md from the code: `make errors` writes it, and tests/architecture/test_errors.py wants it current."""

import ast
import os
import sys
from collections import defaultdict
from collections.abc import Iterator

from remask.files.system_errors import CURES, SHARED_MEMORY
from remask.images.loading.workers import _BY_SIGNAL
from tests.architecture.source import ROOT, modules

PAGE = ROOT / "docs" / "errors.md"
RAISED = ("UserError", "MachineError", "BadImage", "fail")
"""What is called with a message: the errors that end a command, and what makes a picture unusable."""

HEAD = """\
# Errors

Each error is one line on stderr: what is wrong, where, and what to do. `make errors` writes this page from the code,
and a test compares them; `…` stands for what differs each time.

| exit code | meaning |
|--:|---|
| 0 | done |
| 1 | a fault of remask: the line says "unexpected", and `--debug` shows where |
| 2 | a mistake, or a fault of the machine, that the line explains |
| 75 | SIGUSR1, the warning of a time limit: what a training had done is saved, and the line says how to go on |
| 130 | interrupted by Ctrl-C, or a training by SIGTERM; the line says what is saved and how to go on |
| 143 | SIGTERM outside a training |

A training that ends by a fault of the machine keeps its last checkpoint, and the line ends with
`go on with: remask resume RUN`.

## The machine

"""


def template(node: ast.expr) -> str:
    """The text of a message, with … for what differs; "" where it is made elsewhere."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(template(value) for value in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return template(node.left) + template(node.right)
    return "…"


def messages(tree: ast.Module) -> Iterator[str]:
    """Templates of the messages that a module raises, each once, in their order."""
    found = dict[str, None]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in RAISED and node.args:
            found[" ".join(template(node.args[0]).split())] = None
    return iter([text for text in found if text.strip("… :;,")])


def page() -> str:
    """The whole page."""
    rooms = defaultdict[str, list[str]](list)
    for module in modules():
        rooms[module.part] += messages(module.tree)
    signals = [f"a loader worker was ended by {number.name}: {cure}" for number, cure in _BY_SIGNAL.items()]
    lines = [f"{os.strerror(number)}: {cure}" for number, cure in CURES.items()]
    text = HEAD + _list([*lines, SHARED_MEMORY, *signals])
    for room in sorted(name for name, found in rooms.items() if found):
        text += f"\n## {room}\n\n" + _list([*dict.fromkeys(rooms[room])])
    return text


def _list(found: list[str]) -> str:
    return "".join(f"- `` {line} ``\n" if "`" in line else f"- `{line}`\n" for line in found)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE.relative_to(ROOT), file=sys.stderr)
