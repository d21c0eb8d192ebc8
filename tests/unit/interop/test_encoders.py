"""interop/encoders.py: every kind of specification gives the network that was saved; what is missing is one line."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from remask.backbones.beit import create_beit
from remask.backbones.convvit import create_convvit
from remask.backbones.hierarchical import create_hierarchical
from remask.backbones.swin import create_swin
from remask.backbones.vit import ViT, create_vit
from remask.errors import UserError
from remask.interop import convmae, dmjd, encoders, mae
from remask.interop.encoders import open_encoder
from remask.interop.export import export_backbone
from remask.interop.loaded import loaded_of
from remask.interop.mae import MEAN, STD
from remask.masking import Masking
from remask.methods import mae as build_mae
from remask.methods.convmae import convmae as build_convmae
from remask.methods.dmjd import dm, jd
from remask.recipe.networks import ENCODERS
from remask.targets import Pixels

SIZE = (32, 32)
VIT = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 2.0}
CONVVIT: dict[str, Any] = {
    "strides": (2, 2, 2), "dims": (8, 12, 24), "depths": (1, 1, 2), "num_heads": 3, "mlp_ratios": (3, 2, 4),
}  # fmt: skip
IMAGENET: dict[str, Any] = {"mean": MEAN, "std": STD}
"""What dino: does not tell."""
FILES = ("mae", "dmae", "mocov3", "mocov3-momentum", "dino", "dmjd", "convmae")


def filled(module: nn.Module, seed: int = 0) -> Any:
    """No two tensors alike, tables among them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator))
    return module.eval()


def vit(seed: int = 0, size: tuple[int, int] = SIZE, channels: int = 3) -> ViT:
    constants = [0.5] * channels
    return filled(create_vit("vit_base_patch16_224", size, constants, constants, overrides=VIT), seed)


def content_of(kind: str, size: tuple[int, int] = SIZE) -> tuple[Any, dict[str, Tensor]]:
    """What a file of this kind holds, and the state of the network that it should give."""
    if kind in ("dmjd", "convmae"):
        backbone = create_convvit("convvit_base", size, MEAN, STD, overrides=CONVVIT)
        pixels = Pixels(backbone.patch, MEAN, STD)
        method = build_convmae(backbone, Masking(0.5), pixels, size, 16, 1, 2)
        method = filled(jd(dm(method), pixels, 20) if kind == "dmjd" else method)
        return {"model": (dmjd if kind == "dmjd" else convmae).to_official(method)}, backbone.network.state_dict()
    network, other = vit(size=size).network.state_dict(), vit(1, size).network.state_dict()
    if kind in ("mae", "dmae"):
        backbone = create_vit("vit_base_patch16_224", size, MEAN, STD, overrides=VIT)
        method = filled(build_mae(backbone, Masking(0.5), Pixels(backbone.patch, MEAN, STD), size, 16, 1, 2))
        heads = {"aligned_feature_projection_heads.0.weight": torch.zeros(5, 24)} if kind == "dmae" else {}
        return {"model": {**mae.to_official(method), **heads}}, backbone.network.state_dict()
    if kind == "dino":
        parts = {
            "student": {f"module.backbone.{key}": tensor for key, tensor in other.items()},
            "teacher": {f"backbone.{key}": tensor for key, tensor in network.items()},
        }
        parts["teacher"]["head.last_layer.weight_v"] = torch.zeros(3)
        return {**parts, "epoch": 3}, network
    base, moving = (other, network) if kind.endswith("momentum") else (network, other)
    state = {f"module.base_encoder.{key}": tensor for key, tensor in base.items()}
    state |= {f"module.momentum_encoder.{key}": tensor for key, tensor in moving.items()}
    return {"state_dict": {**state, "module.base_encoder.head.0.weight": torch.zeros(2)}, "epoch": 3}, network


def saved(folder: Path, kind: str, size: tuple[int, int] = SIZE) -> tuple[str, dict[str, Tensor]]:
    content, expected = content_of(kind, size)
    torch.save(content, folder / f"{kind}.pth")
    return f"{kind}:{folder / kind}.pth", expected


def plain(folder: Path, state: dict[str, Tensor]) -> str:
    """A file of plain names."""
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, folder / "plain.safetensors")
    return f"dino:{folder / 'plain.safetensors'}"


def holds(backbone: Any, expected: dict[str, Tensor]) -> bool:
    own = backbone.network.state_dict()
    return own.keys() == expected.keys() and all(torch.equal(own[key], expected[key]) for key in own)


def refusal(spec: str, **keys: Any) -> str:
    with pytest.raises(UserError) as caught:
        open_encoder(spec, **keys)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def constants(backbone: Any) -> list[float]:
    """What black and white become, channel by channel."""
    ends = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(-1, backbone.channels, 1, 1)
    return [round(float(value), 3) for value in backbone.normalise(ends).flatten()]


@pytest.mark.parametrize("kind", FILES)
def test_files(tmp_path: Path, kind: str) -> None:
    spec, expected = saved(tmp_path, kind)
    stated: dict[str, Any] = {"heads": 3, **(IMAGENET if kind == "dino" else {})}
    backbone = open_encoder(spec, **stated)
    assert holds(backbone, expected)
    assert constants(backbone) == [-2.118, -2.036, -1.804, 2.249, 2.429, 2.64]
    with torch.device("meta"):  # where costs are counted nothing takes memory
        counted: Any = open_encoder(spec, **stated, size=(16, 16))
        assert {parameter.device.type for parameter in counted.network.parameters()} == {"meta"}
        assert counted(torch.zeros(1, 3, 16, 16)).tokens.shape == (1, 4, 24)


@pytest.mark.parametrize("kind", FILES)
def test_heads_are_asked_for(tmp_path: Path, kind: str) -> None:
    spec, _ = saved(tmp_path, kind)
    assert f"{spec} does not tell its number of heads" in refusal(spec)
    assert "state the model's own" in refusal(spec, heads=5)


@pytest.mark.parametrize("kind", ["mae", "mocov3", "dino", "convmae"])
def test_sizes(tmp_path: Path, kind: str) -> None:
    """Another size uses the stored table, resized; one of as many tokens takes it as it is."""
    spec, expected = saved(tmp_path, kind)
    stated: dict[str, Any] = {"heads": 3, **(IMAGENET if kind == "dino" else {})}
    smaller: Any = open_encoder(spec, **stated, size=(16, 24))
    assert holds(smaller, expected)
    assert smaller(torch.zeros(1, 3, 16, 24)).tokens.shape == (1, 6, 24)
    assert "patches of 8×8 px, which do not divide 20×32 px" in refusal(spec, **stated, size=(20, 32))
    wide, expected = saved(tmp_path, kind, (16, 32))
    assert "which are no square: give the image size" in refusal(wide, **stated)
    backbone: Any = open_encoder(wide, **stated, size=(16, 32))
    assert (backbone.built_for, holds(backbone, expected)) == ((2, 4), True)


def test_constants_of_other_channels_are_asked_for(tmp_path: Path) -> None:
    spec = plain(tmp_path, vit(channels=1).network.state_dict())
    assert "has 1 channel, and ImageNet's constants are for 3" in refusal(spec, heads=3)
    assert "has 1 channel, not 3" in refusal(spec, heads=3, mean=[0.5] * 3, std=[0.5] * 3)
    assert "give both, or neither" in refusal(spec, heads=3, mean=[0.5])
    assert constants(open_encoder(spec, heads=3, mean=[0.5], std=[0.25])) == [-2, 2]


@pytest.mark.parametrize(
    "prefixes",
    [("",), ("module.",), ("backbone.",), ("teacher.backbone.", "student.backbone."), ("module.student.module.",)],
)
def test_wrappers_of_a_dino_state(tmp_path: Path, prefixes: tuple[str, ...]) -> None:
    state: dict[str, Tensor] = {}
    for seed, prefix in enumerate(prefixes):
        state |= {prefix + key: tensor for key, tensor in vit(seed).network.state_dict().items()}
    heads = {"head.mlp.0.weight": torch.zeros(2), "head.last_layer.weight_g": torch.zeros(2)}
    if len(prefixes) == 2:  # of a student beside its teacher nothing is looked at
        state["student.mask_token"] = torch.zeros(2)
    backbone = open_encoder(plain(tmp_path, {**state, **heads}), heads=3, **IMAGENET)
    assert holds(backbone, vit().network.state_dict())
    assert "normalise=imagenet (DINO's own)" in refusal(plain(tmp_path, {**state, **heads}), heads=3)
    assert "unknown: center" in refusal(plain(tmp_path, {**state, "center": torch.zeros(2)}), heads=3)
    lacking = {key: tensor for key, tensor in state.items() if not key.endswith("blocks.1.norm1.bias")}
    assert "missing: blocks.1.norm1.bias" in refusal(plain(tmp_path, lacking), heads=3)


def test_keys_that_belong_to_another_kind(tmp_path: Path) -> None:
    for kind, other in (("dmae", "mae"), ("mae", "dino"), ("mocov3", "dino"), ("mae", "dmjd"), ("dmjd", "dmae")):
        spec, _ = saved(tmp_path, kind)
        line = refusal(spec.replace(kind, other, 1), heads=3)
        assert f"{kind}.pth is not the checkpoint that was asked for" in line
    spec, _ = saved(tmp_path, "mae")
    assert "linear probes" in refusal(spec.replace("mae", "mocov3", 1), heads=3)


EXPORTS: dict[str, Any] = {
    "vit": lambda: create_vit("vit_micro", SIZE, [0.4] * 3, [0.2] * 3),
    "registers": lambda: create_vit("vit_base_patch16_reg4_gap_256", SIZE, [0.4] * 3, [0.2] * 3, overrides=VIT),
    "beit": lambda: create_beit("beit_base_patch16_224", SIZE, [0.4] * 3, [0.2] * 3, overrides=VIT),
    "convvit": lambda: create_convvit("convvit_micro", SIZE, [0.4] * 3, [0.2] * 3, overrides=CONVVIT),
    "swin": lambda: create_swin("swin_micro", SIZE, [0.4] * 3, [0.2] * 3),
    "cmt": lambda: create_hierarchical("cmt_micro", (64, 64), [0.4] * 3, [0.2] * 3),
    "resnet": lambda: create_hierarchical("resnet18", (64, 64), [0.4] * 3, [0.2] * 3),
}


@pytest.mark.parametrize("kind", EXPORTS)
def test_exports_of_runs(tmp_path: Path, kind: str) -> None:
    backbone = EXPORTS[kind]().eval()
    size = (64, 64) if kind in ("cmt", "resnet") else SIZE
    for parameter in backbone.network.parameters():
        nn.init.normal_(parameter, std=0.1)
    export_backbone(backbone, tmp_path / "export", size, [0.4] * 3, [0.2] * 3)
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    for folder in (tmp_path, tmp_path / "export"):
        opened: Any = open_encoder(f"run:{folder}").eval()  # type: ignore[attr-defined]
        assert holds(opened, backbone.network.state_dict())
        with torch.no_grad():
            assert torch.equal(opened(images).tokens, backbone(images).tokens)
    with torch.device("meta"):
        assert next(open_encoder(f"run:{tmp_path}").network.parameters()).device.type == "meta"
    assert "brings its own heads and mean" in refusal(f"run:{tmp_path}", heads=3, mean=MEAN, std=STD)


def test_exports_that_are_older_than_the_run_say_so(tmp_path: Path) -> None:
    """Whoever reads an export is told: teachers, tasks, figures. A run that ends writes it anew."""
    run = tmp_path / "run"
    export_backbone(EXPORTS["vit"](), run / "export", SIZE, [0.4] * 3, [0.2] * 3)
    last = run / "checkpoints" / "last" / "state.json"
    last.parent.mkdir(parents=True)
    last.write_bytes(b"")
    written = (run / "export" / "backbone.safetensors").stat().st_mtime
    for later, told in ((-5, False), (5, True)):
        os.utime(last, (written + later, written + later))
        loaded = loaded_of(open_encoder(f"run:{run}"))
        assert loaded
        assert ("its export is older than its last checkpoint; remask export" in loaded.line) == told


def test_runs_without_an_export(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").touch()
    line = refusal(f"run:{tmp_path}")
    assert f"{tmp_path} holds no export" in line
    assert f"remask resume {tmp_path}" in line
    export_backbone(EXPORTS["vit"](), tmp_path / "export", SIZE, [0.4] * 3, [0.2] * 3)
    assert "which do not divide 30×32 px" in refusal(f"run:{tmp_path}", size=(30, 32))
    config = tmp_path / "export" / "config.json"
    content = json.loads(config.read_text())
    config.write_text("{")
    assert "config.json is damaged: it has 1 bytes, not" in refusal(f"run:{tmp_path}")
    (config.parent / "manifest.json").unlink()  # as earlier versions exported
    config.write_text(json.dumps({**content, "arguments": {**content["arguments"], "depth": 2}}))
    assert "unknown: blocks.2" in refusal(f"run:{tmp_path}")
    for broken in ("{", "[]", json.dumps({**content, "image_size": None}), json.dumps({"model": "vit_micro"})):
        config.write_text(broken)
        assert "config.json is damaged" in refusal(f"run:{tmp_path}")


def test_exports_with_weights_that_are_none(tmp_path: Path) -> None:
    export_backbone(EXPORTS["vit"](), tmp_path, SIZE, [0.4] * 3, [0.2] * 3)
    weights = tmp_path / "backbone.safetensors"
    whole, state = weights.read_bytes(), {name: tensor.clone() for name, tensor in load_file(weights).items()}
    (tmp_path / "manifest.json").unlink()  # as earlier versions exported
    for faulty, complaint in (
        ({**state, "norm.weight": torch.full((128,), float("nan"))}, "not finite: norm.weight has 128 of 128"),
        ({**state, "norm.weight": torch.zeros(5)}, "of another shape: norm.weight [5], not [128]"),
        ({key: tensor for key, tensor in state.items() if key != "norm.bias"}, "missing: norm.bias"),
        ({**state, "norm.weight": torch.zeros(128, dtype=torch.int32)}, "of integers where weights were expected"),
    ):
        save_file(faulty, weights)
        assert complaint in refusal(f"run:{tmp_path}")
    for content, complaint in ((whole[:-5], "is damaged"), (whole[:9], "is damaged"), (b"", "is empty, 0 bytes")):
        weights.write_bytes(content)
        assert complaint in refusal(f"run:{tmp_path}")


def test_random_weights_are_the_networks_own() -> None:
    backbone: Any = open_encoder("untrained:vit_micro", size=SIZE)
    assert (backbone.width, backbone.patch, backbone.built_for) == (128, (4, 4), (8, 8))
    assert constants(backbone) == [-1, -1, -1, 1, 1, 1]
    assert constants(open_encoder("untrained:vit_micro", size=SIZE, mean=[0.5], std=[0.25])) == [-2, 2]
    assert "which do not divide 30×32 px" in refusal("untrained:vit_micro", size=(30, 32))
    assert "brings its own heads" in refusal("untrained:vit_micro", heads=3)
    with torch.device("meta"):
        assert open_encoder("untrained:vit_tiny_patch16_224").width == 192


def test_published_weights_are_fetched_for_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is fetched here: timm is asked for what it would have fetched."""
    name, made, asked = "vit_tiny_patch16_224", timm.create_model, []

    def create(model: str, pretrained: bool = False, **arguments: Any) -> nn.Module:
        asked.append((model, pretrained, arguments.get("img_size")))
        return made(model, pretrained=False, **arguments)

    monkeypatch.setattr(timm, "create_model", create)
    monkeypatch.setattr(encoders, "fetched", lambda make, spec: make())
    backbone: Any = open_encoder(f"timm:{name}", size=(64, 32))
    assert [call for call in asked if call[1]] == [(name, True, (64, 32))]
    assert backbone(torch.zeros(1, 3, 64, 32)).tokens.shape == (1, 8, 192)
    assert constants(backbone) == [-1, -1, -1, 1, 1, 1]
    asked.clear()
    with torch.device("meta"):
        assert open_encoder(f"timm:{name}").width == 192
    for keys in ({"size": (60, 64)}, {"heads": 3}, {"mean": MEAN, "std": STD}):
        refusal(f"timm:{name}", **keys)
    assert not [call for call in asked if call[1]]


def test_names_of_timm() -> None:
    assert "timm knows no model 'vit_bas'; did you mean" in refusal("timm:vit_bas")
    assert "did you mean vit_micro" in refusal("untrained:vit_micr")
    assert "is a ResNet, not a plain vision transformer" in refusal("timm:resnet18")
    assert "Invalid pretrained tag" in refusal("timm:vit_tiny_patch16_224.nobody")


@pytest.mark.parametrize("spec", ["", "mae", "mae:", "clip:x", ":x", "timm:"])
def test_an_unknown_specification_lists_the_kinds(spec: str) -> None:
    assert refusal(spec) == f"{spec!r} names no encoder; known are {', '.join(ENCODERS)}"


@pytest.mark.parametrize("kind", [*FILES, "run"])
def test_what_does_not_exist(kind: str) -> None:
    assert refusal(f"{kind}:absent.pth", heads=3).startswith("absent.pth does not exist")


def test_files_that_are_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(bytes(range(256)))
    for kind in FILES:
        assert "x.pth" in refusal(f"{kind}:{tmp_path}/x.pth", heads=3)
        assert "cannot be read" in refusal(f"{kind}:{tmp_path}", heads=3)
