"""Specifications of networks: settings behind them, and what is refused before anything is opened."""

from pathlib import Path
from typing import Any

import pytest

from remask.errors import UserError
from remask.recipe.networks import FILES, TEACHERS, check_encoder, check_teacher, split_spec

SPECS: dict[str, tuple[str, dict[str, Any]]] = {
    "mae:x.pth": ("mae:x.pth", {}),
    "mae:x.pth,heads=12": ("mae:x.pth", {"heads": 12}),
    "dino:/a/b.pth,heads=6,normalise=half": ("dino:/a/b.pth", {"heads": 6, "normalise": "half"}),
    "fastmim:x,heads=[1,2,5,8]": ("fastmim:x", {"heads": [1, 2, 5, 8]}),
    "dino:x,mean=[0.5,0.4,0.3],std=[1,1,1],heads=3": (
        "dino:x", {"mean": [0.5, 0.4, 0.3], "std": [1, 1, 1], "heads": 3},
    ),
    "mae:a,b c.pth": ("mae:a,b c.pth", {}),
    "timm:vit_tiny_patch16_224": ("timm:vit_tiny_patch16_224", {}),
}  # fmt: skip


@pytest.mark.parametrize("spec", SPECS)
def test_settings_behind_a_specification(spec: str) -> None:
    assert split_spec(spec) == SPECS[spec]


def test_settings_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for spec, complaint in {
        "mae:x,layer=3": "'layer' is no setting of a network; known are heads, normalise, mean, std",
        "mae:x,heads=": "heads= is no number", "mae:x,heads=2.5": "write heads=12", "mae:x,heads=true": "is no number",
        "mae:x,mean=[a]": "write mean=[0.5,0.5,0.5]",
    }.items():  # fmt: skip
        with pytest.raises(UserError) as caught:
            split_spec(spec)
        assert complaint in str(caught.value)
    (tmp_path / "x,heads=3.pth").touch()  # a file that is called so is a file
    assert split_spec("mae:x,heads=3.pth") == ("mae:x,heads=3.pth", {})


def test_every_kind_of_file_has_somebody_who_opens_it() -> None:
    from remask.interop.encoder_files import KINDS

    assert set(KINDS) == set(FILES)


@pytest.mark.parametrize("spec", ["timm:any_name", "untrained:any_name", "mae:{}/x", "run:{}", "dino:{}/x,heads=6"])
def test_what_may_exist_is_not_refused(spec: str, tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    check_encoder(spec.format(tmp_path))


@pytest.mark.parametrize("spec", ["vit", "mae:", "resnet:x", "mae:absent", "run:absent", "dino:absent,heads=6"])
def test_what_names_no_encoder_is_refused(spec: str) -> None:
    with pytest.raises(UserError, match=r"names no encoder|does not exist"):
        check_encoder(spec)


def test_teachers() -> None:
    for spec in ("timm:x", "torchvision:mobilenet_v2", "clip:openai/clip-vit-base-patch16", "open_clip:x", "tae:"):
        check_teacher(spec)
    with pytest.raises(UserError, match="'tae:x' names no teacher; known are " + ", ".join(TEACHERS)):
        check_teacher("tae:x")
    with pytest.raises(UserError, match="absent does not exist: the weights of the teacher clip:x"):
        check_teacher("clip:x", "absent")
