"""finetune, segment and detect have their shared flags alike, and each its own."""

from typing import Any

import pytest
import typer.main

from remask.cli.downstream import Shared
from remask.cli.main import app

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
SHARED = {
    "--recipe", "--out", "--epochs", "--batch-size", "--lr", "--image-size", "--heads", "--normalise", "--limit",
    "--max-bad", "--exclude", "--range", "--untrained", "--eval-only", "--seed", "--device", "--set", "--verify-data",
    "--quiet", "-q",
}  # fmt: skip
OWN = {
    "finetune": {"--data", "--val", "--share"},
    "segment": {"--data", "--masks", "--val", "--val-masks", "--head", "--classes"},
    "detect": {"--data", "--annotations", "--val", "--val-annotations", "--skip-bad"},
}


@pytest.mark.parametrize("name", OWN)
def test_flags(name: str) -> None:
    flags = {flag for part in COMMANDS[name].params for flag in part.opts}
    assert flags == SHARED | OWN[name] | {"start"}


def test_a_flag_that_was_not_given_sets_no_key() -> None:
    given: dict[str, Any] = {key: value for key, value in Shared().keys().items() if value is not None}
    assert given == {}
    assert Shared(epochs=3, untrained=True, exclude=["*.png"]).keys() == {
        **Shared().keys(), "optim.epochs": 3, "model.untrained": True, "data.exclude": ["*.png"],
    }  # fmt: skip
