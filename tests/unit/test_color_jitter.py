"""images/jitter.py: torchvision's brightness, contrast and saturation, a hue that turns about grey, own draws."""

import pytest
import torch
from torch import Generator, Tensor
from torchvision.transforms.v2 import functional as tv

from remask.color_jitter import HUE, SHARE, BatchColorJitter, turned


def pictures(batch: int = 4, channels: int = 3) -> Tensor:
    """Far enough from black and white that nothing is clamped."""
    return torch.randint(90, 160, (batch, channels, 8, 12), dtype=torch.uint8, generator=Generator().manual_seed(0))


def draws(*numbers: float, batch: int = 4) -> Tensor:
    return torch.tensor([numbers]).repeat(batch, 1)


@pytest.mark.parametrize("numbers", [(0.9, 0.5, 0.5), (0.5, 0.1, 0.5), (0.5, 0.5, 1.0), (0.2, 0.8, 0.3)])
def test_brightness_contrast_and_saturation_are_torchvisions(numbers: tuple[float, ...]) -> None:
    images, factors = pictures(), [1 + 0.3 * (2 * number - 1) for number in numbers]
    wanted = images / 255
    for change, factor in zip((tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation), factors, strict=True):
        wanted = change(wanted, factor)
    found = BatchColorJitter(0.3)(images, draws(*numbers, 0.5, 0.0))
    assert (found - 255 * wanted).abs().max() < 0.6  # half a level, and torchvision's four digits of luma


def test_hue_turns_red_to_green_to_blue_and_leaves_grey() -> None:
    third = turned(torch.tensor([1 / 3, -1 / 3, 0.0]))
    assert torch.allclose(third[0] @ torch.eye(3), torch.eye(3).roll(1, 0), atol=1e-6)
    assert torch.allclose(third[1], third[0].T, atol=1e-6)
    assert torch.equal(third[2], torch.eye(3))
    grey = pictures(channels=1).expand(-1, 3, -1, -1)
    assert torch.equal(BatchColorJitter(0.5)(grey, draws(0.5, 0.5, 0.9, 1.0, 0.0)), grey)
    by_hand = (turned(torch.tensor([HUE]))[0] @ pictures().float().flatten(2)).round().view(4, 3, 8, 12)
    assert torch.equal(BatchColorJitter(0.5)(pictures(), draws(0.5, 0.5, 0.5, 1.0, 0.0)).float(), by_hand)
    red = torch.tensor([[[[200]], [[60]], [[60]]]], dtype=torch.uint8)
    changed = BatchColorJitter(0.5)(red, draws(0.5, 0.5, 0.5, 1.0, 0.0, batch=1)).flatten().tolist()
    assert changed[1] > changed[2], "as torchvision turns it: towards yellow"


def test_every_picture_is_changed_by_its_own_numbers() -> None:
    jitter, images = BatchColorJitter(0.4), pictures()
    numbers = jitter.draw(4, Generator().manual_seed(1))
    together = jitter(images, numbers)
    alone = [jitter(images[i : i + 1], numbers[i : i + 1]) for i in range(4)]
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(together, jitter(images, jitter.draw(4, Generator().manual_seed(1))))
    assert (together.dtype, together.shape) == (torch.uint8, images.shape)


def test_a_fifth_is_left_as_it_is() -> None:
    numbers = BatchColorJitter(0.4).draw(2000, Generator().manual_seed(0))
    assert abs(float((numbers[:, 4] < SHARE).float().mean()) - SHARE) < 0.03
    numbers[:, 4] = 0.8
    assert torch.equal(BatchColorJitter(0.4)(pictures(), numbers[:4]), pictures())


@pytest.mark.parametrize("channels", [1, 5])
def test_other_channels_have_brightness_and_contrast(channels: int) -> None:
    images = pictures(channels=channels)
    found = BatchColorJitter(0.5)(images, draws(0.6, 0.4, 0.9, 0.9, 0.0)).float()
    bright = 1.1 * images.float()
    assert torch.allclose(found, 0.9 * bright + 0.1 * bright.mean((1, 2, 3), keepdim=True), atol=0.51)


def test_it_is_exact_under_autocast_and_never_leaves_8_bits() -> None:
    jitter, images = BatchColorJitter(1.0), pictures() + torch.tensor([0, 95, 0]).view(3, 1, 1).to(torch.uint8)
    numbers = jitter.draw(4, Generator().manual_seed(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = jitter(images, numbers)
    assert torch.equal(inside, jitter(images, numbers))
    brightest = jitter(images, draws(1.0, 1.0, 1.0, 0.0, 0.0))
    assert int(brightest.max()) == 255
    assert int(jitter(images, draws(0.0, 0.5, 0.5, 0.5, 0.0)).max()) == 0
