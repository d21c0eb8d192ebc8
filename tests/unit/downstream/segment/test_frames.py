"""frames: rows of image, truth and prediction in the colours of their classes."""

import io

import numpy as np
import torch
from PIL import Image

from remask.downstream.segment.frames import frames, painted

PALETTE = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
NAMES = ["sky", "a class of a very long name indeed", "car"]


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def near(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((np.abs(picture.astype(int) - colour).max(-1) < 8).sum())


def test_a_mask_in_colours() -> None:
    mask = torch.tensor([[0, 2], [255, 1]], dtype=torch.uint8)
    assert painted(mask, PALETTE).tolist() == [[[200, 0, 0], [0, 0, 200]], [[40, 40, 40], [0, 200, 0]]]


def test_panels_stand_where_they_belong() -> None:
    image = torch.full((3, 30, 40), 90, dtype=torch.uint8)
    truth, guess = torch.zeros(30, 40, dtype=torch.uint8), torch.full((30, 40), 2)
    sheet = pixels(frames([image, image], [truth, truth], [guess, guess], PALETTE, NAMES))
    height, width = sheet.shape[:2]
    assert 2.0 < width / (height / 2) < 3.6, "two rows of three panels of 4:3"
    thirds = [sheet[:, i * width // 3 : (i + 1) * width // 3] for i in range(3)]
    area = sheet.shape[0] * sheet.shape[1] / 3
    for number, colour in enumerate([(90, 90, 90), (200, 0, 0), (0, 0, 200)]):
        shares = [near(third, colour) / area for third in thirds]
        assert shares[number] > 0.7
        assert max(share for i, share in enumerate(shares) if i != number) < 0.05


def test_the_legend_names_what_occurs() -> None:
    image = torch.zeros(1, 20, 20, dtype=torch.uint8)
    blank = torch.full((20, 20), 255, dtype=torch.uint8)
    one = torch.zeros(20, 20, dtype=torch.int64)
    green = pixels(frames([image], [blank], [one + 1], PALETTE, NAMES))
    red = pixels(frames([image], [None], [one], PALETTE, NAMES))
    assert near(red, PALETTE[0]) > near(red, PALETTE[1]) == 0
    assert near(green, PALETTE[0]) == 0
    assert near(green, PALETTE[1]) > 0
    assert near(green, (40, 40, 40)) > 0.2 * near(green, PALETTE[1]), "no label has its own colour"
