"""levels.py and backbones/normalise.py: what the numbers in pictures mean, and floats that nobody normalised."""

import pytest
import torch
from torch import Tensor

from remask.backbones.normalise import Normalise
from remask.backbones.vit import create_vit
from remask.downstream.finetune.classifier import Classifier
from remask.errors import UserError
from remask.images.levels import FULL, Levels, Scaling, levels_of, rule_of
from remask.masking import Masking
from remask.methods import mae
from remask.targets import Pixels

MEAN, STD = (0.5, 0.25, 0.125), (0.25, 0.5, 0.2)


def expected(unit: Tensor) -> Tensor:
    mean, std = (torch.tensor(numbers).view(-1, 1, 1) for numbers in (MEAN, STD))
    return (unit - mean) / std


@pytest.mark.parametrize(
    ("levels", "values", "unit"),
    [
        (FULL, torch.tensor([0, 51, 255], dtype=torch.uint8), [0, 0.2, 1]),
        (FULL, torch.tensor([0, 13107, 65535], dtype=torch.uint16), [0, 0.2, 1]),
        (FULL, torch.tensor([0, 0.2, 1]), [0, 0.2, 1]),
        (Levels(0, 4095), torch.tensor([0, 819, 4095], dtype=torch.uint16), [0, 0.2, 1]),
        (Levels(0, 4095), torch.tensor([0, 51, 255], dtype=torch.uint8), [0, 0.2, 1]),
        (Levels(-1000, 1000), torch.tensor([-1000.0, -600, 1000]), [0, 0.2, 1]),
        (Levels(0, 100), torch.tensor([0, 20, 100], dtype=torch.uint16), [0, 0.2, 1]),
    ],
)
def test_black_and_white_of_every_type(levels: Levels, values: Tensor, unit: list[float]) -> None:
    images, wanted = values.view(1, 1, 3).expand(3, 2, 3), torch.tensor(unit).view(1, 1, 3).expand(3, 2, 3)
    torch.testing.assert_close(levels.unit(images), wanted)
    torch.testing.assert_close(levels.normalised(images, MEAN, STD), expected(wanted), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("levels", [FULL, Levels(0, 4095), Levels(100, 2000)])
def test_a_network_scales_16_bits_by_its_levels(levels: Levels) -> None:
    images = torch.randint(0, 4096, (2, 3, 8, 8)).to(torch.uint16)
    normalise = Normalise(MEAN, STD)
    normalise.read_by(levels)
    torch.testing.assert_close(normalise(images), levels.normalised(images, MEAN, STD), rtol=1e-5, atol=1e-5)
    assert normalise.shown(images).dtype == torch.uint8
    low, high = levels.bounds(torch.uint16)
    ends = torch.tensor([low, high]).view(1, 1, 1, 2).expand(1, 3, 1, 2).to(torch.uint16)
    assert normalise.shown(ends)[0, :, 0].tolist() == [[0, 255]] * 3


def test_every_backbone_takes_16_bits_as_their_normalised_values() -> None:
    backbone = create_vit("vit_micro", (16, 16), MEAN, STD).eval()
    backbone.normalise.read_by(Levels(0, 1023))
    images = torch.randint(0, 1024, (2, 3, 16, 16)).to(torch.uint16)
    with torch.no_grad():
        deep, floats = backbone(images).tokens, backbone(Levels(0, 1023).normalised(images, MEAN, STD)).tokens
    torch.testing.assert_close(deep, floats, rtol=1e-4, atol=1e-5)


def test_a_batch_keeps_its_type_or_is_normalised() -> None:
    scaling = Scaling(Levels(0, 1023), MEAN, STD)
    eight, sixteen = torch.full((3, 4, 4), 255, dtype=torch.uint8), torch.full((3, 4, 4), 1023, dtype=torch.uint16)
    assert scaling.batch([eight, eight]).dtype == torch.uint8
    assert scaling.batch([sixteen, sixteen]).dtype == torch.uint16
    mixed = scaling.batch([eight, sixteen, torch.full((3, 4, 4), 1023.0)])
    torch.testing.assert_close(mixed, expected(torch.ones(3, 3, 4, 4)), rtol=1e-5, atol=1e-5)


def test_8_bit_pictures_are_values_only_where_the_range_is_meant_for_them() -> None:
    image = torch.full((1, 2, 2), 50, dtype=torch.uint8)
    assert Levels(0, 100).values(image).dtype == torch.uint16
    assert Levels(0, 255).values(image).dtype == Levels(0, 4095).values(image).dtype == torch.uint8
    assert FULL.values(image).dtype == torch.uint8


def test_values_beyond_the_range_are_told_and_kept() -> None:
    image = torch.tensor([0, 5000]).to(torch.uint16).view(1, 1, 2)
    assert Levels(0, 4095).beyond(image) == "values reach from 0 to 5000, beyond 0 to 4095 of data.range"
    assert FULL.beyond(image) is None
    assert FULL.beyond(torch.tensor([[[0.0, 1.5]]])) == "values reach from 0 to 1.5, beyond 0 to 1 of data.range"
    assert float(Levels(0, 4095).unit(image).max()) == pytest.approx(5000 / 4095)


@pytest.mark.parametrize("levels", [FULL, None, Levels(0, 4095), Levels(-1.5, 2)])
def test_levels_survive_json(levels: Levels | None) -> None:
    assert levels_of(rule_of(levels)) == levels
    assert levels_of(None) == FULL  # exports that were written before there was a range


SIZE = (16, 16)


def test_floats_that_nobody_normalised_are_refused_once_and_everywhere() -> None:
    backbone = create_vit("vit_micro", SIZE, MEAN, STD).eval()
    pixels = torch.rand(2, 3, *SIZE)
    with pytest.raises(UserError, match=r"looks like pixels that are not normalised.*normalised=True"):
        backbone(pixels)
    classifier = Classifier(create_vit("vit_micro", SIZE, MEAN, STD), 3).eval()
    with pytest.raises(UserError, match="normalised=True"):
        classifier.logits(pixels)
    method = mae(
        create_vit("vit_micro", SIZE, MEAN, STD), Masking(ratio=0.5), Pixels((4, 4), MEAN, STD), SIZE, 16, 1, 2
    )
    with pytest.raises(UserError, match="normalised=True"):
        method(pixels)
    assert torch.isfinite(method(pixels, normalised=True)["total"])
    assert torch.isfinite(method(pixels)["total"]), "it has been said, and is not asked again"
    assert backbone(pixels, normalised=True).tokens.shape == (2, 16, 128)


@pytest.mark.parametrize("images", [torch.zeros(1, 3, *SIZE), torch.full((1, 3, *SIZE), 0.5), torch.randn(1, 3, *SIZE)])
def test_other_floats_are_taken_as_normalised(images: Tensor) -> None:
    assert create_vit("vit_micro", SIZE, MEAN, STD).eval()(images).tokens.shape[1] == 16
