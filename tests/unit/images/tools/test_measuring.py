"""images/measuring.py: what a sample of a source says of its range, mean and deviation."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from remask.errors import UserError
from remask.images.sources.opening import open_source
from remask.images.tools.measuring import measure


def folder(path: Path, arrays: list[np.ndarray], kind: str = "png") -> str:
    path.mkdir()
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(path / f"{i:02d}.{kind}")
    return str(path)


def ramps(most: int, kind: str = "uint16", count: int = 4) -> list[np.ndarray]:
    """Every value from 0 to `most` evenly, over a picture of 64x64."""
    return [np.rint(np.linspace(0, most, 64 * 64)).reshape(64, 64).astype(kind)] * count


@pytest.mark.parametrize(
    ("most", "high"), [(235, 255), (255, 255), (256, 511), (1000, 1023), (4090, 4095), (4095, 4095), (40000, 65535)]
)
def test_the_smallest_power_of_two_that_holds_the_values(tmp_path: Path, most: int, high: int) -> None:
    found = measure(open_source(folder(tmp_path / "a", ramps(most))), 1)
    assert found.rule == (0, high)
    assert found.deep
    assert found.mean == [pytest.approx(most / 2 / high, abs=1e-3)]
    assert found.std == [pytest.approx(most / high / 12**0.5, abs=1e-3)]


@pytest.mark.parametrize(("most", "high"), [(0.3, 1), (1.0, 1), (1.5, 2), (8.0, 8), (100.5, 128)])
def test_the_range_of_floats(tmp_path: Path, most: float, high: float) -> None:
    array = np.linspace(0, most, 4096).reshape(64, 64).astype(np.float32)
    assert measure(open_source(folder(tmp_path / "a", [array] * 3, "tif")), 1).rule == (0, high)


def test_negative_values_have_a_power_of_two_below(tmp_path: Path) -> None:
    array = np.linspace(-300, 900, 4096).reshape(64, 64).astype(np.int32)
    assert measure(open_source(folder(tmp_path / "a", [array] * 3, "tif")), 1).rule == (-512, 1023)


def test_8_bits_and_mixtures_have_the_range_of_their_type(tmp_path: Path) -> None:
    assert measure(open_source(folder(tmp_path / "a", ramps(100, "uint8"))), 1).rule == "full"
    mixed = measure(open_source(folder(tmp_path / "b", ramps(255, "uint8", 2) + ramps(65535, count=2))), 1)
    assert mixed.rule == "full"
    assert mixed.mean == [pytest.approx(0.5, abs=2e-3)]


def test_a_rule_that_is_given_is_kept(tmp_path: Path) -> None:
    source = open_source(folder(tmp_path / "a", ramps(4095)))
    assert measure(source, 1, (0.0, 8190.0)).mean == [pytest.approx(0.25, abs=1e-3)]
    assert measure(source, 1, "full").mean == [pytest.approx(4095 / 65535 / 2, abs=1e-3)]
    assert measure(source, 1, "byte").mean == [pytest.approx(7.5 / 255, abs=1e-3)]


@pytest.mark.parametrize(("rule", "array"), [("auto", 0), ("auto", 700), ("full", 0)])
def test_a_source_without_contrast_is_refused(tmp_path: Path, rule: str, array: int) -> None:
    with pytest.raises(UserError, match=f"no contrast: every value of 3 of them is {array}"):
        measure(open_source(folder(tmp_path / "a", [np.full((16, 16), array, np.uint16)] * 3)), 1, rule)


def test_values_that_are_black_in_the_range_are_refused_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no contrast in data.range 0 to 65535.*data.range=auto"):
        measure(open_source(folder(tmp_path / "a", ramps(200))), 1, "full")


@pytest.mark.parametrize(
    ("values", "cure"),
    [
        (np.linspace(0, 1e-3, 256, dtype=np.float32), "[0,0.001]"),
        (np.arange(256, dtype=np.uint16) // 16 + 20000, "[20000,20015]"),
    ],
)
def test_where_auto_has_no_contrast_the_cure_is_a_range_that_has(tmp_path: Path, values: np.ndarray, cure: str) -> None:
    np.save(tmp_path / "a.npy", values.reshape(16, 16))
    source = open_source(str(tmp_path))
    with pytest.raises(UserError, match=re.escape(f"use --set data.range={cure}") + "$"):
        measure(source, 1)
    measured = measure(source, 1, tuple(json.loads(cure)))
    assert measured.mean[0] == pytest.approx(0.5, abs=1e-3)


def test_a_channel_without_any_has_deviation_one(tmp_path: Path) -> None:
    array = np.dstack([ramps(200, "uint8")[0], np.zeros((64, 64), np.uint8), ramps(90, "uint8")[0]])
    found = measure(open_source(folder(tmp_path / "a", [array] * 2)), 3)
    assert found.std[1] == 1.0
    assert found.mean[1] == 0.0
    assert found.colour


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    source = open_source(folder(tmp_path / "a", ramps(200, "uint8")))
    line = r"none of 4 pictures .* can be used; .*00.png: 1 channel where 6 are wanted; they need .*data.channels=1$"
    with pytest.raises(UserError, match=line):
        measure(source, 6)


def test_what_is_said_of_a_sample(tmp_path: Path) -> None:
    found = measure(open_source(folder(tmp_path / "a", ramps(4000))), 3)
    assert found.describe(3) == (
        "4 PNG I, 16 bits; read as 3 channels, black to white is 0 to 4095 "
        "(data.range auto, values 0 to 4000 in 4 pictures)"
    )
    stream = io.BytesIO()
    Image.fromarray(np.zeros((4, 4, 4), np.uint8) + np.arange(4, dtype=np.uint8)).save(stream, "PNG")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.png").write_bytes(stream.getvalue())
    assert measure(open_source(str(tmp_path / "b")), 3).describe(3).endswith("left out: alpha of 1")
