"""state_dicts.py: the network of a file of every layout, whatever its entry and prefix; what is beside it is named."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from remask.backbones.beit import create_beit
from remask.backbones.convvit import create_convvit
from remask.backbones.hierarchical import create_hierarchical
from remask.backbones.swin import create_swin
from remask.backbones.vit import create_vit
from remask.errors import UserError
from remask.interop import convmae, fastmim, mae
from remask.interop.encoders import open_encoder
from remask.interop.fastmim_encoders import encoder_state
from remask.interop.loaded import loaded_of
from remask.interop.mae import MEAN, STD
from remask.interop.state_dicts import find

SIZE = (32, 32)
SMALL = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}


def vit(size: tuple[int, int] = SIZE) -> Any:
    return create_vit("vit_base_patch16_224", size, MEAN, STD, overrides=SMALL)


def swin() -> Any:
    return create_swin("swin_micro", SIZE, MEAN, STD)


def convvit() -> Any:
    return create_convvit("convvit_micro", SIZE, MEAN, STD)


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: tensor for key, tensor in state.items()}


def slowfast(network: nn.Module) -> dict[str, Tensor]:
    state = network.state_dict()
    return {
        key.replace("norm.", "pred_head.transforms.0.0.") if key.startswith("norm.") else key: t
        for key, t in state.items()
    }


KINDS: dict[str, tuple[Callable[[], Any], Callable[[Any], dict[str, Tensor]], dict[str, Any]]] = {
    "mae": (vit, lambda b: b.network.state_dict(), {"heads": 3}),
    "dmae": (vit, lambda b: b.network.state_dict(), {"heads": 3}),
    "mocov3": (vit, lambda b: prefixed(b.network.state_dict(), "base_encoder."), {"heads": 3}),
    "dino": (vit, lambda b: b.network.state_dict(), {"heads": 3, "normalise": "imagenet"}),
    "convmae": (convvit, lambda b: b.network.state_dict(), {"heads": 4}),
    "dmjd": (convvit, lambda b: b.network.state_dict(), {"heads": 4}),
    "beit": (lambda: create_beit("beit_micro", SIZE, MEAN, STD), lambda b: b.network.state_dict(), {}),
    "maskfeat": (vit, lambda b: slowfast(b.network), {"heads": 3}),
    "simmim": (swin, encoder_state, {"size": SIZE}),
    "fastmim": (vit, lambda b: b.network.state_dict(), {"heads": 3}),
    "fastmim:cmt": (lambda: create_hierarchical("cmt_micro", (64, 64), MEAN, STD), encoder_state, {}),
    "fastmim:swin": (swin, encoder_state, {"size": SIZE}),
}
"""A backbone, its state in the official names of a layout, and what a specification has to state."""

PREFIXES = (
    "",
    "module.",
    "model.",
    "_orig_mod.",
    "student.",
    "net.",
    "module.model._orig_mod.",
    "student.module.",
    "a.b.",
)
WRAPPED: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "bare": lambda state: state,
    "model": lambda state: {"model": state, "epoch": 3, "best_acc": np.float64(71)},
    "state_dict": lambda state: {"state_dict": state, "args": argparse.Namespace(path=Path("/x"))},
    "deep": lambda state: {"checkpoint": {"model_state_dict": state}, "optimizer": {"state": {0: torch.zeros(2)}}},
    "another name": lambda state: {"my_net": state, "loss": torch.tensor(0.5)},
}


def filled(backbone: Any) -> Any:
    torch.manual_seed(0)
    for parameter in backbone.network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return backbone


def opened(kind: str, path: Path, content: Any, **stated: Any) -> Any:
    torch.save(content, path)
    return open_encoder(f"{kind.partition(':')[0]}:{path}", **stated)


def alike(one: Any, other: Any) -> bool:
    own, theirs = one.network.state_dict(), other.network.state_dict()
    return own.keys() == theirs.keys() and all(torch.equal(own[key], theirs[key]) for key in own)


@pytest.mark.parametrize("kind", KINDS)
def test_every_layout_under_every_prefix_and_entry(tmp_path: Path, kind: str) -> None:
    make, official, stated = KINDS[kind]
    backbone = filled(make())
    state = official(backbone)
    for prefix in PREFIXES:
        found = opened(kind, tmp_path / "x.pth", {"model": prefixed(state, prefix)}, **stated)
        assert alike(found, backbone), prefix
        loaded = loaded_of(found)
        assert loaded
        assert (f"the prefix {prefix}" in loaded.line) == bool(prefix), loaded.line
        assert f"{len(backbone.network.state_dict())} tensors" in loaded.line
    for name, wrap in WRAPPED.items():
        assert alike(opened(kind, tmp_path / "x.pth", wrap(prefixed(state, "module.")), **stated), backbone), name


@pytest.mark.parametrize("prefix", ["encoder.", "backbone.", "model.backbone.", "module.encoder."])
@pytest.mark.parametrize("kind", ["mae", "dino", "convmae", "beit", "simmim", "fastmim", "fastmim:cmt", "maskfeat"])
def test_prefixes_that_some_layouts_have_themselves(tmp_path: Path, kind: str, prefix: str) -> None:
    make, official, stated = KINDS[kind]
    backbone = filled(make())
    own = {key.removeprefix("encoder."): tensor for key, tensor in official(backbone).items()}
    assert alike(opened(kind, tmp_path / "x.pth", prefixed(own, prefix), **stated), backbone)


@pytest.mark.parametrize("kind", [*KINDS])
def test_heads_of_fine_tuned_files_are_named(tmp_path: Path, kind: str) -> None:
    make, official, stated = KINDS[kind]
    backbone = filled(make())
    own = {key.removeprefix("base_encoder.").removeprefix("encoder."): t for key, t in official(backbone).items()}
    heads = {"head.weight": torch.zeros(5, 24), "head.bias": torch.zeros(5), "head_dist.weight": torch.zeros(5, 24)}
    probe = {
        "head.0.running_mean": torch.zeros(24),
        "head.0.num_batches_tracked": torch.tensor(3),
        "head.1.bias": torch.zeros(5),
    }
    for beside in (heads, probe, {"fc.weight": torch.zeros(5, 24)}, {"classifier.bias": torch.zeros(5)}):
        for prefix in ("", "module."):
            found = opened(kind, tmp_path / "x.pth", {"model": prefixed({**own, **beside}, prefix)}, **stated)
            assert alike(found, backbone)
            owner = next(iter(beside)).partition(".")[0]
            assert f"left out: {owner}" in (loaded_of(found) or pytest.fail("nothing")).line


@pytest.mark.parametrize("kind", ["mae", "dmae", "mocov3", "dino", "convmae", "maskfeat", "fastmim"])
def test_a_mean_norm_in_the_place_of_the_last_norm(tmp_path: Path, kind: str) -> None:
    """Networks that pool by the mean have fc_norm, which belongs to the head: the last norm starts anew."""
    make, _, stated = KINDS[kind]
    backbone = filled(make())
    width = backbone.width
    state = {key: tensor for key, tensor in backbone.network.state_dict().items() if not key.startswith("norm.")}
    state |= {"fc_norm.weight": torch.full((width,), 3.0), "fc_norm.bias": torch.ones(width)}
    found = opened(kind, tmp_path / "x.pth", {"model": {**state, "head.bias": torch.zeros(5)}}, **stated)
    network = found.network.state_dict()
    assert all(torch.equal(network[key], tensor) for key, tensor in state.items() if key in network)
    assert (network["norm.weight"].unique().tolist(), network["norm.bias"].unique().tolist()) == ([1], [0])
    line = (loaded_of(found) or pytest.fail("nothing")).line
    assert f"{len(network) - 2} tensors" in line
    assert "its final norm is new, for the file has fc_norm in its place" in line
    assert "left out: fc_norm (2 tensors), head" in line
    lacking = {key: tensor for key, tensor in state.items() if not key.startswith("fc_norm")}
    with pytest.raises(UserError, match=r"missing: (norm|pred_head)"):
        opened(kind, tmp_path / "x.pth", {"model": lacking}, **stated)


AVERAGED = ("ema", "model_ema", "ema_state_dict", "state_dict_ema", "teacher", "ema_model", "target_encoder")


@pytest.mark.parametrize("name", AVERAGED)
def test_a_moving_average_is_preferred_and_said(tmp_path: Path, name: str) -> None:
    state = filled(vit()).network.state_dict()
    zeros = {key: torch.zeros_like(tensor) for key, tensor in state.items()}
    decoder = {"decoder_embed.bias": torch.zeros(3), "mask_token": torch.zeros(1, 1, 3)}
    for content in (
        {"model": {**zeros, **decoder}, name: state},
        {name: prefixed(state, "module."), "state_dict": zeros, "epoch": 1},
        {"model": zeros, name: {"module": state, "decay": 0.999}},
        {**prefixed(zeros, "student."), **prefixed(state, f"{name}.")},
        {**prefixed(zeros, "model."), **prefixed(state, f"{name}.module."), "n_averaged": torch.tensor(3)},
    ):
        found = opened("mae", tmp_path / "x.pth", content, heads=3)
        assert torch.equal(found.network.state_dict()["blocks.1.mlp.fc1.weight"], state["blocks.1.mlp.fc1.weight"])
        line = (loaded_of(found) or pytest.fail("nothing")).line
        assert "a moving average, was preferred to" in line
        assert name in line


def test_what_is_no_average_of_the_network_is_passed_over(tmp_path: Path) -> None:
    state = filled(vit()).network.state_dict()
    other = create_vit("vit_base_patch16_224", SIZE, MEAN, STD, overrides={**SMALL, "depth": 3, "embed_dim": 48})
    some = {key: torch.zeros_like(tensor) for key, tensor in state.items() if not key.startswith("blocks.1")}
    for average in (other.network.state_dict(), some, None, {}, {"decay": 0.9}, [torch.zeros(2)]):
        found = opened("mae", tmp_path / "x.pth", {"model": state, "ema": average}, heads=3)
        assert all(torch.equal(found.network.state_dict()[key], tensor) for key, tensor in state.items())
        line = (loaded_of(found) or pytest.fail("nothing")).line
        assert ('"ema" was passed over' in line) == (isinstance(average, dict) and len(average) > 1)


def refusal(tmp_path: Path, content: Any, kind: str = "mae") -> str:
    with pytest.raises(UserError) as caught:
        opened(kind, tmp_path / "x.pth", content, heads=3)
    assert "\n" not in str(caught.value)
    assert "x.pth" in str(caught.value)
    return str(caught.value)


def test_the_entry_that_is_no_tensor_is_named(tmp_path: Path) -> None:
    state = dict(vit().network.state_dict())
    for wrong, called in (
        (np.zeros((24, 24)), "a numpy array"), (None, "None"), ([1, 2], "a list"), ({"a": 1}, "a dict"),
        (torch.zeros(3, 3).to_sparse(), "a sparse or quantised tensor"), (3.0, "a float"),
        (nn.Linear(2, 2), "a torch.nn.modules.linear.Linear"),
    ):  # fmt: skip
        line = refusal(tmp_path, {"model": {**state, "blocks.0.norm1.weight": wrong}, "epoch": 3})
        assert f'"blocks.0.norm1.weight" under "model" is {called}' in line
    for beside in ({"epoch": 3}, {"note": "x"}, {"best": np.float64(3)}, {"config": {"a": 1}}):
        found = opened("mae", tmp_path / "x.pth", {**state, **beside}, heads=3)
        assert f"left out: {next(iter(beside))}" in (loaded_of(found) or pytest.fail("nothing")).line


def test_what_holds_no_weights_says_what_it_holds(tmp_path: Path) -> None:
    assert "holds no weights: it is an empty dictionary" in refusal(tmp_path, {})
    assert "holds no weights but a list" in refusal(tmp_path, [torch.zeros(2)])
    assert "holds no weights but a Tensor" in refusal(tmp_path, torch.zeros(2))
    assert 'its entry "model" is None' in refusal(tmp_path, {"epoch": 1, "model": None})
    assert 'its entry "model" is a torch.nn.modules.linear.Linear' in refusal(tmp_path, {"model": nn.Linear(2, 2)})
    assert "holds a torch.nn.modules.linear.Linear as a whole: save its state_dict()" in refusal(
        tmp_path, nn.Linear(2, 2)
    )
    assert 'its entry "epoch" is an int, "name" is a str' in refusal(tmp_path, {"epoch": 1, "name": "x"})
    assert "missing: patch_embed.proj.weight" in refusal(tmp_path, {"model": {"conv1.weight": torch.zeros(2)}})


def test_what_is_not_finite_is_refused_where_it_is_needed(tmp_path: Path) -> None:
    state = dict(vit().network.state_dict())
    bad = {**state, "blocks.1.mlp.fc1.weight": torch.full((96, 24), float("nan"))}
    assert "not finite: blocks.1.mlp.fc1.weight has 2,304 of 2,304" in refusal(tmp_path, {"model": bad})
    opened("mae", tmp_path / "x.pth", {"model": {**state, "head.bias": torch.full((3,), float("nan"))}}, heads=3)


def test_whole_numbers_and_half_ones(tmp_path: Path) -> None:
    state = filled(vit()).network.state_dict()
    found = opened("mae", tmp_path / "x.pth", {key: tensor.half() for key, tensor in state.items()}, heads=3)
    assert all(torch.equal(found.network.state_dict()[key], tensor.half().float()) for key, tensor in state.items())
    assert next(iter(found.network.parameters())).dtype == torch.float32
    line = refusal(tmp_path, {**state, "norm.bias": torch.zeros(24, dtype=torch.int8)})
    assert "of integers where weights were expected: norm.bias" in line


def test_several_networks_alike_are_not_guessed_between(tmp_path: Path) -> None:
    state = vit().network.state_dict()
    assert "holds several networks, left.*, right.*" in refusal(
        tmp_path, {**prefixed(state, "left."), **prefixed(state, "right.")}
    )
    one = opened("mae", tmp_path / "x.pth", {**prefixed(state, "model."), **prefixed(state, "frozen.")}, heads=3)
    assert "frozen (" in (loaded_of(one) or pytest.fail("nothing")).line


def test_tokens_that_have_no_place(tmp_path: Path) -> None:
    state = dict(vit().network.state_dict())
    assert "holds a ViT with dist_token" in refusal(tmp_path, {**state, "dist_token": torch.zeros(1, 1, 24)})


def test_all_of_a_file_is_wanted_where_it_goes_on_training() -> None:
    state = vit().network.state_dict()
    assert "head.bias" in find({**state, "head.bias": torch.zeros(2)}, classifiers=True).state
    assert "head.bias" not in find({**state, "head.bias": torch.zeros(2)}).state
    for module in (mae, convmae, fastmim):
        with pytest.raises(UserError):
            module.load({**state, "head.bias": torch.zeros(2)}, heads=3, decoder_heads=2)


def test_settings_of_an_encoder(tmp_path: Path) -> None:
    backbone = filled(vit())
    torch.save(backbone.network.state_dict(), tmp_path / "x.pth")
    spec = f"dino:{tmp_path}/x.pth,heads=3,normalise=half"
    assert alike(open_encoder(spec), backbone)
    assert alike(open_encoder(spec, heads=3), backbone)
    for stated, complaint in (
        ({"heads": 6}, "says heads=3, and heads 6"),
        ({"normalise": "clip"}, "says normalise=half"),
    ):
        with pytest.raises(UserError, match=complaint):
            open_encoder(spec, **stated)
    with pytest.raises(UserError, match="normalise=halves is not known; choose imagenet, half, clip"):
        open_encoder(f"dino:{tmp_path}/x.pth,heads=3,normalise=halves")
