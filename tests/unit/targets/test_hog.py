"""targets/hog.py: both flavours against a loop over pixels and against the plain form; central against scikit-image."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.hog import plain
from remask.errors import UserError
from remask.targets import Hog
from remask.targets.hog import Flavour, central_gradient, gradient_index, gradient_table, pixel_values, sobel_gradient

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
FLAVOURS: list[Flavour] = ["central", "sobel"]


def pictures(*shape: int, seed: int = 0) -> Tensor:
    """Noise with flat areas in it: their gradients of exactly 0 are where implementations differ."""
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    images[..., : shape[-2] // 2, : shape[-1] // 2] = 90
    images[..., shape[-2] // 2 :, shape[-1] // 2 :] //= 64
    return images


def slow_gradient(plane: np.ndarray, flavour: Flavour, y: int, x: int) -> tuple[int, int]:
    """(down, right) at one pixel of an integer plane."""
    h, w = plane.shape
    if flavour == "central":
        down = int(plane[y + 1, x]) - int(plane[y - 1, x]) if 0 < y < h - 1 else 0
        right = int(plane[y, x + 1]) - int(plane[y, x - 1]) if 0 < x < w - 1 else 0
        return down, right

    def at(row: int, col: int) -> int:
        row, col = abs(row), abs(col)  # reflected, the border itself not repeated
        return int(plane[2 * (h - 1) - row if row >= h else row, 2 * (w - 1) - col if col >= w else col])

    weights = (1, 2, 1)
    down = sum(k * (at(y - 1, x + i) - at(y + 1, x + i)) for k, i in zip(weights, (-1, 0, 1), strict=True))
    right = sum(k * (at(y + i, x - 1) - at(y + i, x + 1)) for k, i in zip(weights, (-1, 0, 1), strict=True))
    return down, right


def slow_histogram(plane: np.ndarray, flavour: Flavour, cell: int, bins: int) -> np.ndarray:
    """[cell rows, cell columns, bins], pixel by pixel in Python's own floats."""
    rows, cols = plane.shape[0] // cell, plane.shape[1] // cell
    histogram = np.zeros((rows, cols, bins))
    for y in range(rows * cell):
        for x in range(cols * cell):
            down, right = slow_gradient(plane, flavour, y, x)
            across, along = (down, right) if flavour == "central" else (right, down)
            angle = math.degrees(math.atan2(across, along)) % 180  # unsigned
            bin_ = int(angle // (180 / bins)) % bins
            histogram[y // cell, x // cell, bin_] += math.hypot(down, right)
    return histogram / cell**2 if flavour == "central" else histogram


@pytest.mark.parametrize("bins", [9, 6])
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_histogram_equals_a_loop_over_pixels(flavour: Flavour, bins: int) -> None:
    images = pictures(2, 3, 8, 12)
    ours = Hog((4, 4), MEAN, STD, flavour, 4, bins).histogram(images.float())
    assert ours.shape == (2, 3, bins, 2, 3)
    for b in range(2):
        for c in range(3):
            slow = slow_histogram(images[b, c].numpy(), flavour, 4, bins)
            assert np.allclose(ours[b, c].permute(1, 2, 0).numpy(), slow, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("bins", [9, 6, 2, 8, 4])
def test_straight_and_diagonal_edges_fall_where_the_angle_says(flavour: Flavour, bins: int) -> None:
    """0, 45, 90 and 135 degrees lie on bin edges for some numbers of bins; a bin holds its lower edge."""
    ramp = torch.arange(5.0)
    rows, cols = torch.meshgrid(ramp, ramp, indexing="ij")
    for degrees, plane in ((0, cols), (45, rows + cols), (90, rows), (135, rows - cols)):
        if flavour == "sobel":
            degrees = (90 - degrees) % 180  # its angle runs from the vertical
        for direction in (10, -10):  # unsigned: the opposite direction is the same
            ours = Hog((1, 1), [0.5], [0.5], flavour, 1, bins).histogram(direction * plane[None, None])[0, 0, :, 2, 2]
            assert ours.nonzero().flatten().tolist() == [int(degrees // (180 / bins))], degrees


def test_central_equals_scikit_image() -> None:
    """Its cells before block normalisation; with blocks of one cell and L1 they come out divided by their sum."""
    from skimage.feature import hog

    images = pictures(1, 3, 32, 48)
    ours = Hog((16, 16), MEAN, STD, "central", 8).histogram(images.float())
    for c in range(3):
        theirs = hog(images[0, c].numpy().astype(float), 9, (8, 8), (1, 1), "L1", feature_vector=False)[:, :, 0, 0]
        mine = ours[0, c].permute(1, 2, 0).double()
        assert np.allclose(theirs, mine / (mine.sum(-1, keepdim=True) + 1e-5), atol=1e-5)


def test_central_equals_scikit_image_before_its_norm() -> None:
    histograms = pytest.importorskip("skimage.feature._hoghistogram")
    plane = pictures(1, 1, 16, 24)[0, 0].numpy().astype(float)
    down, right = np.zeros_like(plane), np.zeros_like(plane)
    down[1:-1], right[:, 1:-1] = plane[2:] - plane[:-2], plane[:, 2:] - plane[:, :-2]
    theirs = np.zeros((2, 3, 9))
    histograms.hog_histograms(right, down, 8, 8, 24, 16, 3, 2, 9, theirs)
    ours = Hog((8, 8), [0.5], [0.5], "central", 8).histogram(torch.tensor(plane)[None, None].float())
    assert np.allclose(ours[0, 0].permute(1, 2, 0), theirs, atol=1e-4)


def normalised(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (MEAN, STD))
    return (images / 255 - mean) / std


@pytest.mark.parametrize("norm", ["none", "l2", "layer"])
def test_central_finds_the_integers_of_a_normalised_picture_in_its_gradients(norm: str) -> None:
    """DMJD measures integers; without them rounding would tilt every gradient a little."""
    images = torch.cat(
        [pictures(1, 3, 16, 16), torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).repeat(1, 3, 1, 1)]
    )
    target = Hog((8, 8), MEAN, STD, "central", 4, norm=norm)  # type: ignore[arg-type]
    assert torch.equal(target(normalised(images)), target(images))


@pytest.mark.parametrize("levels", [65535, 4095, 255 * 300])
def test_central_keeps_steps_finer_than_those_of_8_bits(levels: int) -> None:
    """A dark picture of 12 or 16 bits, all of whose steps are far below one of 255: nothing of it is rounded away."""
    dark = torch.randint(0, 3, (1, 1, 16, 16), generator=torch.Generator().manual_seed(0)) / levels
    target = Hog((8, 8), [0.0], [1.0], "central", 4, norm="none")
    expected = plain(255 * dark, "central", 4, 9)
    assert target(dark).sum() > 0
    assert target(dark).sum() == pytest.approx(float(expected.sum()), rel=1e-5)


def convolved(images: Tensor, bins: int = 9) -> Tensor:
    """MaskFeat's HOG of a float image as published: a 3×3 convolution a channel, [B, C, bins, h, w], cells of 4 px."""
    right = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]]).expand(images.shape[1], 1, 3, 3)
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    gx, gy = (F.conv2d(padded, kernel, groups=images.shape[1]) for kernel in (right, right.mT))
    index = (torch.atan2(gx, gy) / math.pi * bins).floor().remainder(bins).long()
    planes = images.new_zeros(*images.shape[:2], bins, *images.shape[2:])
    planes.scatter_(2, index.unsqueeze(2), (gx**2 + gy**2).sqrt().unsqueeze(2))
    return planes.unfold(3, 4, 4).unfold(4, 4, 4).sum((-2, -1))


@pytest.mark.parametrize("case", ["8 bits", "resized", "constant columns", "noise", "0 to 1"])
def test_sobel_measures_a_float_image_as_given(case: str) -> None:
    """Gradients of 0 sit on a bin's edge: which side rounding has left of them is the convolution's, not ours."""
    draw = torch.Generator().manual_seed(0)
    images = {
        "8 bits": normalised(pictures(2, 3, 16, 24)),
        "resized": normalised(F.interpolate(smooth(2, 3, 40, 56).float(), (16, 24), mode="bilinear", antialias=True)),
        "constant columns": normalised(255 * torch.rand(2, 3, 1, 24, generator=draw).expand(-1, -1, 16, -1)),
        "noise": torch.randn(2, 3, 16, 24, generator=draw),
        "0 to 1": pictures(2, 3, 16, 24) / 255,
    }[case]
    expected = convolved(images)
    target = Hog((4, 4), MEAN, STD, "sobel", 4, norm="l2")
    torch.testing.assert_close(target.histogram(images), expected, atol=2e-6, rtol=1e-6)
    torch.testing.assert_close(
        target(images), target._tokens(F.normalize(expected.movedim(2, -1), dim=-1)), atol=1e-6, rtol=0
    )


def test_sobel_scales_gradients_to_pixel_values_and_knows_nothing_of_the_mean() -> None:
    images, raw = normalised(smooth(2, 3, 16, 24)), Hog((4, 4), MEAN, STD, "sobel", 4, norm="none")
    scaled = convolved(images) * 255 * torch.tensor(STD).view(-1, 1, 1, 1)
    torch.testing.assert_close(raw(images), raw._tokens(scaled.movedim(2, -1)), atol=1e-3, rtol=1e-5)
    assert torch.equal(Hog((4, 4), [7.0, -3.0, 0.0], STD, "sobel", 4, norm="none")(images), raw(images))


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("dtype", [torch.int16, torch.int64])
def test_other_integers_are_measured_like_bytes(flavour: Flavour, dtype: torch.dtype) -> None:
    images, target = pictures(2, 3, 16, 24), Hog((8, 8), MEAN, STD, flavour, 4)
    torch.testing.assert_close(target.histogram(images.to(dtype)), target.histogram(images), atol=1e-2, rtol=1e-6)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_autocast_changes_nothing(flavour: Flavour) -> None:
    images, target = pictures(1, 3, 16, 16), Hog((8, 8), MEAN, STD, flavour, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = target(images)
    assert lowered.dtype == torch.float32
    assert torch.equal(lowered, target(images))


def test_central_tokens_run_cell_row_cell_column_bin_channel() -> None:
    images, target = pictures(1, 3, 16, 24), Hog((8, 8), MEAN, STD, "central", 4, norm="none")
    cells, tokens = target.histogram(images.float()), target(images)
    assert tokens.shape == (1, 2 * 3, 2 * 2 * 9 * 3) == (1, 6, target.width)
    for i in range(6):
        by_hand = [
            float(cells[0, c, k, 2 * (i // 3) + y, 2 * (i % 3) + x])
            for y in range(2) for x in range(2) for k in range(9) for c in range(3)
        ]  # fmt: skip
        assert tokens[0, i].tolist() == by_hand


def test_sobel_tokens_run_channel_bin_cell_row_cell_column() -> None:
    images, target = pictures(1, 3, 16, 24), Hog((8, 8), MEAN, STD, "sobel", 4, norm="none")
    cells, tokens = target.histogram(images.float()), target(images)
    for i in range(6):
        by_hand = [
            float(cells[0, c, k, 2 * (i // 3) + y, 2 * (i % 3) + x])
            for c in range(3) for k in range(9) for y in range(2) for x in range(2)
        ]  # fmt: skip
        assert tokens[0, i].tolist() == by_hand


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_norms_run_over_the_bins_of_a_cell_and_channel(flavour: Flavour) -> None:
    images = pictures(1, 2, 8, 8)
    tokens = {
        norm: Hog((4, 4), MEAN[:2], STD[:2], flavour, 4, norm=norm)(images)  # type: ignore[arg-type]
        for norm in ("none", "l2", "layer")
    }
    shape = (1, 4, 9, 2) if flavour == "central" else (1, 4, 2, 9)
    bins = -2 if flavour == "central" else -1
    raw = tokens["none"].reshape(shape).movedim(bins, -1)
    assert torch.allclose(tokens["l2"].reshape(shape).movedim(bins, -1), F.normalize(raw, dim=-1), atol=1e-6)
    centred = raw - raw.mean(-1, keepdim=True)
    layer = centred / (raw.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    assert torch.allclose(tokens["layer"].reshape(shape).movedim(bins, -1), layer, atol=1e-5)


@pytest.mark.parametrize("norm", ["none", "l2", "layer"])
def test_a_flat_picture_is_zero_not_nan(norm: str) -> None:
    flat = torch.full((1, 1, 8, 8), 200, dtype=torch.uint8)
    assert not Hog((4, 4), [0.5], [0.5], "central", 4, norm=norm)(flat).any()  # type: ignore[arg-type]


def test_borders() -> None:
    plane = pictures(1, 1, 5, 6).float()
    down, right = central_gradient(plane)
    assert not down[..., 0, :].any()
    assert not down[..., -1, :].any()
    assert not right[..., 0].any()
    assert not right[..., -1].any()
    down, right = sobel_gradient(plane)
    assert not down[..., 0, :].any(), "a reflected border is symmetric: no gradient across it"
    assert right[..., 0, 1:-1].any(), "but one along it"


def test_a_cell_must_divide_the_patch() -> None:
    with pytest.raises(UserError, match="cell of 8 px does not divide a patch of 4×4 px"):
        Hog((4, 4), MEAN, STD, cell=8)


def test_words_and_state() -> None:
    target = Hog((16, 16), MEAN, STD)
    assert target.describe() == "HOG central 8 px, LayerNorm"
    assert Hog((16, 16), MEAN, STD, "sobel", norm="l2").describe() == "HOG sobel 8 px, l2"
    assert target.width == 108
    assert target.state_dict() == {}


def smooth(*shape: int, seed: int = 0) -> Tensor:
    """Gradients like those of photographs: most of them small, many exactly 0."""
    coarse = 255 * torch.rand(*shape[:2], 4, 4, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, shape[2:], mode="bicubic").clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("norm", ["none", "l2", "layer"])
@pytest.mark.parametrize(("cell", "bins"), [(8, 9), (4, 6), (2, 8), (1, 9)])
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_bags_of_rows_equal_the_plain_form(flavour: Flavour, cell: int, bins: int, norm: str) -> None:
    """The plain form spreads pixels over one plane per bin; 21 columns leave some that no cell holds."""
    target = Hog((cell, cell), MEAN, STD, flavour, cell, bins, norm)  # type: ignore[arg-type]
    for images in (pictures(2, 3, 16, 21), smooth(2, 3, 24, 16)):
        dense = plain(images.float(), flavour, cell, bins)
        for pixels in (images, images.float()):
            ours = target.histogram(pixels)
            torch.testing.assert_close(ours, dense, atol=1e-5 * max(1, float(dense.max())), rtol=1e-6)
        if norm != "none" and images.shape[-1] % cell == 0:
            cells = dense.movedim(2, -1)
            normed = F.normalize(cells, dim=-1) if norm == "l2" else F.layer_norm(cells, (bins,))
            torch.testing.assert_close(target(images), target._tokens(normed), atol=1e-5, rtol=0)


@pytest.mark.parametrize("bins", [9, 6, 4])
@pytest.mark.parametrize(("flavour", "reach"), [("central", 255), ("sobel", 1020)])
def test_table_holds_every_gradient_of_8_bit_pixels(flavour: Flavour, reach: int, bins: int) -> None:
    """Bin and length of either direction are those that Python gives."""
    codes, lengths = gradient_table(flavour, bins)
    span = 2 * reach + 1
    assert len(codes) == len(lengths) == (span**2 + 1) // 2
    for down, right in ((0, 0), (reach, -reach), (-reach, reach), (reach, 0), (0, -reach), (3, 4), (-1, 254), (-9, -1)):
        across, along = (down, right) if flavour == "central" else (right, down)
        entry = abs(down * span + right)
        assert int(codes[entry]) % bins == int(math.degrees(math.atan2(across, along)) % 180 * bins // 180) % bins
        assert float(lengths[entry]) == pytest.approx(math.hypot(down, right))


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_index_of_the_steepest_pixels_lies_in_the_table(flavour: Flavour) -> None:
    codes, _ = gradient_table(flavour, 9)
    for shift in range(4):
        board = ((torch.arange(12)[:, None] + shift) // 2 + torch.arange(12) // 2) % 2
        corner = (torch.arange(12)[:, None] + torch.arange(12) > 11).long()
        for plane in (board, corner, 1 - corner):
            index = gradient_index((255 * plane).to(torch.uint8)[None, None], flavour)
            assert 0 <= int(index.min()) <= int(index.max()) < len(codes)
    assert not gradient_index(torch.full((1, 1, 4, 4), 9, dtype=torch.uint8), flavour).any()


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_picture_that_was_never_integers_is_not_rounded(flavour: Flavour) -> None:
    """One pixel in fifty lies near an integer by chance; only a picture whose every pixel does came from integers."""
    pixels = 255 * torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    mean, std = torch.zeros(1, 1, 1), torch.full((1, 1, 1), 1 / 255)
    assert torch.allclose(pixel_values(pixels, mean, std), pixels, atol=1e-4)
    assert not torch.equal(pixel_values(pixels, mean, std), pixel_values(pixels, mean, std).round())
    whole = pixels.round() + 1e-3
    assert torch.equal(pixel_values(whole, mean, std), pixels.round())


def test_meta_device_gives_shapes() -> None:
    """A forward pass is counted on a device without memory."""
    for flavour in FLAVOURS:
        with torch.device("meta"):
            target, images = Hog((16, 16), MEAN, STD, flavour), torch.zeros(2, 3, 32, 48, dtype=torch.uint8)
            assert target(images).shape == (2, 6, target.width)
            assert target(torch.zeros(2, 3, 32, 48)).shape == (2, 6, target.width)


def test_gaussian_weighs_magnitudes_by_their_place_in_tiles_of_16() -> None:
    ramp = torch.arange(32, dtype=torch.uint8).expand(1, 1, 32, 32).contiguous()
    cells = Hog((16, 16), [0.5], [0.5], "sobel", gaussian=True, norm="none").histogram(ramp)
    weights = [[math.exp(-((y - 7.5) ** 2 + (x - 7.5) ** 2) / 128) for x in range(16)] for y in range(16)]
    total = sum(map(sum, weights))
    for y in range(2):
        for x in (2, 3):  # away from the border, where the gradient is 8 everywhere
            by_hand = sum(
                8 * weights[8 * (y % 2) + i][(8 * x + j) % 16] / total
                for i in range(8) for j in range(8) if 8 * x + j < 31
            )  # fmt: skip
            assert float(cells[0, 0, :, y, x].sum()) == pytest.approx(by_hand, rel=1e-5)
    plain_cells = Hog((16, 16), [0.5], [0.5], "sobel", norm="none").histogram(ramp)
    assert (plain_cells.argmax(2) == cells.argmax(2)).all()
    assert Hog((16, 16), MEAN, STD, "sobel", norm="l2", gaussian=True).describe() == "HOG sobel 8 px, Gaussian, l2"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_gpu_gives_the_same(flavour: Flavour) -> None:
    images, target = pictures(2, 3, 32, 32), Hog((16, 16), MEAN, STD, flavour)
    torch.testing.assert_close(target.cuda()(images.cuda()).cpu(), target.cpu()(images), atol=1e-5, rtol=0)
