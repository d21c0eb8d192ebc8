"""evaluation/drawing.py: a sheet of the right form, the instances that score enough, tints where their masks are."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from remask.downstream.detect.drawing import Drawing, blended, sheet_of_boxes
from remask.errors import UserError


def drawing(score: float = 0.9, **keys: Any) -> Drawing:
    found = {
        "boxes": torch.tensor([[5.0, 5.0, 30.0, 20.0]]),
        "labels": torch.tensor([2]),
        "scores": torch.tensor([score]),
        **keys,
    }
    return Drawing(torch.full((3, 40, 60), 128, dtype=torch.uint8), found, "a street")


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def colourful(png: bytes) -> int:
    """Pixels that are not gray."""
    image = pixels(png)
    return int((image.max(2) - image.min(2) > 40).sum())


def test_only_what_scores_enough_is_drawn() -> None:
    names = ["owl", "cat"]
    assert colourful(sheet_of_boxes([drawing()], names)) > 200
    assert colourful(sheet_of_boxes([drawing(0.2)], names)) == 0
    assert colourful(sheet_of_boxes([drawing(0.2)], names, score=0.1)) > 200
    truth = drawing()
    del truth.found["scores"]
    assert colourful(sheet_of_boxes([truth], names)) > 200
    masks = torch.zeros(1, 40, 60, dtype=torch.bool)
    masks[0, 5:20, 5:30] = True
    assert colourful(sheet_of_boxes([drawing(masks=masks)], names)) > 4 * colourful(sheet_of_boxes([drawing()], names))


def test_the_sheet_grows_by_rows() -> None:
    one, five = (pixels(sheet_of_boxes([drawing()] * n, ["owl", "cat"], columns=4)).shape for n in (4, 5))
    assert one[1] == five[1]
    assert five[0] == pytest.approx(2 * one[0], abs=2)
    assert pixels(sheet_of_boxes([drawing()], ["owl", "cat"])).shape[1] < one[1]


def test_masks_tint_their_pixels_and_the_first_is_on_top() -> None:
    image = torch.zeros(3, 2, 2, dtype=torch.uint8)
    masks = torch.tensor([[[1, 0], [0, 0]], [[1, 1], [0, 0]]]).bool()
    tinted = blended(image, masks, [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0)])
    assert tinted[1].max() == 0
    assert tinted[0, 1].argmax() == 1
    assert tinted[0, 0].argmax() == 0
    assert blended(image, None, []).max() == 0


def test_no_picture() -> None:
    with pytest.raises(UserError, match="no picture to draw"):
        sheet_of_boxes([], ["owl"])
