"""Each command of the command line has its own file in commands/, and each flag one declaration in cli/."""

import ast
import inspect
from collections import defaultdict
from pathlib import Path

import typer.main

from remask import commands
from remask.cli.main import app
from tests.architecture.source import LIBRARY, Module, modules

CLI = [module for module in modules() if module.part == "cli"]


def verbs() -> list[str]:
    """The name of each command, that of `remask data check` as data_check."""
    found = []
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        found += [f"{name}_{inner}" for inner in command.commands] if hasattr(command, "commands") else [name]
    return found


def test_each_command_has_its_own_file() -> None:
    assert len(verbs()) >= 15
    for verb in verbs():
        function = inspect.unwrap(getattr(commands, verb))
        file = Path(inspect.getfile(function))
        assert function.__name__ == verb
        assert file.parent == LIBRARY / "commands"
        assert file.stem not in commands.__all__, "a module of a command's name would hide the function"
    public = {node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)}
    assert public & {*verbs()} == {verb}


def test_there_are_commands() -> None:
    assert {"pretrain", "data_check", "data_pack", "segment", "doctor"} <= {*verbs()}


def declared(module: Module) -> list[str]:
    """The flags that a module declares by typer.Option: by the name that it states, or that of the parameter."""
    found = []
    for node in ast.walk(module.tree):
        name = node.arg if isinstance(node, ast.arg) else None
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
        if name and node.annotation:  # type: ignore[attr-defined]
            inner = ast.walk(node.annotation)  # type: ignore[attr-defined]
            found += [_flag(call, name) for call in inner if _is_option(call)]
    stated = [flag for call in ast.walk(module.tree) if _is_option(call) and (flag := _flag(call, ""))]
    return [flag for flag in {*found, *stated} if flag]


def _is_option(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "typer.Option"


def _flag(call: ast.AST, parameter: str) -> str:
    stated = [a.value for a in call.args if isinstance(a, ast.Constant)]  # type: ignore[attr-defined]
    return str(stated[0]) if stated else f"--{parameter.rstrip('_').replace('_', '-')}" if parameter else ""


def test_no_flag_is_declared_in_two_modules() -> None:
    owners = defaultdict(list)
    for module in CLI:
        for flag in declared(module):
            owners[flag].append(module.where)
    assert not {flag: where for flag, where in owners.items() if len(where) > 1}


def test_no_shared_flag_is_declared_twice() -> None:
    shared = next(module for module in CLI if module.name == "remask.cli.options")
    stated = [_flag(call, "") for call in ast.walk(shared.tree) if _is_option(call)]
    assert all(stated), "a flag in options.py states its name"
    assert len(stated) == len({*stated})


def test_every_flag_has_a_name_that_the_check_sees() -> None:
    """An alias, whose parameter stands elsewhere, states it."""
    for module in CLI:
        aliases = [node.value for node in module.tree.body if isinstance(node, ast.Assign)]
        assert all(_flag(call, "") for value in aliases for call in ast.walk(value) if _is_option(call)), module.where


def test_the_check_sees_flags() -> None:
    found = {flag for module in CLI for flag in declared(module)}
    assert {"--data", "--out", "--quiet", "--lr", "--skip-bad", "--max-steps", "--k", "--gpus", "--workers"} <= found
