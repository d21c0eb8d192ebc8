"""starting.py: a student's first weights, its decoder's, those of a timm name's tag; and what is said of them."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from remask.build.pretraining import build_method
from remask.build.starting import loaded_lines
from remask.errors import UserError
from remask.interop import convmae, mae
from remask.interop.encoders import open_encoder
from remask.interop.start import start
from remask.interop.teachers import open_teacher
from remask.method import Method
from remask.recipe import Recipe, choose
from remask.runs.reopen import untrained

TOY: dict[str, Any] = {
    "backbone.name": "vit_micro", "backbone.width": 32, "backbone.depth": 2, "backbone.heads": 2,
    "method.decoder_width": 16, "method.decoder_depth": 1, "method.decoder_heads": 2, "data.image_size": 32,
}  # fmt: skip
NAME = "vit_tiny_patch16_224.augreg_in21k"


def recipe(base: str = "mae-vit-micro-cifar", **keys: Any) -> Recipe:
    return choose(base, {**TOY, **{key.replace("__", "."): value for key, value in keys.items()}})


def filled(method: Method) -> Method:
    torch.manual_seed(0)
    for parameter in method.parameters():
        nn.init.normal_(parameter, std=0.1)
    return method


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A whole MAE, as its authors save it."""
    path = tmp_path_factory.mktemp("mae") / "mae.pth"
    torch.save({"model": mae.to_official(filled(build_method(recipe()))), "epoch": 3}, path)
    return f"mae:{path}"


def official(file: str) -> dict[str, torch.Tensor]:
    return torch.load(file.removeprefix("mae:"), weights_only=True)["model"]


def line_of(method: Method) -> str:
    lines = loaded_lines(method)
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize("setting", ["", ",heads=2"])
@pytest.mark.parametrize("plugin", ["mae", "mae+dmjd"])
def test_encoder_and_decoder_are_taken(file: str, setting: str, plugin: str) -> None:
    chosen = choose("mae-vit-micro-cifar", {**TOY, "backbone.weights": file + setting}, method=plugin)
    method = build_method(chosen)
    own = {k: v for k, v in method.state_dict().items() if k.startswith(("backbone.", "branches.0.head."))}
    assert all(torch.equal(tensor, own[key]) for key, tensor in mae.from_official(official(file)).items())
    assert line_of(method) == (
        f'{file}: 30 tensors of its entry "model"; its decoder too, 20 tensors, with 2 heads as the recipe says'
    )


def test_a_decoder_that_does_not_fit_is_left_out_by_name(file: str) -> None:
    for keys, why in (
        ({"method__decoder_width": 32}, "mask_token is [1, 1, 16] and the recipe's [1, 1, 32]"),
        ({"method__decoder_depth": 2}, "it has no blocks.1.norm1.weight"),
        ({"method__target": "hog"}, "its predict.weight is [48, 16] and the recipe's [108, 16]"),
    ):
        method = build_method(recipe(backbone__weights=file, **keys))  # type: ignore[arg-type]
        assert "its decoder was left out, for " in line_of(method)
        assert why in line_of(method)
        assert "left out: mask_token, decoder (19 tensors)" in line_of(method)
        assert torch.equal(method.backbone.network.state_dict()["norm.weight"], official(file)["norm.weight"])
    simmim = build_method(choose("simmim-vit-micro-cifar", {**VIT, "backbone.weights": file}))
    assert "its decoder was left out: method simmim has none" in line_of(simmim)


VIT: dict[str, Any] = {key: value for key, value in TOY.items() if not key.startswith("method.")}


def test_another_size_keeps_the_decoders_own_positions(file: str) -> None:
    method = build_method(recipe(backbone__weights=file, data__image_size=48))
    assert "positions resized from 8×8 to 12×12; its decoder too, 20 tensors" in line_of(method)
    fresh, own = build_method(recipe(data__image_size=48)).state_dict(), method.state_dict()
    assert torch.equal(own["branches.0.head.positions"], fresh["branches.0.head.positions"])
    assert torch.equal(own["branches.0.head.predict.weight"], official(file)["decoder_pred.weight"])


def test_a_convvits_decoder(tmp_path: Path) -> None:
    keys = {"method.decoder_width": 16, "method.decoder_depth": 1, "method.decoder_heads": 2}
    theirs = filled(build_method(choose("convmae-convit-micro-cifar", keys)))
    torch.save({"model": convmae.to_official(theirs)}, tmp_path / "x.pth")
    method = build_method(
        choose("convmae-convit-micro-cifar", {**keys, "backbone.weights": f"convmae:{tmp_path}/x.pth"})
    )
    head = {key: tensor for key, tensor in method.state_dict().items() if key.startswith("branches.0.head")}
    assert all(torch.equal(tensor, theirs.state_dict()[key]) for key, tensor in head.items())
    assert "its decoder too" in line_of(method)


def refusal(**keys: Any) -> str:
    with pytest.raises(UserError) as caught:
        build_method(recipe(**keys))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_backbone_weights_refuses(file: str, tmp_path: Path) -> None:
    assert "was said to have 4 heads, and the student has 2" in refusal(backbone__weights=f"{file},heads=4")
    assert "takes heads and no more" in refusal(backbone__weights=f"{file},normalise=half")
    assert "'layer' is no setting" in refusal(backbone__weights=f"{file},layer=4")
    assert "does not exist" in refusal(backbone__weights=f"{file}x,heads=2")
    bad = {**official(file), "decoder_pred.bias": torch.full((48,), float("inf"))}
    torch.save({"model": bad}, tmp_path / "x.pth")
    assert "predict.bias has 48 of 48 values NaN or infinite" in refusal(backbone__weights=f"mae:{tmp_path}/x.pth")


TAGGED: dict[str, Any] = {
    **dict.fromkeys(("backbone.width", "backbone.depth", "backbone.heads", "backbone.patch_size"), "off"),
    "backbone.name": NAME, "data.image_size": 64,
}  # fmt: skip


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """The tag's weights in a file, where timm finds them instead of on a hub."""
    made = timm.create_model
    torch.manual_seed(3)
    state = made(NAME.partition(".")[0], num_classes=0).state_dict()
    save_file({key: torch.randn_like(tensor) for key, tensor in state.items()}, tmp_path / "w.safetensors")

    def create(name: str, pretrained: bool = False, **arguments: Any) -> nn.Module:
        overlay = {"pretrained_cfg_overlay": {"file": str(tmp_path / "w.safetensors"), "num_classes": 0}}
        return made(name, pretrained=pretrained, **arguments, **(overlay if pretrained else {}))

    monkeypatch.setattr(timm, "create_model", create)
    return load_file(tmp_path / "w.safetensors")


def test_a_tag_means_its_weights(cached: dict[str, torch.Tensor]) -> None:
    chosen = choose("mae-vit-micro-cifar", {**TOY, **TAGGED})
    method = build_method(chosen)
    own = method.backbone.network.state_dict()
    assert all(torch.equal(own[key], tensor) for key, tensor in cached.items() if key != "pos_embed")
    assert own["pos_embed"].shape == (1, 17, 192)
    assert loaded_lines(method) == [f"timm:{NAME}: {len(cached)} tensors; positions resized from 14×14 to 4×4"]
    assert not torch.equal(
        own["norm.weight"], build_method(chosen, start=False).backbone.network.state_dict()["norm.weight"]
    )
    control = untrained(chosen).backbone.network.state_dict()
    assert not torch.equal(control["norm.weight"], cached["norm.weight"])
    with torch.device("meta"):  # what is counted needs none
        assert loaded_lines(build_method(chosen)) == []


def test_a_tag_whose_weights_are_out_of_reach() -> None:
    with pytest.raises(UserError) as caught:
        build_method(choose("mae-vit-micro-cifar", {**TOY, **TAGGED}))
    line = str(caught.value)
    assert "\n" not in line
    assert f"backbone.name {NAME} could not be opened" in line
    assert "give backbone.name=vit_tiny_patch16_224 to start from random weights" in line
    smoke = choose("mae-vit-micro-cifar", {**TOY, **TAGGED}, smoke=True)  # which needs no network
    assert smoke.backbone.name == "vit_tiny_patch16_224"


@pytest.mark.parametrize(
    "name", [NAME, "resnet18.a1_in1k", "swin_tiny_patch4_window7_224.ms_in1k", "vit_tiny_patch16_224.nobody"]
)
def test_a_tag_is_no_name_of_something_untrained(name: str) -> None:
    for refused in (
        lambda: start(f"untrained:{name}"), lambda: open_teacher(f"untrained:{name}"),
        lambda: open_encoder(f"untrained:{name}"),
    ):  # fmt: skip
        with pytest.raises(UserError, match="contradicts itself") as caught:
            refused()
        assert f"give untrained:{name.partition('.')[0]} for random" in str(caught.value)


def test_lines_of_teachers(file: str) -> None:
    teachers = [{"source": f"{file}", "heads": 2}, {"source": f"{file},heads=2"}, {"source": "untrained:vit_micro"}]
    keys = {**VIT, "distill.teachers": teachers}
    method = build_method(choose("moma-vit-micro-cifar", keys))
    assert line_of(method).startswith(f'{file}: 30 tensors of its entry "model"; left out: mask_token, decoder')
