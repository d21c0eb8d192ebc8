"""commands take texts as well as paths, for every argument that names a file or a folder."""

import inspect
from pathlib import Path
from typing import get_args

import pytest

from remask import commands
from remask.commands.paths import paths_or_texts

WITHOUT_PATHS = ("doctor", "parse_form", "plan", "probe_table", "recipes", "show")
COMMANDS = [
    (name, function)
    for name in commands.__all__
    if inspect.isfunction(function := getattr(commands, name)) and name not in WITHOUT_PATHS
]


def test_there_are_commands() -> None:
    assert {"pretrain", "resume", "probe", "finetune", "export", "embed", "data_pack"} <= {name for name, _ in COMMANDS}


@pytest.mark.parametrize(("name", "function"), COMMANDS, ids=[name for name, _ in COMMANDS])
def test_every_command_takes_both(name: str, function: object) -> None:
    """The function behind it is given what its annotation wants, whichever of the two it was called with."""
    inner = inspect.unwrap(function)  # type: ignore[arg-type]
    assert inner is not function, f"{name}: decorate it with paths_or_texts"
    signature = inspect.signature(inner, eval_str=True)
    seen: dict[str, object] = {}

    def spy(*given: object, **named: object) -> None:
        seen.update(signature.bind(*given, **named).arguments)

    spy.__signature__ = signature  # type: ignore[attr-defined]
    taking = paths_or_texts(spy)
    texts = [
        key for key, part in signature.parameters.items() if {Path, str} & {part.annotation, *get_args(part.annotation)}
    ]
    assert texts
    for value in ("some/where", Path("some/where")):
        given = dict.fromkeys(texts, value)
        taking(**{**dict.fromkeys(signature.parameters), **given})
        for key in texts:
            kinds = {signature.parameters[key].annotation, *get_args(signature.parameters[key].annotation)}
            assert type(seen[key]) in kinds or (isinstance(seen[key], Path) and Path in kinds)
            assert str(seen[key]) == "some/where"


def test_overrides_and_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @paths_or_texts
    def command(out: Path, overrides: dict[str, object] | None = None) -> tuple[Path, object]:
        return out, overrides

    monkeypatch.setenv("HOME", str(tmp_path))
    assert command("~/x", {"data.source": Path("a/b")}) == (tmp_path / "x", {"data.source": "a/b"})
    assert command(Path("x")) == (Path("x"), None)


def test_a_run_from_texts_alone(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    assert commands.pretrain("demo", {"data.source": "digits"}, out=run, smoke=True, quiet=True) == Path(run)
    assert commands.report(run) == Path(run) / "report.html"
    assert (commands.export(run, str(tmp_path / "out")) / "backbone.safetensors").is_file()
    assert commands.reconstruct(run, Path("digits"), out=str(tmp_path / "a.png")).is_file()
    assert commands.embed(run, "digits", str(tmp_path / "f.npz"), limit=4, quiet=True).is_file()
