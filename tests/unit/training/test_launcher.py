"""launcher.py: a launcher is there, or its variables are left over; numbers that cannot be are one line."""

import subprocess
import sys

import pytest

from remask.errors import UserError
from remask.training.launcher import Place, count, left_over, place

THERE = {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


def test_a_launcher() -> None:
    assert place(THERE) == Place(1, 4, 0, 1)
    assert place({**THERE, "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}) == Place(1, 4, 1, 2)
    assert left_over(THERE) is None
    assert (place({}), left_over({})) == (Place(), None)


@pytest.mark.parametrize(
    "left",
    [
        {"RANK": ""}, {"RANK": "3"}, {"RANK": "x"}, {"WORLD_SIZE": ""}, {"RANK": "0", "WORLD_SIZE": "2"},
        {"LOCAL_RANK": ""}, {"MASTER_ADDR": ""}, {"MASTER_ADDR": "host"}, {**THERE, "MASTER_PORT": ""},
    ],
)  # fmt: skip
def test_what_is_left_over_is_ignored_and_said(left: dict[str, str]) -> None:
    assert place(left) == Place()
    said = left_over(left) or ""
    assert "\n" not in said
    assert said.startswith("ignored ")
    assert said.endswith(f"unset {' '.join(sorted(left, key=said.index))}")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"RANK": "x"}, "RANK=x is no number"),
        ({"WORLD_SIZE": "2.5"}, "WORLD_SIZE=2.5 is no number"),
        ({"RANK": "4"}, "RANK=4 of WORLD_SIZE=4"),
        ({"RANK": "-1"}, "RANK=-1 of WORLD_SIZE=4"),
        ({"LOCAL_RANK": "3", "RANK": "3", "LOCAL_WORLD_SIZE": "2"}, "LOCAL_RANK=3 of LOCAL_WORLD_SIZE=2"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT=http is no number"),
    ],
)
def test_numbers_that_cannot_be(wrong: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        place({**THERE, **wrong})
    assert "\n" not in str(caught.value)


def test_counts_of_torchrun() -> None:
    assert [count("N", {"N": text}) for text in ("", " ", "3")] == [0, 0, 3]
    with pytest.raises(UserError, match="N=many is no number"):
        count("N", {"N": "many"})


@pytest.mark.parametrize("variable", ["RANK=", "RANK=3", "WORLD_SIZE=", "LOCAL_RANK=7"])
def test_a_command_speaks_all_the_same(variable: str) -> None:
    name, _, value = variable.partition("=")
    command = [sys.executable, "-m", "remask", "show", "no-such-recipe"]
    import os

    done = subprocess.run(
        command, env={**os.environ, name: value}, capture_output=True, text=True, timeout=120, check=False
    )
    first, second = done.stderr.strip().splitlines()
    assert (done.returncode, first.split(":")[1].split()[0]) == (2, "ignored")
    assert second.startswith('remask: unknown recipe "no-such-recipe"')
