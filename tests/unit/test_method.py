"""method.py: the equation, with counted targets and parts so small that the loss is computed by hand."""

import math

import pytest
import torch
from torch import Generator, Tensor, nn

from remask.backbones.hierarchical import create_hierarchical
from remask.backbones.masked_input import Dropped, PixelsReplaced, TokensReplaced
from remask.backbones.vit import ViT, create_vit
from remask.distances import l1, smooth_l1, squared
from remask.errors import UserError
from remask.heads import Decoder, Linear, ProjectionHead, Projector, TokenDecoder
from remask.masking import Masking
from remask.method import Branch, Method, Region
from remask.methods import dm, jd, mae
from remask.targets import Hog, Pixels
from remask.views import Views

MEAN, STD = [0.5], [0.25]
SIZE, PATCH = (16, 16), (4, 4)


class Counted(nn.Module):
    """A target that counts its calls."""

    width = 5

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, images: Tensor, views: Views) -> Tensor:
        self.calls += 1
        return torch.arange(len(images) * 16 * 5.0).reshape(len(images), 16, 5)

    def describe(self) -> str:
        return "counted"


def vit() -> ViT:
    torch.manual_seed(0)
    small = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
    return create_vit("vit_micro", SIZE, MEAN, STD, overrides=small)


def pictures(batch: int = 3) -> Tensor:
    return torch.randint(0, 256, (batch, 1, *SIZE), dtype=torch.uint8, generator=Generator().manual_seed(1))


def branch(name: str, target: Counted, region: str = "masked", weight: float = 1.0, layer: int = -1) -> Branch:
    head = Projector(16, 5, 8) if region == "visible" else Decoder(16, 5, (4, 4), 16, 1, 2)
    return Branch(name, head, target, squared, region, weight, layer)  # type: ignore[arg-type]


def test_total_is_the_weighted_sum_of_the_branches() -> None:
    target = Counted()
    branches = [branch("masked", target, weight=0.5), branch("visible", target, "visible", weight=3.0)]
    losses = Method(vit(), Masking(0.5, views=2), branches)(pictures())
    assert list(losses) == ["masked", "visible", "total"]
    assert losses["total"].item() == pytest.approx(0.5 * losses["masked"].item() + 3.0 * losses["visible"].item())
    assert all(loss.shape == () for loss in losses.values())


def test_a_loss_is_the_mean_distance_over_its_region() -> None:
    """By a loop over views, images and tokens, on a backbone that replaces (every token is at hand)."""
    backbone, target, images = vit(), Counted(), pictures()
    parts = [
        Branch("masked", Linear(16, 5), target, l1, "masked"),
        Branch("visible", Linear(16, 5, "visible"), target, smooth_l1, "visible", layer=0),
    ]
    method = Method(backbone, Masking(0.6, views=2), parts, TokensReplaced())
    views = method.draw(images, Generator().manual_seed(0))
    losses = method(images, views)
    features = backbone.encode(backbone.embed(images), views, mask_token=method.sees.mask_token, layers=(0, -1))
    by_hand: dict[str, list[Tensor]] = {"masked": [], "visible": []}
    for v in range(2):
        for b in range(3):
            for i in range(16):
                part = parts[0] if views.mask[v, b, i] else parts[1]
                prediction = part.head.predict(features[part.layer].tokens[v * 3 + b, i])  # type: ignore[attr-defined]
                by_hand[part.name].append(part.distance(prediction, target(images, views)[b, i]))
    for name, values in by_hand.items():
        assert losses[name].item() == pytest.approx(torch.stack(values).mean().item(), rel=1e-5)


@pytest.mark.parametrize("views", [1, 2, 5])
def test_a_target_is_computed_once_however_many_views_and_branches(views: int) -> None:
    shared, other = Counted(), Counted()
    branches = [branch("masked", shared), branch("visible", shared, "visible"), branch("deep", other, layer=0)]
    Method(vit(), Masking(0.5, views=views), branches)(pictures())
    assert (shared.calls, other.calls) == (1, 1)


def test_perfect_predictions_lose_nothing() -> None:
    """Predictions and targets meet token by token, in both regions."""

    class Oracle(nn.Module):
        def __init__(self, target: nn.Module, region: str) -> None:
            super().__init__()
            self.target, self.region = target, region

        def forward(self, features: object, views: Views) -> Tensor:
            return views.gather(self.target(images, views), self.region)

        def describe(self) -> str:
            return "oracle"

    images = pictures()
    for target in (Pixels(PATCH, MEAN, STD), Hog(PATCH, MEAN, STD, cell=2)):
        branches = [
            Branch(region, Oracle(target, region), target, squared, region)  # type: ignore[arg-type]
            for region in ("masked", "visible")
        ]
        losses = Method(vit(), Masking(0.5, views=2), branches)(images)
        assert losses["total"].item() == 0


def test_predictions_are_of_the_tokens_they_are_compared_with() -> None:
    """A decoder with one block of zeros returns mask token + position: each row must carry its own token's position."""
    target, images = Pixels(PATCH, MEAN, STD), pictures()
    method = mae(vit(), Masking(0.5, views=2), target, SIZE, 16, 1, 2)
    decoder = method.branches[0].head
    assert isinstance(decoder, Decoder)
    for parameter in decoder.blocks.parameters():
        nn.init.zeros_(parameter)
    decoder.norm, decoder.predict = nn.Identity(), nn.Identity()  # type: ignore[assignment]
    views = method.draw(images, Generator().manual_seed(0))
    prediction, wanted = method.pairs(images, views)["masked"]
    assert torch.allclose(prediction - decoder.mask_token, decoder.positions[views.masked], atol=1e-6)
    assert torch.equal(wanted, views.gather(target(images), "masked"))


def test_only_the_layers_asked_for_are_run() -> None:
    method = Method(vit(), Masking(0.5), [branch("shallow", Counted(), layer=0)])
    method(pictures())["total"].backward()
    reached = {name for name, p in method.backbone.network.named_parameters() if p.grad is not None}
    assert any(name.startswith("blocks.0") for name in reached)
    assert not any(name.startswith(("blocks.1", "norm.")) for name in reached)


def test_given_views_are_used_and_none_are_drawn() -> None:
    method, images = Method(vit(), Masking(0.5), [branch("masked", Counted())]), pictures()
    views = method.draw(images, Generator().manual_seed(0))
    state = torch.random.get_rng_state()
    first, second = method(images, views), method(images, views)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first["total"], second["total"])
    assert not torch.equal(method(images)["total"], first["total"])


def test_draw_is_decided_by_its_generator() -> None:
    method, images = Method(vit(), Masking(0.5, views=2), [branch("masked", Counted())]), pictures()
    draws = [method.draw(images, Generator().manual_seed(seed)).mask for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_the_batch_may_pass_in_slices() -> None:
    """What gradient accumulation relies on: losses of slices, weighted by their sizes, are the loss of the batch."""
    method, images = dm(mae(vit(), Masking(0.5), Pixels(PATCH, MEAN, STD), SIZE, 16, 1, 2)), pictures(4)
    method = jd(method, Hog(PATCH, MEAN, STD, cell=2), 8)
    views = method.draw(images, Generator().manual_seed(0))
    whole = method(images, views)
    parts = [method(i, v) for i, v in zip(images.tensor_split(4), views.split(4), strict=True)]
    for name, loss in whole.items():
        assert loss.item() == pytest.approx(sum(part[name].item() for part in parts) / 4, rel=1e-5)


def test_losses_are_full_precision_under_autocast() -> None:
    method = mae(vit(), Masking(0.5), Pixels(PATCH, MEAN, STD), SIZE, 16, 1, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = method(pictures())
    assert {loss.dtype for loss in losses.values()} == {torch.float32}


@pytest.mark.parametrize("size", [(8, 24), (16, 16), (24, 12)])
def test_pictures_of_another_size_than_built_for(size: tuple[int, int]) -> None:
    method = jd(
        dm(mae(vit(), Masking(0.5), Pixels(PATCH, MEAN, STD), SIZE, 16, 1, 2)), Hog(PATCH, MEAN, STD, cell=2), 8
    )
    images = torch.randint(0, 256, (2, 1, *size), dtype=torch.uint8)
    assert torch.isfinite(method(images)["total"])


# ------------------------------------------------------------------------------- prefix tokens, views, learned weights


class IndexedImages(Counted):
    """Rows of their own numbers: 100 · image (or row of the views) + place; `prefix` of them before the grid's."""

    def __init__(self, prefix: int, per_view: bool) -> None:
        super().__init__()
        self.prefix, self.per_view = prefix, per_view

    def forward(self, images: Tensor, views: Views) -> Tensor:
        rows, tokens = views.visible.shape if self.per_view else (len(images), 16)
        numbers = 100.0 * torch.arange(rows)[:, None] + torch.arange(self.prefix + tokens)
        return numbers.unsqueeze(-1).expand(-1, -1, 5)


@pytest.mark.parametrize(
    ("region", "prefix"),
    [("encoded", 1), ("visible", 0), ("visible", 1), ("visible", 4), ("masked", 0), ("masked", 4)],
)
@pytest.mark.parametrize("per_view", [False, True])
def test_rows_of_a_target_that_has_prefix_tokens_or_sees_the_view(prefix: int, per_view: bool, region: Region) -> None:
    target, images = IndexedImages(prefix, per_view), pictures()
    if per_view and region == "masked":
        with pytest.raises(UserError, match="counted: it knows nothing of masked tokens"):
            Branch("b", Linear(16, 5), target, l1, region)
        return
    head = ProjectionHead(16, 5, "linear", region) if region == "encoded" else Linear(16, 5, region)
    part = Branch("b", head, target, l1, region)
    method = Method(vit(), Masking(0.6, views=2), [part], TokensReplaced())
    views = method.draw(images, Generator().manual_seed(0))
    prediction, wanted = method.pairs(images, views)["b"]
    for v in range(2):
        for b in range(3):
            hidden = views.mask[v, b] if region == "masked" else ~views.mask[v, b]
            places = hidden.nonzero().flatten().tolist()
            if per_view:  # its grid is the visible tokens
                places = range(len(places))
            places = [*(range(prefix) if region == "encoded" else ()), *(prefix + place for place in places)]
            row = 3 * v + b
            assert wanted[row, :, 0].tolist() == [100 * (row if per_view else b) + place for place in places]
    assert prediction.shape == wanted.shape


def test_a_learned_weight_is_one_parameter() -> None:
    """exp(-s), and s beside it; a given one is a number, and the names of the losses are as ever."""
    target = Counted()
    branches = [branch("masked", target, weight=0.5), branch("visible", target, "visible", weight=3.0)]
    branches.append(Branch("trained", Projector(16, 5, 8), target, l1, "visible", 0.25, learned=True))
    method = Method(vit(), Masking(0.5), branches)
    losses = {name: loss.item() for name, loss in method(pictures()).items()}
    assert list(losses) == ["masked", "visible", "trained", "weight/trained", "total"]
    assert losses["weight/trained"] == pytest.approx(0.25)
    expected = 0.5 * losses["masked"] + 3 * losses["visible"] + 0.25 * losses["trained"] + math.log(4)
    assert losses["total"] == pytest.approx(expected)
    named = {name for name, _ in method.named_parameters() if "log_variance" in name}
    assert named == {"branches.2.log_variance"}
    assert method.with_().branches[2].log_variance is branches[2].log_variance


# ----------------------------------------------------------------------------------------------- masked pixels hidden


def hiding(views: int = 2, unit: tuple[int, int] | None = None) -> Method:
    """Masked pixels become a colour, on tokens of 4×4 px or masks of `unit`."""
    fine = (1, 1) if unit is None else (4 // unit[0], 4 // unit[1])
    target = Pixels(unit or PATCH, MEAN, STD)
    parts = [
        Branch(region, TokenDecoder(16, target.width, 16, 1, 2, 4.0, fine, region=region), target, squared, region)
        for region in ("masked", "visible")
    ]
    return Method(vit(), Masking(0.6, views=views), parts, PixelsReplaced(unit))


def normalised(images: Tensor) -> Tensor:
    return (images / 255 - MEAN[0]) / STD[0]


@pytest.mark.parametrize("unit", [None, (2, 2), (4, 1)])
def test_hidden_pixels_are_one_learned_colour_and_the_rest_the_image(unit: tuple[int, int] | None) -> None:
    method, images = hiding(unit=unit), pictures()
    (down, right), views = unit or PATCH, method.draw(images, Generator().manual_seed(0))
    assert isinstance(method.sees, PixelsReplaced)
    assert method.sees.mask_pixel is not None
    colour = method.sees.mask_pixel
    assert (colour.shape, method.mask_unit, views.grid) == ((1,), (down, right), (16 // down, 16 // right))
    seen, whole = method.sees.hide(method.backbone, images, views), normalised(images)
    assert seen.shape == (2 * 3, 1, 16, 16)
    for v in range(2):
        for b in range(3):
            mask = views.mask[v, b].unflatten(0, views.grid)
            for y in range(16):
                for x in range(16):
                    wanted = colour if mask[y // down, x // right] else whole[b, :, y, x]
                    assert torch.allclose(seen[v * 3 + b, :, y, x], wanted, atol=1e-6)


@pytest.mark.parametrize("unit", [None, (2, 2)])
def test_hidden_pixels_change_nothing_at_all(unit: tuple[int, int] | None) -> None:
    """One view at a time, for what one view hides another sees; not by the smallest number."""
    method, images = hiding(views=1, unit=unit), pictures()
    views = method.draw(images, Generator().manual_seed(0))
    hidden = views.pixels(method.mask_unit)[0].unsqueeze(1)
    before, after, other = (
        method.encode(x, views, (0, -1))
        for x in (images, torch.where(hidden, 255 - images, images), torch.where(hidden, images, 255 - images))
    )
    for layer in (0, -1):
        for mine, theirs in zip(before[layer], after[layer], strict=True):
            assert float((mine - theirs).detach().abs().max()) == 0.0
        assert not torch.equal(before[layer].tokens, other[layer].tokens)


def test_views_share_nothing_but_the_image() -> None:
    """Each view alone has the features that it has beside others."""
    method, images = hiding(views=3), pictures()
    views = method.draw(images, Generator().manual_seed(0))
    together = method.encode(images, views)[-1].tokens.unflatten(0, (3, 3))
    for v in range(3):
        alone = method.encode(images, Views(views.mask[v : v + 1], views.grid, views.hidden))[-1].tokens
        assert torch.allclose(together[v], alone, atol=1e-6)


def test_floats_are_taken_as_normalised_before_they_are_hidden() -> None:
    method, images = hiding(), pictures()
    views = method.draw(images, Generator().manual_seed(0))
    assert torch.allclose(
        method.sees.hide(method.backbone, normalised(images), views),  # type: ignore[attr-defined]
        method.sees.hide(method.backbone, images, views),  # type: ignore[attr-defined]
        atol=1e-5,
    )
    mine, theirs = (method(x, views)["total"].item() for x in (images, normalised(images)))
    assert mine == pytest.approx(theirs, rel=1e-4)


def test_plug_ins_keep_what_hides_and_where() -> None:
    plain, images = hiding(views=1, unit=(2, 2)), pictures()
    grown = jd(dm(plain, 2), Hog((2, 2), MEAN, STD, cell=1), 8)
    assert (grown.mask_unit, grown.cells_per_token, grown.masking.views) == ((2, 2), (2, 2), 2)
    assert grown.sees is plain.sees
    assert torch.isfinite(grown(images)["total"])


@pytest.mark.parametrize(
    ("sees", "line"), [(Dropped(), "cannot drop masked"), (TokensReplaced(), "cannot replace masked")]
)
def test_a_backbone_that_cannot_is_refused_in_one_line(sees: Dropped | TokensReplaced, line: str) -> None:
    backbone = create_hierarchical("resnet18", (32, 32), MEAN, STD)
    with pytest.raises(UserError, match=f"ResNet {line} tokens, as this method asks; choose another backbone") as error:
        Method(backbone, Masking(0.5), [branch("masked", Counted())], sees)
    assert "\n" not in str(error.value)
    hiding_pixels = PixelsReplaced()
    Method(backbone, Masking(0.5), [branch("masked", Counted())], hiding_pixels)
    assert hiding_pixels.mask_pixel is not None


def test_masks_must_fit_the_image() -> None:
    """And images the backbone's tokens, however fine the masks are."""
    for unit in (None, (2, 2)):
        with pytest.raises(UserError, match="18×16 px cannot be cut into patches of 4×4"):
            hiding(unit=unit).grid((18, 16))
    assert hiding(unit=(2, 2)).grid((20, 16)) == (10, 8)


# -------------------------------------------------------------------------------- some hidden tokens predicted


@pytest.mark.parametrize("predicted", ["once", 0.25])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_decoder_predicts_what_the_masking_says_as_it_would_among_all(predicted: str | float, depth: int) -> None:
    """Each token's prediction is the one that it has when all are predicted: the others still enter the decoder."""
    masking = Masking(0.75, views=2, predicted=predicted)  # type: ignore[arg-type]
    method = mae(vit(), masking, Pixels(PATCH, MEAN, STD), SIZE, 16, depth, 2).eval()
    everything = mae(vit(), Masking(0.75, views=2), Pixels(PATCH, MEAN, STD), SIZE, 16, depth, 2).eval()
    everything.load_state_dict(method.state_dict())
    images = pictures()
    views = method.draw(images, Generator().manual_seed(0))
    rows, count = views.predicted, method.masking.counts(views.grid).per_view
    assert rows.shape[1] == count < views.hidden
    some, target = method.pairs(images, views)["masked"]
    full, full_target = everything.pairs(images, Views(views.mask, views.grid, views.hidden))["masked"]
    place = (views.masked.unsqueeze(1) == rows.unsqueeze(2)).float().argmax(2)
    for mine, theirs in ((some, full), (target, full_target)):
        picked = theirs.gather(1, place.unsqueeze(-1).expand(-1, -1, theirs.shape[-1]))
        assert torch.allclose(mine, picked, atol=1e-5)
    assert method(images, views)["total"].item() == pytest.approx((some - target).square().mean().item(), rel=1e-5)


def test_a_masking_that_no_branch_follows_is_refused() -> None:
    with pytest.raises(UserError, match="no branch of this method predicts less than all"):
        Method(vit(), Masking(0.5, predicted=0.25), [branch("masked", Counted())])
