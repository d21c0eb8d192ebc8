"""evaluation/detector.py: Mask R-CNN on our backbones: losses, gradients, slices, boxes that find their way back."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Generator, Tensor
from torchvision.ops import box_iou

from remask.backbones.swin import create_swin
from remask.backbones.vit import create_vit
from remask.downstream.detect.detector import LOSSES, Detector, Exact, Targets, on_image
from remask.errors import UserError

MEAN = STD = (0.5, 0.5, 0.5)
SIZE = (64, 64)


class Batch(NamedTuple):
    images: Tensor
    labels: list[dict[str, Any]]


def batch(n: int = 3, masks: bool = True) -> Batch:
    """Pictures of noise with two squares each, and no instance on the last."""
    images = torch.randint(256, (n, 3, *SIZE), dtype=torch.uint8, generator=Generator().manual_seed(0))
    labels = []
    for i in range(n):
        boxes = torch.tensor([[4, 4, 24, 24], [30 + i, 20, 60, 50]], dtype=torch.float32)[: 0 if i == n - 1 else 2]
        drawn = torch.zeros(len(boxes), *SIZE, dtype=torch.uint8)
        for mask, (x0, y0, x1, y1) in zip(drawn, boxes.int().tolist(), strict=True):
            mask[y0:y1, x0:x1] = 1
        label = {"boxes": boxes, "labels": torch.tensor([1, 2])[: len(boxes)], "image_id": i, "size": SIZE}
        labels.append({**label, "masks": drawn} if masks else label)
    return Batch(images, labels)


def detector(kind: str = "vit", **keys: Any) -> Detector:
    torch.manual_seed(0)
    if kind == "vit":
        overrides: dict[str, Any] = {"patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2}
        backbone: Any = create_vit("vit_micro", SIZE, MEAN, STD, overrides=overrides)
    else:
        backbone = create_swin("swin_micro", SIZE, MEAN, STD)
    return Detector(backbone, 2, SIZE, channels=16, **{"anchor": 4.0, **keys})


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_named_losses_and_gradients_everywhere(kind: str) -> None:
    model, data = detector(kind).train(), batch()
    losses = model(data.images, model.draw(data, Generator()))
    assert list(losses) == [*LOSSES.values(), "total"]
    torch.testing.assert_close(losses["total"], sum(losses[name] for name in LOSSES.values()))
    losses["total"].backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    named = [name for name, _ in model.named_parameters()]
    assert len(named) == len(model.state_dict()) or kind == "swin"  # nothing twice; Swin has buffers


def test_boxes_alone() -> None:
    model, data = detector(masks=False).train(), batch(masks=False)
    losses = model(data.images, model.draw(data, Generator()))
    assert list(losses) == [name for name in LOSSES.values() if name != "masks"] + ["total"]
    assert "masks" not in model.detect(data.images)[0]
    with pytest.raises(UserError, match="no masks"):
        detector().draw(data, Generator())


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_slices_are_those_of_tensor_split(parts: int) -> None:
    targets = detector().draw(batch(3), Generator())
    pieces = targets.split(parts)
    assert [len(piece.images) for piece in pieces] == [len(t) for t in torch.arange(3).tensor_split(parts)]
    assert [id(p) for piece in pieces for p in piece.images] == [id(p) for p in targets.images]
    assert isinstance(pieces[0], Targets)


def test_a_step_is_decided_by_its_draw() -> None:
    """And by nothing of the global stream; without seeds of the pictures by that alone."""
    model, data = detector().train(), batch()
    totals = []
    for seed in (1, 1, 2):
        torch.manual_seed(5 + len(totals))
        draw = model.draw(data, Generator().manual_seed(seed))
        totals.append(float(model(data.images, draw)["total"]))
    assert totals[0] == totals[1] != totals[2]
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        totals.append(float(model(data.images, draw._replace(seeds=None))["total"]))
    assert totals[3] == totals[4] != totals[5]


def test_a_picture_keeps_its_regions_in_another_batch() -> None:
    """Its proposals are chosen by its own seed: those of a batch are those of its pictures one by one."""
    model, data = detector().train(), batch(3)
    draw, chosen = model.draw(data, Generator().manual_seed(4)), []
    sampler = model.rpn.fg_bg_sampler
    matched = [(torch.arange(400) % 3 - 1).float() for _ in draw.images]
    for seeds, labels in [
        (draw.seeds, matched),
        *(([seed], [one]) for seed, one in zip(draw.seeds, matched, strict=True)),
    ]:
        sampler.seeds = seeds
        chosen.append([torch.cat(masks) for masks in zip(*sampler(labels), strict=True)])
    together, apart = chosen[0], [masks for (masks,) in chosen[1:]]
    assert all(torch.equal(a, b) for a, b in zip(together, apart, strict=True))
    assert not torch.equal(together[0], together[1])
    assert [int(masks.sum()) for masks in together] == [256, 256, 256]


def test_layers_count_from_the_embedding_to_the_heads() -> None:
    model = detector()
    depths = {name: model.param_depth(name) for name, _ in model.named_parameters()}
    assert depths["backbone.network.patch_embed.proj.weight"] == 0
    assert depths["backbone.network.blocks.1.attn.qkv.weight"] == 2
    assert {depth for name, depth in depths.items() if not name.startswith("backbone")} == {3}
    assert any(name.startswith("roi_heads") for name in depths)


def overlaps(model: Detector, data: Batch) -> dict[int, tuple[float, float]]:
    """By label, how much boxes and masks overlap the true ones (0 to 1): the best of what was found with a score of
    more than a half. Both are zero where nothing was."""
    (found,) = model.detect(data.images)
    assert (found["scores"].diff() <= 0).all()
    placed, best = on_image(found, SIZE, SIZE), {}
    for box, mask, label in zip(*(data.labels[0][key] for key in ("boxes", "masks", "labels")), strict=True):
        sure = (placed["labels"] == label) & (placed["scores"] > 0.5)
        masks, true = placed["masks"][sure].bool().flatten(1), mask.bool().flatten()
        shares = (masks & true).sum(1) / (masks | true).sum(1)
        boxes = box_iou(placed["boxes"][sure], box[None]).flatten()
        best[int(label)] = (max(boxes.tolist(), default=0.0), max(shares.tolist(), default=0.0))
    return best


def test_it_learns_one_picture_and_finds_it_again() -> None:
    """The rate falls to zero, so that the end is none of the ups and downs of training; before, nothing is found."""
    model, data, steps, rate = detector(), batch(2), 100, 4e-3
    data = Batch(data.images[:1], data.labels[:1])
    assert overlaps(model, data) == {1: (0, 0), 2: (0, 0)}
    optimizer, totals = torch.optim.AdamW(model.parameters(), lr=rate), []
    model.train()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        optimizer.zero_grad()
        total = model(data.images, model.draw(data, Generator()))["total"]
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert sum(totals[-10:]) < 0.5 * sum(totals[:10])
    found = overlaps(model, data)
    assert model.training
    assert all(min(shares) > 0 for shares in found.values()), found
    assert sum(map(sum, found.values())) / 4 > 0.5, found


def test_found_things_go_back_to_the_picture() -> None:
    """A picture of 200×100 pixels shown at 64×32: three times as large, cut to its border, the padding left out."""
    found = {
        "boxes": torch.tensor([[8.0, 16.0, 24.0, 32.0], [28.0, 60.0, 40.0, 64.0], [40.0, 0.0, 60.0, 20.0]]),
        "labels": torch.tensor([1, 2, 1]),
        "scores": torch.tensor([0.9, 0.8, 0.7]),
        "masks": torch.ones(3, 1, 28, 28),
    }
    placed = on_image(found, (200, 100), (64, 32))
    assert placed["boxes"].tolist() == [[25, 50, 75, 100], [87.5, 187.5, 100, 200]]
    assert placed["labels"].tolist() == [1, 2]
    assert placed["masks"].shape == (2, 200, 100)
    lit = placed["masks"][0].nonzero()
    assert (lit.amin(0) - torch.tensor([50, 25])).abs().max() <= 1
    assert (lit.amax(0) - torch.tensor([99, 74])).abs().max() <= 1


def test_boxes_are_exact_under_autocast() -> None:
    model, data = detector().train(), batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(data.images, model.draw(data, Generator()))
        found = model.detect(data.images)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert {one["boxes"].dtype for one in found} == {torch.float32}
    assert Exact(torch.nn.Identity())([torch.ones(1, dtype=torch.bfloat16)])[0].dtype == torch.float32


def test_anchors_follow_the_size_of_the_images() -> None:
    overrides: dict[str, Any] = {"patch_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 2}
    sides = {}
    for side in (256, 512, 1024):
        backbone = create_vit("vit_micro", (side, side), MEAN, STD, overrides=overrides)
        model = Detector(backbone, 2, (side, side), channels=8)
        sides[side] = [size for (size,) in model.rpn.anchor_generator.sizes]
    assert sides == {256: [16, 32, 64, 128, 256], 512: [32, 64, 128, 256, 512], 1024: [32, 64, 128, 256, 512]}


def test_score_and_number_of_detections() -> None:
    data = batch()
    few = detector(score=0.0, detections=5).detect(data.images)
    assert [len(one["boxes"]) for one in few] == [5, 5, 5]
    assert all(len(one["boxes"]) == 0 for one in detector(score=0.99).detect(data.images))
    with pytest.raises(UserError, match="at least one class"):
        Detector(detector().backbone, 0, SIZE)
