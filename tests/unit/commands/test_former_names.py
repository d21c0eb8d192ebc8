"""Scripts of earlier versions go on: options by their former names, as classes and as arguments."""

from pathlib import Path

import pytest

from remask import commands
from remask.commands.paths import paths_or_texts


@pytest.mark.parametrize(
    ("former", "name"), [("Asked", "ProbeOptions"), ("Look", "ModelOptions"), ("Mapped", "TsneOptions")]
)
def test_classes(former: str, name: str) -> None:
    assert getattr(commands, former) is getattr(commands, name)


def test_arguments() -> None:
    @paths_or_texts
    def verb(path: Path, options: int = 0, model: int = 0) -> tuple[Path, int, int]:
        return path, options, model

    assert verb("x", asked=1, look=2) == verb("x", options=1, model=2) == (Path("x"), 1, 2)  # type: ignore[arg-type, call-arg]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"module 'remask.commands' has no attribute 'prob'"):
        _ = commands.prob
