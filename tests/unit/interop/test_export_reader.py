"""The reader that an export carries gives the pixels and features that `embed` gives, for every kind of picture."""

import contextlib
import importlib.util
import io
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from remask.backbones.vit import create_vit
from remask.evaluation.probing.features import extract
from remask.images.levels import FULL, Levels
from remask.images.loading.loader import iterate
from remask.images.sources.opening import open_source
from remask.images.transforms import CentreCrop
from remask.interop.export import export_backbone

SIZE = (24, 32)
ORIENTATION = 0x0112


def ramp(height: int, width: int, bands: int, most: float) -> np.ndarray:
    """Different in every corner, so that a turn, a squeeze or another crop shows."""
    rows, columns = np.mgrid[0:height, 0:width]
    shares = [rows / height, columns / width, (rows + columns) / (height + width), (rows * columns % 7) / 7]
    return np.stack([shares[band % 4] * most for band in range(bands)], axis=2)


def save_tiff(path: Path, array: np.ndarray, **keys: Any) -> None:
    pytest.importorskip("tifffile", reason="tifffile is not installed").imwrite(path, array, **keys)


def exif(turned: int) -> bytes:
    tags = Image.Exif()
    tags[ORIENTATION] = turned
    return tags.tobytes()


def write(folder: Path, kind: str) -> str:
    """A picture file of one kind."""
    eight, sixteen = ramp(40, 90, 3, 255).astype(np.uint8), ramp(40, 90, 1, 4000).astype(np.uint16)[:, :, 0]
    path = folder / f"{kind}.png"
    if kind in ("3", "6", "8"):
        path = path.with_suffix(".jpg")
        Image.fromarray(eight).save(path, quality=95, exif=exif(int(kind)))
    elif kind == "wide":
        Image.fromarray(ramp(30, 300, 3, 255).astype(np.uint8)).save(path)
    elif kind == "same size":
        Image.fromarray(ramp(*SIZE, 3, 255).astype(np.uint8)).save(path)
    elif kind == "gray":
        Image.fromarray(eight[:, :, 0]).save(path)
    elif kind == "alpha":
        Image.fromarray(np.dstack([eight, eight[:, :, 1]])).save(path)
    elif kind == "palette":
        Image.fromarray(eight).quantize(16).save(path)
    elif kind == "cmyk":
        path = path.with_suffix(".jpg")
        Image.fromarray(eight).convert("CMYK").save(path)
    elif kind == "16 bits":
        Image.fromarray(sixteen).save(path)
    elif kind == "float":
        path = path.with_suffix(".tif")
        Image.fromarray((sixteen / 4095).astype(np.float32)).save(path)
    elif kind == "12 bits, colour":
        path = path.with_suffix(".tif")
        save_tiff(path, ramp(40, 90, 3, 4000).astype(np.uint16), photometric="rgb")
    elif kind == "array":
        path = path.with_suffix(".npy")
        np.save(path, ramp(40, 90, 3, 4000).astype(np.uint16))
    return str(path)


KINDS = (
    "3", "6", "8", "wide", "same size", "gray", "alpha", "palette", "cmyk", "16 bits", "float", "12 bits, colour",
    "array",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("levels", [FULL, Levels(0, 4095), None], ids=["full", "12 bits", "byte"])
def test_pixels_are_equal_and_features_alike(tmp_path: Path, kind: str, levels: Levels | None) -> None:
    if levels is None and kind in ("12 bits, colour", "array", "float"):
        pytest.skip("runs of 8 bits read such pictures otherwise or not at all")
    torch.manual_seed(0)
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
    backbone = create_vit("vit_micro", SIZE, mean, std).eval()
    backbone.normalise.read_by(levels)
    export_backbone(backbone, tmp_path / "export", SIZE, mean, std)
    name = write(tmp_path, kind)
    batches = list(iterate(open_source(name), CentreCrop(SIZE), 1, scaling=backbone.normalise.scaling))
    features, _ = extract(backbone, batches)

    reader = loaded(tmp_path / "export" / "read_pixels.py")
    config = json.loads((tmp_path / "export" / "config.json").read_text())
    crop = CentreCrop(SIZE)
    theirs = reader.ready(reader.CentreCrop(SIZE, config["crop_pct"])(reader.read_image(name, config)), config)
    assert crop.ratio == config["crop_pct"]
    assert theirs.dtype == batches[0].images.dtype
    assert torch.equal(theirs, batches[0].images[0])
    argv, sys.argv = sys.argv, ["load_example.py", name]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            made = runpy.run_path(str(tmp_path / "export" / "load_example.py"))
    finally:
        sys.argv = argv
    torch.testing.assert_close(made["features"], features, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["six.npy", "text.png", "gone.png"])
def test_a_picture_that_is_not_for_the_network_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    backbone = create_vit("vit_micro", SIZE, [0.5] * 3, [0.2] * 3).eval()
    export_backbone(backbone, tmp_path / "export", SIZE, [0.5] * 3, [0.2] * 3)
    np.save(tmp_path / "six.npy", ramp(40, 90, 6, 255).astype(np.uint8))
    (tmp_path / "text.png").write_text("hello")
    monkeypatch.setattr(sys, "argv", ["load_example.py", str(tmp_path / name)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(tmp_path / "export" / "load_example.py"))
    why = {"six.npy": "6 channels where 3 are wanted", "text.png": "not a picture", "gone.png": "No such file"}
    assert str(ended.value.code).startswith(f"{tmp_path / name}: {why[name]}")
    assert str(ended.value.code).endswith("this network takes an image of 3 channels that is not damaged")
    assert "\n" not in str(ended.value.code)


def loaded(path: Path) -> Any:
    """A file as a module of its own, as a program without remask imports it."""
    spec = importlib.util.spec_from_file_location(f"reader_{path.parent.parent.name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
