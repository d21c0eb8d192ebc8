"""Commands written down in documents and recipes, held against the command line as it is."""

import re
import shlex
from pathlib import Path

FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)


def blocks(text: str, *languages: str) -> list[str]:
    """The fenced code blocks of a document in these languages."""
    return [body for language, body in FENCE.findall(text) if language in languages]


def shell_commands(block: str) -> list[list[str]]:
    """Each command of a shell block as words; a leading `$ ` and continued lines are undone, comments dropped."""
    found: list[list[str]] = []
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line.strip().removeprefix("$ "), comments=True)
        command: list[str] = []
        for word in [*words, ";"]:
            if word in {"&&", "||", "|", ";", "&", ">", ">>"}:
                found += [command] if command else []
                command = []
            else:
                command.append(word)
    return [words for command in found if (words := _without_environment(command))]


def _without_environment(words: list[str]) -> list[str]:
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    return words


def fault_in_remask(words: list[str]) -> str | None:
    """Why `remask …` could not be parsed (no such command, option, or an option without its value), or None."""
    import typer.main

    from remask.cli.main import app

    command, rest = typer.main.get_command(app), words[1:]
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        if rest[0] not in command.commands:
            return f"{shlex.join(words)}: no command {rest[0]!r}"
        command, rest = command.commands[rest[0]], rest[1:]
    context = command.make_context(command.name or "remask", [], resilient_parsing=True)
    context.resilient_parsing = False
    try:
        _, left, _ = command.make_parser(context).parse_args(list(rest))
    except Exception as error:  # typer carries its own copy of click, so its class has no public name
        return f"{shlex.join(words)}: {error}"
    return f"{shlex.join(words)}: nothing takes {left}" if left else None


def make_targets(makefile: Path) -> set[str]:
    """The targets a Makefile describes."""
    return set(re.findall(r"^([a-z]+):.*## ", makefile.read_text(), re.M))
