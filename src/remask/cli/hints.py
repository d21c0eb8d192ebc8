"""Errors as one line for a person; after a command line that the parser refused, with a guess of what was meant."""

import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from remask.errors import GO_ON, MachineError, UserError
from remask.files.escaping import on_one_line, quoted
from remask.files.system_errors import system_line

ALIASES = {"help": "--help", "version": "--version"}
"""First words that other programs take, and the options that stand for them here."""


def aliased(arguments: Sequence[str]) -> list[str]:
    """The arguments with `help COMMAND` as `COMMAND --help`, and `version` as `--version`."""
    if not arguments or arguments[0] not in ALIASES:
        return list(arguments)
    return [*arguments[1:], ALIASES[arguments[0]]]


def hint(line: str, arguments: Sequence[str], options: Sequence[str], group: Any = None) -> str:
    """The parser's line, with what to type instead. `options` are those of the command, `group` holds commands."""
    if group is not None and "No such option" in line and (better := _moved(arguments, group)):
        return better
    words = [word for word in arguments[: 2 if "data" in arguments[:1] else 1] if word.isalpha()]
    command = " ".join(["remask", *words])
    if "No such option" in line:
        given = next((word for word in arguments if _stem(word) and _stem(word) not in options), "")
        return f"No such option: {given}; {_option(given, arguments, options)} See {command} --help"
    if "unexpected extra argument" in line:
        return f"{line}; {_extra(line, arguments, options)}{command} --help"
    if line.startswith("Missing "):
        return f"{line.rstrip('.')}; see {command} --help"
    if "No such command" in line and "Did you mean" not in line:
        return f"{line} remask --help lists them"
    return line


def _moved(arguments: Sequence[str], group: Any) -> str:
    """Flags that stand before the verb whose they are: the command with them behind it; "" where there is no such."""
    words = list(arguments)
    begin = words.index(group.name) + 1 if group.name in words else 0
    for place, word in enumerate(words):
        if place <= begin - 1 or (command := group.commands.get(word)) is None:
            continue
        flags, known = words[begin:place], {name for option in _all_of(command) for name in option.opts}
        if flags and all(_stem(flag) in known for flag in flags if _stem(flag)):
            inner = getattr(command, "commands", {})
            end = next((at for at, one in enumerate(words) if at > place and one in inner), place) + 1
            typed = ["remask", *words[:begin], *words[place:end], *flags, *words[end:]]
            return f"{flags[0]} belongs behind the command: {' '.join(map(quoted, typed))}"
    return ""


def _all_of(command: Any) -> list[Any]:
    """The options of a command, and of those below it."""
    return [*command.params, *(option for one in getattr(command, "commands", {}).values() for option in one.params)]


def _stem(word: str) -> str:
    """The option in a word: `--epochs` of `--epochs=3`; "" where the word is no option."""
    return word.partition("=")[0] if word.startswith("-") and not word.lstrip("-")[:1].isdigit() else ""


def _option(given: str, arguments: Sequence[str], options: Sequence[str]) -> str:
    stem = _stem(given)
    near = difflib.get_close_matches(f"--{stem.lstrip('-')}", options, 1, 0.8)
    if near:
        return f"did you mean {near[0]}?"
    keys = _keys(arguments[0] if arguments else "", stem.lstrip("-").replace("-", "_"))
    value = given.partition("=")[2] or next(iter(arguments[list(arguments).index(given) + 1 :]), "VALUE")
    return f"did you mean --set {keys[0]}={value}?" if keys and "--set" in options else "it is none of this command's."


def _keys(command: str, name: str) -> list[str]:
    """The keys of a command's recipe whose last part is, or resembles, `name`."""
    from remask.recipe import Recipe, recipe_keys
    from remask.recipe.downstream import TASKS

    known = recipe_keys(TASKS.get(command, Recipe))
    near = difflib.get_close_matches(name, [key.rpartition(".")[2] for key in known], 1, 0.8)
    return [key for key in known if [key.rpartition(".")[2]] == near]


def _extra(line: str, arguments: Sequence[str], options: Sequence[str]) -> str:
    words = line.partition("(s) (")[2].rstrip(".)").split()
    files = [word for word in words if Path(word).exists()]
    if len(files) == len(words) and files and Path(files[0]).is_file():
        folder, ends = Path(files[0]).parent, Path(files[0]).suffix
        return f"did the shell expand a pattern? Give the folder, --data {folder}, or quote it, '{folder}/*{ends}'; "
    before = [arguments[i - 1] for i, word in enumerate(arguments) if i and word in words]
    setting = next((word for word in before if "--set" in arguments and not word.startswith("-")), None)
    if setting and arguments[list(arguments).index(setting) - 1] == "--set":
        return f"did you mean --set {setting}={words[0]}? See "
    if "--recipe" in options and "--recipe" not in arguments:
        return f"did you mean --recipe {words[0]}? See "
    return "see "


def going_on(error: BaseException) -> str:
    """The notes on an exception of a training that say how it goes on, to be appended to a line; "" without any."""
    return "".join(f"; {note}" for note in getattr(error, "__notes__", ()) if GO_ON in note)


def explain(error: Exception) -> tuple[str, int]:
    """A line about an error for a person, and the exit code."""
    parsed = getattr(error, "format_message", None)
    if parsed:  # the parser's: an unknown option, a missing argument
        if "\n" in (text := parsed()):
            return text, int(getattr(error, "exit_code", 2))
        context = getattr(error, "ctx", None)
        options = [name for option in context.command.params for name in option.opts] if context else []
        group = context.command if context and hasattr(context.command, "commands") else None
        return f"remask: {hint(text, sys.argv[1:], options, group)}", int(getattr(error, "exit_code", 2))
    if isinstance(error, UserError):
        return f"remask: {error}{going_on(error) if isinstance(error, MachineError) else ''}", 2
    if line := system_line(error):
        return f"remask: {on_one_line(line)}{going_on(error)}", 2
    return f"remask: unexpected {type(error).__name__}: {error} (--debug shows where; do report it)", 1


__all__ = ["aliased", "explain", "going_on", "hint"]
