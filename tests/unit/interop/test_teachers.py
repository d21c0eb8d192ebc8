"""interop/teachers.py: real weights where they lie beside the repository, else tiny networks; mistakes as one line."""

import io
import json
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from remask.errors import UserError
from remask.interop import fetching
from remask.interop.teachers import (
    MEAN,
    STD,
    Opened,
    autoencoder_teacher,
    clip_teacher,
    open_teacher,
    pad_as_tensorflow,
    timm_teacher,
    torchvision_teacher,
)
from remask.recipe.networks import TEACHERS
from remask.targets.map_teacher import MapTeacher

SHARED = Path(__file__).resolve().parents[3].parent / "shared"
WEIGHTS = SHARED / "data" / "weights"
MOBILENET, ENCODER = WEIGHTS / "mobilenet_v2_imagenet_deq.safetensors", WEIGHTS / "taef2_encoder.safetensors"
DECODER, PICTURES = WEIGHTS / "taef2_decoder.safetensors", SHARED / "data" / "imagenet1000" / "imagenet1000-000000.tar"


def needs(*paths: Path) -> None:
    for path in paths:
        if not path.is_file():
            pytest.skip(f"{path.name} does not lie beside the repository")


def photographs(count: int, size: int = 224) -> tuple[Tensor, list[int]]:
    """Pictures cut to a square [n, 3, size, size], uint8, and their classes."""
    needs(PICTURES)
    with tarfile.open(PICTURES) as tar:
        files = {name: tar.extractfile(name) for name in tar.getnames()[: 4 * count]}
        content = {name: file.read() for name, file in files.items() if file}
    names = [name for name in content if name.endswith(".jpg")][:count]
    images = []
    for name in names:
        picture = Image.open(io.BytesIO(content[name])).convert("RGB")
        square = ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC)
        images.append(torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8).view(size, size, 3))
    labels = [int(content[name.replace(".jpg", ".cls")]) for name in names]
    return torch.stack(images).permute(0, 3, 1, 2), labels


def target_of(opened: Opened, patch: int = 16) -> MapTeacher:
    return MapTeacher(
        opened.network, (patch, patch), MEAN, STD,
        teacher_mean=opened.mean, teacher_std=opened.std, size=opened.size, width=opened.width, name="it",
    )  # fmt: skip


def one_line(spec: str, weights: str | None, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as caught:
        open_teacher(spec, weights)
    assert "\n" not in str(caught.value)


def test_mobilenet_of_the_shared_weights_is_a_teacher_on_the_patch_grid() -> None:
    needs(MOBILENET)
    opened = open_teacher("torchvision:mobilenet_v2-tf", str(MOBILENET))
    assert (opened.width, opened.size, opened.mean) == (96, (224, 224), (0.5, 0.5, 0.5))
    images = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)
    seen = opened.network(images / 127.5 - 1)
    assert seen.shape == (1, 96, 14, 14)
    tokens = target_of(opened)(images)
    assert tokens.shape == (1, 196, 96)
    plain = nn.functional.layer_norm(seen.flatten(2).transpose(1, 2), (96,))
    assert torch.allclose(tokens, plain, atol=1e-4)


def test_mobilenet_knows_photographs_and_wants_the_padding_it_was_trained_with() -> None:
    """Through all layers and the file's own classifier: a wrong constant, order or padding costs most answers."""
    needs(MOBILENET)
    images, labels = photographs(16)
    state = load_file(MOBILENET)
    right = {}
    for tensorflow in (True, False):
        opened = torchvision_teacher("mobilenet_v2", MOBILENET, layer=18, tensorflow=tensorflow)
        with torch.no_grad():
            pooled = opened.network(images / 127.5 - 1).mean((2, 3))
        logits = pooled @ state["classifier.1.weight"].float().T + state["classifier.1.bias"].float()
        right[tensorflow] = int((logits.argmax(1) == torch.tensor(labels)).sum())
        margin = logits.log_softmax(1)[range(len(labels)), labels].mean()
        right[tensorflow, "margin"] = float(margin)
    assert right[True] >= 12
    assert right[True, "margin"] > right[False, "margin"]


def test_autoencoder_latents_decode_to_the_picture() -> None:
    """Encoder here, decoder by hand from its file: the round trip is the picture again."""
    needs(ENCODER, DECODER)
    images, _ = photographs(1, size=128)
    opened = open_teacher("tae:", str(ENCODER))
    assert (opened.width, opened.size, opened.mean, opened.std) == (32, None, (0.0,) * 3, (1.0,) * 3)
    with torch.no_grad():
        latents = opened.network(images / 255)
        assert latents.shape == (1, 32, 16, 16)
        decoded = decode(latents, load_file(DECODER)).clamp(0, 1)
    noise = (decoded - images / 255).square().mean()
    assert float(-10 * noise.log10()) > 22


def decode(x: Tensor, state: dict[str, Tensor]) -> Tensor:
    """The shared decoder, layer by layer in the order of its keys' numbers; what lies between has no weights."""
    x = torch.tanh(x / 3) * 3
    numbers = sorted({int(key.split(".")[0]) for key in state})
    for place, number in enumerate(numbers):
        part = {key.split(".", 1)[1]: value.float() for key, value in state.items() if key.startswith(f"{number}.")}
        if "conv.0.weight" in part:
            if "pool.0.weight" in part:
                wide = nn.functional.conv2d(x, part["pool.0.weight"])
                wide = nn.functional.group_norm(wide, 4, part["pool.1.weight"], part["pool.1.bias"]).relu()
                x = x + nn.functional.conv2d(wide, part["pool.3.weight"])
            inner = x
            for i in (0, 2, 4):
                inner = inner if i == 0 else inner.relu()
                inner = nn.functional.conv2d(inner, part[f"conv.{i}.weight"], part[f"conv.{i}.bias"], padding=1)
            x = (inner + x).relu()
            continue
        if "bias" not in part:  # enlarged first
            x = nn.functional.interpolate(x, scale_factor=2.0)
        x = nn.functional.conv2d(x, part["weight"], part.get("bias"), padding=1)
        x = x.relu() if place == 0 else x
    return x


def test_timm_tokens_are_a_map_without_class_token_before_the_final_norm(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224").eval()
    state = {key: tensor for key, tensor in model.state_dict().items() if not key.startswith("head.")}
    save_file(state, tmp_path / "vit.safetensors")
    opened = open_teacher("timm:vit_tiny_patch16_224", str(tmp_path / "vit.safetensors"))
    assert (opened.width, opened.size) == (192, (224, 224))
    assert opened.mean == tuple(model.pretrained_cfg["mean"])
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        seen = opened.network(x)
        assert seen.shape == (1, 192, 14, 14)
        tokens = model.norm(seen.flatten(2).transpose(1, 2))
        assert torch.allclose(tokens, model.forward_features(x)[:, 1:], atol=1e-5)


def test_timm_feature_map_of_a_convolutional_network(tmp_path: Path) -> None:
    import timm

    model = timm.create_model("resnet18").eval()
    path = tmp_path / "resnet.safetensors"
    save_file({**model.state_dict(), "fc.weight": torch.zeros(7, 512), "fc.bias": torch.zeros(7)}, path)
    opened = timm_teacher("resnet18", path)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(opened.network(x), model.forward_features(x), atol=1e-5)
    assert opened.width == 512
    assert not any(parameter.requires_grad for parameter in opened.network.parameters())
    lacking = {key: tensor for key, tensor in model.state_dict().items() if not key.startswith("layer4.1.conv2")}
    save_file(lacking, path)
    one_line("timm:resnet18", str(path), "missing: layer4.1.conv2.weight")


def test_torchvision_layers() -> None:
    with torch.device("meta"):  # nothing is fetched where costs are counted
        assert torchvision_teacher().width == 96
        assert torchvision_teacher(layer=3).width == 24
        assert timm_teacher("resnet18").width == open_teacher("untrained:resnet18", None).width == 512
        with pytest.raises(UserError, match="mobilenet_v2 has layers 0 to 18, not 19"):
            torchvision_teacher(layer=19)
        with pytest.raises(UserError, match="has no `features`"):
            torchvision_teacher("resnet18")


def test_padding_as_tensorflow_moves_the_windows_of_even_sizes() -> None:
    """SAME at stride 2, kernel 3: nothing before the picture, one row and column after it; kernel 5: one and two."""
    for side, before, after in ((3, 0, 1), (5, 1, 2)):
        conv = nn.Conv2d(1, 1, side, stride=2, padding=side // 2, bias=False)
        kept = nn.Conv2d(1, 1, 3, padding=1)
        x = torch.randn(1, 1, 8, 8)
        expected = nn.functional.conv2d(nn.functional.pad(x, (before, after, before, after)), conv.weight, stride=2)
        network = nn.Sequential(conv, nn.Sequential(kept))
        pad_as_tensorflow(network)
        assert torch.allclose(network[0](x), expected)
        assert network[1][0] is kept  # type: ignore[index]


def test_tiny_autoencoder_of_four_channels_without_pooling(tmp_path: Path) -> None:
    """TAESD's first layout; its sizes are read from the file."""
    shapes = {"0": (8, 3), "2": (8, 8), "6": (8, 8), "10": (8, 8), "14": (4, 8)}
    state = {f"{key}.weight": torch.randn(*shape, 3, 3) for key, shape in shapes.items()}
    state |= {"0.bias": torch.zeros(8), "14.bias": torch.zeros(4)}
    for block in (1, 3, 4, 5, 7, 8, 9, 11, 12, 13):
        for i in (0, 2, 4):
            state |= {f"{block}.conv.{i}.weight": torch.randn(8, 8, 3, 3), f"{block}.conv.{i}.bias": torch.zeros(8)}
    path = tmp_path / "tae.safetensors"
    save_file(state, path)
    opened = autoencoder_teacher(path)
    assert opened.width == 4
    assert opened.network(torch.rand(1, 3, 32, 48)).shape == (1, 4, 4, 6)
    save_file({**state, "15.weight": torch.zeros(1)}, path)
    one_line("tae:", str(path), "unknown: 15.weight")
    save_file({"0.weight": torch.zeros(1)}, path)
    one_line("tae:", str(path), "no encoder of a tiny autoencoder")


def test_clip_patch_tokens_of_a_tiny_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8
    )
    torch.manual_seed(0)
    model = transformers.CLIPVisionModel(config).eval()
    model.save_pretrained(tmp_path)
    opened = open_teacher(f"clip:{tmp_path}", None)
    assert (opened.width, opened.size) == (32, (32, 32))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        seen, tokens = opened.network(x), model(x).last_hidden_state
    assert seen.shape == (2, 32, 4, 4)
    assert torch.allclose(seen[:, :, 1, 2], tokens[:, 1 + 4 * 1 + 2], atol=1e-5)
    with torch.device("meta"):
        assert clip_teacher(str(tmp_path)).width == 32
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip_vision_model", "hidden_size": 33}))
    one_line(f"clip:{tmp_path}", None, "could not be opened")
    one_line("clip:nobody/nothing-of-this-name", None, "could not be opened")


def test_open_clip_map_of_a_tiny_tower(tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip", reason="open_clip is not installed")
    vision = {"image_size": 32, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
    (tmp_path / "remask-tiny.json").write_text(json.dumps({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(tmp_path)
    model = open_clip.create_model("remask-tiny").eval()
    torch.save(model.state_dict(), tmp_path / "tiny.pt")
    opened = open_teacher("open_clip:remask-tiny", str(tmp_path / "tiny.pt"))
    assert (opened.width, opened.size) == (32, (32, 32))
    x = torch.randn(2, 3, 32, 32)
    blocks: list[Tensor] = []
    model.visual.transformer.register_forward_hook(lambda module, args, out: blocks.append(out))
    with torch.no_grad():
        seen, _ = opened.network(x), model.visual(x)
    assert seen.shape == (2, 32, 4, 4)
    assert torch.allclose(seen.flatten(2).transpose(1, 2), blocks[0][:, 1:], atol=1e-5)
    with torch.device("meta"):
        assert open_teacher("open_clip:remask-tiny", None).width == 32
    one_line("open_clip:remask-tiny", None, "names no weights")
    one_line("open_clip:nothing", None, "open_clip knows no model 'nothing'")


@pytest.mark.parametrize("spec", ["dino:vit", "timm", "timm:", "tae:x", ""])
def test_an_unknown_specification_lists_the_known(spec: str) -> None:
    one_line(spec, None, rf"names no teacher; known are {', '.join(TEACHERS)}")


def test_unknown_names_and_files() -> None:
    one_line("timm:resnet1", None, "timm knows no model 'resnet1'; did you mean resnet")
    one_line("torchvision:mobile", None, "torchvision knows no model 'mobile'")
    one_line("tae:", None, "needs a file")
    one_line("timm:resnet18", "absent.safetensors", "absent.safetensors does not exist")


@pytest.mark.parametrize(
    ("package", "spec"), [("transformers", "clip:x/y"), ("open_clip", "open_clip:ViT-B-32/openai")]
)
def test_a_missing_package_says_what_to_install(package: str, spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    one_line(spec, None, rf"needs the package {package}: pip install remask\[teachers\]")


def test_offline_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that cannot fetch raises all sorts of errors, some of many lines."""
    import timm

    def fail(*args: object, **options: object) -> nn.Module:
        raise ConnectionError("no route to host\n  while asking\n  somebody")

    monkeypatch.setattr(timm, "create_model", fail)
    one_line(
        "timm:resnet18", None, r"timm:resnet18 could not be opened \(no route to host\); offline, give its weights"
    )


def test_an_unreachable_hub_is_not_asked_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    def no_name(*_: object) -> None:
        raise OSError("no name server")

    before = constants.HF_HUB_OFFLINE
    monkeypatch.setattr(fetching.socket, "getaddrinfo", no_name)
    assert fetching.fetched(lambda: constants.HF_HUB_OFFLINE, "timm:any") is True
    assert before == constants.HF_HUB_OFFLINE
