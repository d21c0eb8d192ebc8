"""segmenter: losses, any size, windows, and a few steps that learn."""

from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from remask.backbones.convvit import create_convvit
from remask.backbones.vit import create_vit
from remask.downstream.segment.segmenter import PixelLabels, Segmenter, evaluate
from remask.errors import UserError

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
TINY = {"embed_dim": 48, "depth": 4, "num_heads": 3, "patch_size": 8}


class Batch(NamedTuple):
    images: Tensor
    labels: Tensor


def segmenter(convvit: bool = False, **keys: Any) -> Segmenter:
    torch.manual_seed(0)
    backbone: Any = (
        create_convvit("convvit_micro", (32, 32), MEAN, STD)
        if convvit
        else create_vit("vit_tiny_patch16_224", (32, 32), MEAN, STD, overrides=TINY)
    )
    return Segmenter(backbone, 3, **{"width": 16, "norm": "group", **keys})


def scenes(count: int, height: int = 32, width: int = 40) -> Batch:
    """Pictures of two stripes, whose colours say their classes; the first rows are not labelled."""
    generator = Generator().manual_seed(1)
    labels = torch.zeros(count, height, width, dtype=torch.uint8)
    for i, at in enumerate(torch.randint(8, width - 8, (count,), generator=generator).tolist()):
        labels[i, :, at:] = 1 + i % 2
    noise = torch.randint(0, 30, (count, 3, height, width), generator=generator)
    images = (noise + 80 * labels.unsqueeze(1)).to(torch.uint8)
    labels[:, :3] = 255
    return Batch(images, labels)


@pytest.mark.parametrize("head", ["upernet", "linear"])
@pytest.mark.parametrize("convvit", [False, True])
def test_losses_and_gradients(head: str, convvit: bool) -> None:
    model, batch = segmenter(convvit, head=head), scenes(2, 30, 37)
    draw = model.draw(batch, Generator())
    losses = model(batch.images, draw)
    if head == "upernet":
        assert set(losses) == {"pixels", "auxiliary", "total"}
        assert torch.allclose(losses["total"], losses["pixels"] + 0.4 * losses["auxiliary"])
    else:
        assert set(losses) == {"pixels", "total"}
    losses["total"].backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_the_loss_is_the_mean_over_labelled_pixels() -> None:
    model, batch = segmenter(aux=0).eval(), scenes(2, 30, 37)
    labels = batch.labels.long()
    expected = F.cross_entropy(model.logits(batch.images), labels, ignore_index=255)
    assert torch.allclose(model(batch.images, PixelLabels(labels))["total"], expected, atol=1e-6)
    none = model(batch.images, PixelLabels(torch.full_like(labels, 255)))["total"]
    assert float(none) == 0.0


def test_images_of_any_size_and_padding_that_is_cut_off() -> None:
    model = segmenter().eval()
    images = scenes(1, 30, 37).images
    assert model.logits(images).shape == (1, 3, 30, 37)
    float_images = F.pad(model.backbone.normalise(images), (0, 3, 0, 2))
    assert torch.equal(model.logits(float_images)[..., :30, :37], model.logits(images))


def test_windows_average_where_they_overlap() -> None:
    model = segmenter().eval()
    images = scenes(2, 30, 45).images
    with torch.inference_mode():
        total, count = torch.zeros(2, 3, 30, 45), torch.zeros(30, 45)
        for top in (0, 10, 14):
            for left in (0, 10, 20, 29):
                part = slice(top, top + 16), slice(left, left + 16)
                total[:, :, *part] += model.logits(images[:, :, *part])
                count[*part] += 1
        assert torch.allclose(model.slide(images, (16, 16), (10, 10)), total / count, atol=1e-5)
        assert torch.equal(model.slide(images, (64, 64), (10, 10)), model.logits(images))
        tall = model.slide(images, (64, 16), (10, 29))  # two windows, side by side
        assert torch.allclose(tall[..., :16], model.logits(images[..., :16]), atol=1e-6)


def off(one: torch.Tensor, other: torch.Tensor) -> float:
    """The share of pixels that have another class."""
    return float((one != other).float().mean())


def test_predictions_have_the_pictures_size_and_flips_make_no_difference_to_their_mirror() -> None:
    model = segmenter().eval()
    images = scenes(2, 64, 80).images
    with torch.inference_mode():
        assert model.predict(images, size=(32, 32), window=(32, 32), flip=True).shape == (2, 64, 80)
        found = model.predict(images, size=(32, 32), flip=True)
        mirrored = model.predict(images.flip(-1), size=(32, 32), flip=True)
        assert off(mirrored, found) > 0.05
        assert off(mirrored.flip(-1), found) < 1e-3, "but where two classes are a rounding apart, 1e-8 of 1e-2"
        assert torch.equal(model.predict(images), model.logits(images).argmax(1))


def test_a_draw_splits_as_a_batch_does() -> None:
    model, batch = segmenter(), scenes(5)
    draw = model.draw(batch, Generator())
    assert draw.labels.dtype == torch.int64
    parts = draw.split(3)
    assert [len(part.labels) for part in parts] == [2, 2, 1]
    assert torch.equal(torch.cat([part.labels for part in parts]), draw.labels)
    assert [len(part) for part in batch.images.tensor_split(3)] == [2, 2, 1]


def test_depth_of_parameters() -> None:
    model = segmenter()
    depths = {name: model.param_depth(name) for name, _ in model.named_parameters()}
    assert depths["backbone.network.patch_embed.proj.weight"] == 0
    assert depths["backbone.network.blocks.2.attn.qkv.weight"] == 3
    assert {depth for name, depth in depths.items() if not name.startswith("backbone.")} == {5}
    assert not [name for name in model.state_dict() if name.startswith("maps.") and "backbone" in name]


def test_mistakes() -> None:
    with pytest.raises(UserError, match="at least two"):
        Segmenter(segmenter().backbone, 1)
    model, batch = segmenter(norm="batch"), scenes(1)
    with pytest.raises(UserError, match="batch norm cannot learn from one image"):
        model(batch.images, model.draw(batch, Generator()))
    with pytest.raises(UserError, match="no picture to test on"):
        evaluate(model, [])


def test_a_few_steps_learn_and_are_measured() -> None:
    model, batch = segmenter(), scenes(4)
    told: list[int] = []
    before = evaluate(model, [batch], names=["ground", "left", "right"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(25):
        model(batch.images, model.draw(batch, Generator()))["total"].backward()
        optimizer.step()
        optimizer.zero_grad()
    halves = [Batch(batch.images[:3], batch.labels[:3]), Batch(batch.images[3:], batch.labels[3:])]
    after = evaluate(
        model, halves, names=["ground", "left", "right"], size=(32, 40), window=(32, 40), progress=told.append
    )
    assert model.training
    assert after["mIoU"] > before["mIoU"] + 30
    assert (told, after["images"], after["pixels"]) == ([3, 4], 4, 4 * 29 * 40)
    assert list(after["IoU"]) == ["ground", "left", "right"]
    assert after["protocol"]["stride"] == [21, 26]
    guesses = model.eval().predict(batch.images)
    kept = batch.labels != 255
    assert after["aAcc"] == pytest.approx(float((guesses[kept] == batch.labels[kept]).float().mean()) * 100)
