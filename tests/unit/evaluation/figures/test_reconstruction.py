"""evaluation/reconstruction.py and sheet.py: every picture shows what it says, for every make of method."""

import io
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from remask.backbones.vit import create_vit
from remask.evaluation.figures.reconstruction import _GIVEN, _MASKED, _PAPER, _VISIBLE, panels, reconstruct
from remask.evaluation.figures.sheet import Panel
from remask.masking import Masking
from remask.method import Method
from remask.methods import dm, jd, localmim, mae
from remask.targets import Hog, Pixels, Target
from remask.types import Features, Size
from remask.views import Views

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


class Case(NamedTuple):
    target: str
    visible: bool
    views: int
    size: Size
    patch: int
    channels: int = 3


def make(case: Case, prediction: float | None = 1.0) -> tuple[Method, Tensor, Views]:
    torch.manual_seed(0)
    mean, std, patch = MEAN[: case.channels], STD[: case.channels], (case.patch, case.patch)
    sizes = {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": case.patch}
    backbone = create_vit("vit_micro", case.size, mean, std, overrides=sizes)
    hog = Hog(patch, mean, std, cell=case.patch // 2)
    targets: dict[str, Target] = {
        "hog": hog, "pixels": Pixels(patch, mean, std, per_patch=False), "patches": Pixels(patch, mean, std),
        "low": Pixels(patch, mean, std, low_pass=5.0),
    }  # fmt: skip
    method = dm(mae(backbone, Masking(0.75), targets[case.target], case.size, 16, 1, 2), case.views, prediction)
    if case.visible:
        method = jd(method, hog, width=16)
    images = torch.randint(0, 256, (2, case.channels, *case.size), dtype=torch.uint8)
    return method, images, method.draw(images, torch.Generator().manual_seed(0))


def column(rows: list[list[Panel]], heading: str, row: int = 0) -> Tensor:
    return next(panel.image for panel in rows[row] if panel.heading.startswith(heading))


CASES = [
    Case("hog", True, 2, (32, 32), 4),
    Case("hog", False, 1, (32, 48), 8),
    Case("patches", True, 2, (16, 16), 4),
    Case("pixels", False, 3, (112, 112), 8),
    Case("pixels", True, 2, (24, 16), 4, channels=1),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_png_for_every_make(case: Case) -> None:
    from PIL import Image

    method, images, views = make(case)
    rows, notes = panels(method, images, views)
    per_view = 1 + (case.target != "hog") * 1 + (case.target == "hog" or case.visible)
    hog_target = case.target == "hog" or case.visible
    assert [len(row) for row in rows] == [2 + hog_target + case.views * per_view] * 2
    assert len(notes) == (case.target != "hog") + hog_target
    picture = Image.open(io.BytesIO(reconstruct(method, images, views)))
    assert picture.format == "PNG"
    assert np.asarray(picture.convert("L")).std() > 20


def test_views_are_grey_where_masked_and_whole_elsewhere() -> None:
    method, images, views = make(CASES[0])
    rows, _ = panels(method, images, views)
    original, seen = column(rows, "original"), column(rows, "view 2")
    hidden = views.mask[1, 0].reshape(8, 8).repeat_interleave(28, 0).repeat_interleave(28, 1)
    assert original.shape == (224, 224, 3)  # 32 px enlarged 7 times
    assert (seen[hidden] == 128).all()
    assert torch.equal(seen[~hidden], original[~hidden])


@pytest.mark.parametrize("target", ["pixels", "patches", "low"])
def test_a_perfect_prediction_is_the_image(target: str) -> None:
    """So normalising is undone, by mean and deviation or patch by patch. A low-passed target is drawn, and met."""
    method, images, views = make(Case(target, False, 2, (32, 32), 4))
    branch = method.branches[0]

    class Oracle(torch.nn.Module):
        def forward(self, features: Features, views: Views) -> Tensor:
            return views.gather(branch.target(images, views), "masked")

    branch.head = Oracle()  # type: ignore[assignment]
    rows, _ = panels(method, images, views)
    for row in range(2):
        expected = column(rows, "target, up to\n5 cycles" if target == "low" else "original", row).int()
        difference = (column(rows, "prediction 1", row).int() - expected).abs()
        hidden = views.mask[0, row].reshape(8, 8).repeat_interleave(28, 0).repeat_interleave(28, 1)
        assert int(difference[hidden].max()) <= 1
        assert target == "low" or int(difference.max()) <= 1
        assert target != "low" or expected.float().std() < 0.7 * column(rows, "original", row).float().std()


def test_visible_patches_are_kept_and_masked_ones_predicted() -> None:
    method, images, views = make(CASES[2])
    rows, _ = panels(method, images, views)
    kept = ~views.mask[0, 0].reshape(4, 4).repeat_interleave(56, 0).repeat_interleave(56, 1)
    predicted, original = column(rows, "prediction 1"), column(rows, "original")
    assert torch.equal(predicted[kept], original[kept])
    assert not torch.equal(predicted[~kept], original[~kept])


def test_union_covers_what_some_view_hides() -> None:
    full = make(CASES[0])
    rows, _ = panels(*full)
    assert torch.equal(column(rows, "union"), column(rows, "original"))
    assert rows[0][-1].caption == "predicted 100 %"
    method, images, views = make(Case("hog", False, 1, (32, 32), 4))
    rows, _ = panels(method, images, views)
    assert rows[0][-1].caption == "predicted 75 %"
    assert not torch.equal(column(rows, "union"), column(rows, "original"))


def test_perfect_stars_are_the_target_in_other_colours() -> None:
    method, images, views = make(CASES[0])
    for branch in method.branches:

        class Oracle(torch.nn.Module):
            def __init__(self, target: Target, region: str) -> None:
                super().__init__()
                self.answer = views.gather(target(images, views), region)

            def forward(self, features: Features, views: Views) -> Tensor:
                return self.answer

        branch.head = Oracle(branch.target, branch.region)  # type: ignore[assignment]
    rows, _ = panels(method, images, views)
    hidden = views.mask[0, 0].reshape(8, 8).repeat_interleave(28, 0).repeat_interleave(28, 1)
    paper, white, orange, blue = (sum(colour) / 3 for colour in (_PAPER, _GIVEN, _MASKED, _VISIBLE))
    drawn, wanted = column(rows, "HOG prediction 1").float().mean(-1), column(rows, "HOG target").float().mean(-1)
    drawn = (drawn - paper) / (torch.where(hidden, orange, blue) - paper)
    torch.testing.assert_close(drawn, (wanted - paper) / (white - paper), atol=0.01, rtol=0)


def test_several_hog_targets_are_told_apart_by_their_cells() -> None:
    """LocalMIM's: cells finer than a patch and as large; larger ones are not drawn."""
    torch.manual_seed(0)
    sizes = {"embed_dim": 16, "depth": 3, "num_heads": 2, "patch_size": 8}
    method = localmim(create_vit("vit_micro", (32, 32), MEAN, STD, overrides=sizes), 0.75, width=16, heads=2)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    rows, _ = panels(method, images, method.draw(images, torch.Generator().manual_seed(0)))
    assert [panel.heading for panel in rows[0]] == [
        "original", "HOG target\n4 px", "HOG target\n8 px", "view 1\n75 % hidden",
        "HOG prediction 1\n4 px", "HOG prediction 1\n8 px", "union of the views",
    ]  # fmt: skip


def test_mode_and_weights_are_kept() -> None:
    method, images, views = make(CASES[0])
    method.train()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    reconstruct(method, images, views)
    assert method.training
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


def test_a_target_without_a_picture_leaves_the_masks() -> None:
    method, images, views = make(CASES[1])

    class Constant(torch.nn.Module):
        width = 3

        def forward(self, images: Tensor, views: Views) -> Tensor:
            return torch.zeros(len(images), views.mask.shape[-1], 3)

    class Nothing(torch.nn.Module):
        def forward(self, features: Features, views: Views) -> Tensor:
            return torch.zeros(len(views.masked), views.hidden, 3)

    method.branches[0].target, method.branches[0].head = Constant(), Nothing()  # type: ignore[assignment]
    rows, notes = panels(method, images, views)
    assert [panel.heading.splitlines()[0] for panel in rows[0]] == ["original", "view 1", "union of the views"]
    assert notes == []
