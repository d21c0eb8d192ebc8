"""evaluation/layers.py: every layer as if read alone, the best chosen without the test images, a picture of it."""

import io
import json
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from remask.backbones.swin import create_swin
from remask.backbones.vit import ViT, create_vit
from remask.errors import UserError
from remask.evaluation.probing.features import extract
from remask.evaluation.probing.layers import collect_layers, every_layer, layers_figure, probe_layers
from remask.evaluation.probing.logistic_regression import linear_probe


class Some(NamedTuple):
    images: Tensor
    labels: Tensor | None


def backbone(seed: int = 1) -> ViT:
    torch.manual_seed(seed)
    sizes = {"embed_dim": 16, "depth": 3, "num_heads": 2}
    return create_vit("vit_micro", (8, 8), [0.5], [0.25], overrides=sizes, drop_path=0.5)


def boards(n: int, seed: int, labels: tuple[int, ...] = (3, 7)) -> list[Some]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % len(labels)
    noise = torch.randint(0, 120, (n, 1, 8, 8), generator=generator)
    board = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * 80
    images = (noise + board * y[:, None, None, None] + 40 * (1 - y[:, None, None, None])).to(torch.uint8)
    known = torch.tensor(labels)[y]
    return [Some(a, b) for a, b in zip(images.split(32), known.split(32), strict=True)]


def run(train: list[Some], val: list[Some], **keys: Any) -> dict[str, Any]:
    return probe_layers({"top1": backbone(1), "untrained": backbone(2)}, lambda: train, lambda: val, **keys)


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    return run(boards(80, 0), boards(41, 1), k=5)


def test_every_layer_once(result: dict[str, Any]) -> None:
    assert every_layer(backbone()) == [0, 1, 2, -1]
    assert set(result["layers"]) == {"top1", "untrained"}
    for table in result["layers"].values():
        assert [row["layer"] for row in table] == [0, 1, 2, -1]
    assert json.loads(json.dumps(result)) == result
    assert run(boards(80, 0), boards(41, 1), k=5) == result


def test_one_pass_reads_what_each_pass_alone_would(result: dict[str, Any]) -> None:
    network, given = backbone(), boards(80, 0)
    found = collect_layers({"top1": network}, given, [2, -1, 0])
    for layer, features in found.x["top1"].items():
        alone, _ = extract(network, given, layer=layer)
        assert features.dtype == torch.float16
        torch.testing.assert_close(features.float(), alone, atol=5e-3, rtol=2e-3)
    asked, asked_y = collect_layers({"top1": network}, boards(41, 1), [1]), boards(41, 1)
    train = collect_layers({"top1": network}, given, [1])
    y, test_y = ((torch.cat([p.labels for p in parts]) == 7).long() for parts in (given, asked_y))  # type: ignore[misc]
    linear = linear_probe(train.x["top1"][1].float(), y, asked.x["top1"][1].float(), test_y)
    assert result["layers"]["top1"][1]["linear"] == round(linear.accuracy, 2)


def test_images_are_decoded_once() -> None:
    passes: list[int] = []

    def source() -> list[Some]:
        passes.append(1)
        return boards(80, 0)

    probe_layers({"top1": backbone(1), "untrained": backbone(2)}, source, source, k=5)
    assert len(passes) == 2


def test_best_is_chosen_on_held_out_training_images(result: dict[str, Any]) -> None:
    for name, table in result["layers"].items():
        for kind in ("linear", "knn"):
            best = result["best"][name][kind]
            assert best["held_out"] == max(row[f"held_out_{kind}"] for row in table)
            row = next(row for row in table if row["layer"] == best["layer"])
            assert best["test"] == row[kind]
    wrong = [Some(part.images, None if part.labels is None else 10 - part.labels) for part in boards(41, 1)]
    other = run(boards(80, 0), wrong, k=5)
    for name, best in result["best"].items():
        for kind in ("linear", "knn"):
            assert other["best"][name][kind]["layer"] == best[kind]["layer"]
            assert other["best"][name][kind]["held_out"] == best[kind]["held_out"]


def test_layers_of_different_widths() -> None:
    torch.manual_seed(0)
    sizes = {"patch_size": 2, "embed_dim": 8, "depths": (1, 1), "num_heads": (2, 2), "window_size": 2}
    swin = create_swin("swin_micro", (8, 8), [0.5], [0.25], overrides=sizes)
    found = probe_layers({"top1": swin}, lambda: boards(40, 0), lambda: boards(20, 1), k=5)
    assert [row["width"] for row in found["layers"]["top1"]] == [8, 16, 16]


def test_picture_has_a_line_for_each_network_and_classifier(result: dict[str, Any]) -> None:
    picture = np.asarray(Image.open(io.BytesIO(layers_figure(result, "toy"))).convert("RGB")).astype(int)
    assert picture.shape[0] > 300
    for colour in ((63, 131, 200), (217, 130, 43)):
        assert (np.abs(picture - colour).max(-1) < 8).sum() > 100


@pytest.mark.parametrize(
    ("train", "keys", "message"),
    [
        ([Some(part.images, None) for part in boards(40, 0)], {}, "no labels"),
        (boards(40, 0, (3,)), {}, "of one class"),
        (boards(40, 0), {"layers": [3]}, "layer 3 does not exist"),
        (boards(40, 0), {"layers": [1, 1]}, "each layer once"),
        (boards(40, 0), {"layers": []}, "at least one"),
        (boards(40, 0), {"memory_gb": 1e-6}, r"after 32 images, more than 1e-06 GB"),
        ([], {}, "no image"),
    ],
)
def test_mistakes_are_one_line(train: list[Some], keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        run(train, boards(20, 1), **{"k": 5, **keys})
    assert "\n" not in str(caught.value)
