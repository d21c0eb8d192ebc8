"""backbones/cmt_network.py: the official encoder's numbers where they are at hand, other image sizes, and mistakes."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from remask.backbones.cmt_network import VARIANTS, Cmt, resize_relative
from remask.errors import UserError

# config.json of the vectors
GOLDEN: Any = {"stem_width": 8, "embed_dims": (16, 32, 48, 64), "depths": (1, 2, 1, 1), "num_heads": (1, 2, 3, 4)}
TOY: dict[str, Any] = {**GOLDEN, "stem_width": 4, "embed_dims": (4, 8, 12, 16)}
NAMES = ("cmt_hog_block32_io", "cmt_hog_block32_state_dict", "hog")


class Official(nn.Module):
    """FastMIM around our encoder: a pixel for masked pixels, two plain blocks as decoder, HOG of masked cells."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Cmt(64, **GOLDEN)
        self.mask_token = nn.Parameter(torch.zeros(1, 3, 1, 1))
        self.decoder_embed = nn.Linear(64, 32)
        self.decoder_blocks = nn.ModuleList(Block(32, 1, qkv_bias=True, norm_layer=nn.LayerNorm) for _ in range(2))
        self.decoder_norm, self.decoder_pred = nn.LayerNorm(32), nn.Linear(32, 432)

    def forward(self, io: dict[str, Tensor]) -> Tensor:
        masked = torch.where(io["pixel_mask"].bool(), self.mask_token, io["images"])
        x = self.decoder_embed(self.encoder.forward_features(masked).flatten(2).mT)
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x))


@pytest.fixture
def golden(shared: Path) -> tuple[Official, dict[str, Tensor], Tensor]:
    """The official weights loaded strictly, inputs and outputs, and the HOG of the images."""
    paths = [shared / "golden" / "fastmim" / f"{name}.safetensors" for name in NAMES]
    if absent := [path.name for path in paths if not path.is_file()]:
        pytest.skip(f"the golden vectors of FastMIM lack {', '.join(absent)}")
    io, state, hog = map(load_file, paths)
    model = Official()
    model.load_state_dict(state, strict=True)
    return model.eval(), io, hog["model_images64_hog_l2"]


def loss_of(pred: Tensor, hog: Tensor, io: dict[str, Tensor]) -> Tensor:
    """Mean square over masked tokens; a target runs channel and bin, cell row, cell column of a token's 4×4 cells."""
    target = hog.unflatten(3, (2, 4)).unflatten(2, (2, 4)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    hidden = io["loss_mask"].flatten(1).bool()
    return F.mse_loss(pred[hidden], target[hidden])


def close(actual: Tensor, expected: Tensor, atol: float = 2e-5) -> None:
    torch.testing.assert_close(actual.detach(), expected, atol=atol, rtol=1e-4)


def images(rows: int, columns: int | None = None, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, rows, columns or rows, generator=torch.Generator().manual_seed(1))


def toy(size: int | tuple[int, int] = 64, **overrides: Any) -> Cmt:
    torch.manual_seed(0)
    return Cmt(size, **{**TOY, **overrides}).eval()


def levels(network: Cmt, pixels: Tensor, **options: Any) -> list[Tensor]:
    maps = network.forward_intermediates(pixels, intermediates_only=True, **options)
    assert isinstance(maps, list)
    return maps


def ramp(grid: tuple[int, int]) -> Tensor:
    """A value for every cell that grows evenly over the picture, in raster order; its slopes are those per picture."""
    rows, columns = ((torch.arange(n) + 0.5) / n for n in grid)
    return (3 * rows[:, None] + 5 * columns).flatten()


def test_activations_of_the_official_encoder(golden: tuple[Official, dict[str, Tensor], Tensor]) -> None:
    model, io, _ = golden
    kept: dict[str, Tensor] = {}
    wanted = {key.removeprefix("act."): value for key, value in io.items() if key.startswith("act.")}
    for name in wanted:
        model.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: kept.update({name: out}))
    with torch.no_grad():
        pred = model(io)
    assert set(kept) == set(wanted)
    for name, expected in wanted.items():
        close(kept[name] if kept[name].ndim == expected.ndim else kept[name].flatten(1, 2), expected)
    close(pred, io["pred"])


def test_loss_and_gradients_of_the_official_model(golden: tuple[Official, dict[str, Tensor], Tensor]) -> None:
    model, io, hog = golden
    loss = loss_of(model(io), hog, io)
    loss.backward()
    close(loss, io["loss"], atol=5e-6)
    wanted = {key.removeprefix("grad."): value for key, value in io.items() if key.startswith("grad.")}
    assert len(wanted) >= 5
    for name, expected in wanted.items():
        grad = model.get_parameter(name).grad
        assert grad is not None
        close(grad, expected, atol=1e-4 * float(expected.abs().max()))


def test_batch_norm_in_training_is_the_official_one(golden: tuple[Official, dict[str, Tensor], Tensor]) -> None:
    model, io, hog = golden
    with torch.no_grad():
        pred = model.train()(io)
    close(pred, io["train_mode.pred"], atol=5e-5)
    close(loss_of(pred, hog, io), io["train_mode.loss"], atol=1e-5)


def test_size_of_cmt_small() -> None:
    """FastMIM's encoder at 128 px: 24.06 M."""
    with torch.device("meta"):
        network = Cmt(128, **VARIANTS["cmt_s"])
    assert sum(p.numel() for p in network.parameters()) == 24_059_584
    assert network.feature_info == [
        {"num_chs": 64 * 2**i, "reduction": 4 * 2**i, "module": f"blocks_{name}"} for i, name in enumerate("abcd")
    ]
    assert network.num_features == 512
    assert network.get_parameter("relative_pos_a").shape == (1, 1024, 16)
    for info in network.feature_info:
        assert isinstance(network.get_submodule(str(info["module"])), nn.ModuleList)


@pytest.mark.parametrize("size", [32, 64])
def test_the_small_one_on_small_images(size: int) -> None:
    torch.manual_seed(0)
    network = Cmt(size, **VARIANTS["cmt_micro"]).train()
    assert 500_000 < sum(p.numel() for p in network.parameters()) < 1_000_000
    out = network(images(size))
    assert out.shape == (2, 192, size // 32, size // 32)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("size", [64, 96])
def test_gradients_reach_every_parameter(size: int) -> None:
    """In evaluation mode: a batch norm in training takes away what a bias right before it adds."""
    network = toy(num_classes=3)
    network(images(size)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        if not name.endswith("attn.k.bias"):  # it adds the same to all scores of a query
            assert parameter.grad.abs().max() > 1e-6, name


def test_it_starts_as_the_official_one() -> None:
    torch.manual_seed(0)
    network = Cmt(64, **VARIANTS["cmt_micro"])
    hidden = 4 * 192
    deviations = {
        "blocks_d.0.attn.q.weight": (1 / 192) ** 0.5,  # Xavier-uniform: 2 / (fan in + fan out)
        "blocks_d.0.mlp.conv1.0.weight": (2 / hidden) ** 0.5,
        "blocks_d.0.mlp.proj.weight": (2 / (9 * hidden)) ** 0.5,  # as if it were no depth-wise one
        "relative_pos_a": 1,
    }
    for name, expected in deviations.items():
        assert network.get_parameter(name).std().item() == pytest.approx(expected, rel=0.05)
    assert not any(p.any() for name, p in network.named_parameters() if name.endswith("bias"))


def test_logits_are_of_the_mean() -> None:
    network = toy(num_classes=3)
    with torch.no_grad():
        features = network.forward_features(images(64))
        close(network(images(64)), network.head(features.mean((2, 3))))
    assert features.shape == (2, 16, 2, 2)


def test_drop_path_grows_over_all_blocks() -> None:
    network = toy(drop_path_rate=0.4)
    blocks = [block for name in "abcd" for block in network.get_submodule(f"blocks_{name}").children()]
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize("size", [(32, 32), (96, 64), (128, 128)])
def test_another_image_size_than_built_for(size: tuple[int, int]) -> None:
    """The same as a network built for that size with the resized state,."""
    network, other = toy(), toy(size)
    other.load_state_dict(other.resized(network.state_dict(), (64, 64)), strict=True)
    with torch.no_grad():
        out = network(images(*size))
        close(out, other(images(*size)))
    assert out.shape == (2, 16, size[0] // 32, size[1] // 32)


def test_transposed_images_give_transposed_maps() -> None:
    """With kernels and position biases that treat rows as columns; so no axis is mistaken for another on the way."""
    network = toy(num_heads=(1, 1, 1, 1))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim == 4:
                parameter.copy_((parameter + parameter.mT) / 2)
            if name.startswith("relative_pos"):
                (queries, keys), size = network.grids((64, 64))["abcd".index(name[-1])], parameter.shape
                table = parameter.view(-1, *queries, *keys)
                parameter.copy_(((table + table.permute(0, 2, 1, 4, 3)) / 2).reshape(size))
        for pixels in (images(64), images(96, 32)):
            close(network(pixels.mT), network(pixels).mT)


def test_resizing_to_the_same_grid_is_nothing() -> None:
    table = torch.randn(2, 12, 6)
    assert resize_relative(table, ((3, 4), (3, 4)), ((2, 3), (2, 3))) is table
    state = toy().state_dict()
    resized = toy().resized(state, (64, 64))
    assert list(resized) == list(state)
    assert all(resized[key] is state[key] for key in state)


def test_resizing_is_over_the_picture() -> None:
    """A bias that is even over the picture, of queries less that of keys, stays so, but for the rim of one old cell."""
    old, new, old_keys, new_keys = (6, 8), (12, 12), (5, 7), (10, 14)
    table = (ramp(old)[:, None] - 2 * ramp(old_keys))[None]
    resized = resize_relative(table, (old, new), (old_keys, new_keys)).view(*new, *new_keys)
    expected = (ramp(new)[:, None] - 2 * ramp(new_keys)).view(*new, *new_keys)
    inner = (slice(4, -4),) * 4
    assert resized.shape == expected.shape
    torch.testing.assert_close(resized[inner], expected[inner], atol=1e-4, rtol=0)
    assert (resized - expected).abs().max() < 1  # a flattened axis would leap by 5 and by 10 at the ends of rows


def test_queries_and_keys_are_resized_apart() -> None:
    table = torch.randn(2, 12, 6)
    wider, narrower, same = ((3, 4), (6, 6)), ((2, 3), (4, 1)), ((1, 1), (1, 1))
    queries = resize_relative(table, wider, ((2, 3), (2, 3)))
    keys = resize_relative(table, ((3, 4), (3, 4)), narrower)
    assert (queries.shape, keys.shape) == ((2, 36, 6), (2, 12, 4))
    close(keys[:, 7:8], resize_relative(table[:, 7:8], same, narrower))
    close(queries[:, :, 4:5], resize_relative(table[:, :, 4:5], wider, same))
    close(resize_relative(queries, ((6, 6), (6, 6)), narrower), resize_relative(table, wider, narrower))


def test_a_state_of_another_size_is_refused() -> None:
    network = toy()
    with pytest.raises(UserError, match=r"relative_pos_a has the shape \(1, 256, 4\), where 96×96 px give 576×9"):
        network.resized(network.state_dict(), (96, 96))
    with pytest.raises(UserError, match=r"relative_pos_a has the shape \(\)"):
        network.resized({}, (64, 64))


def test_intermediates_are_the_ends_of_the_stages() -> None:
    network, pixels = toy(), images(64)
    with torch.no_grad():
        features = network.forward_features(pixels)
        out, maps = network.forward_intermediates(pixels)
        normed = levels(network, pixels, indices=1, norm=True)
        some = levels(network, pixels, indices=(-4, 2), stop_early=True)
    assert torch.equal(out, features)
    assert [tuple(level.shape) for level in maps] == [(2, 4, 16, 16), (2, 8, 8, 8), (2, 12, 4, 4), (2, 16, 2, 2)]
    close(network.norm(maps[3].permute(0, 2, 3, 1)).permute(0, 3, 1, 2), features)
    for found, expected in ((normed, [features]), (some, [maps[0], maps[2]])):
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def test_stopping_early_runs_no_later_stage() -> None:
    network = toy()
    (level,) = levels(network, images(64), indices=[1], stop_early=True)
    level.sum().backward()
    reached = {name.split(".")[0] for name, p in network.named_parameters() if p.grad is not None}
    assert "blocks_b" in reached
    assert not reached & {"patch_embed_c", "blocks_c", "relative_pos_d", "norm"}


@pytest.mark.parametrize(
    ("size", "overrides", "line"),
    [
        (48, {}, "48×48 px cannot be halved down to CMT's cells of 32×32 px"),
        ((64, 16), {}, "64×16 px cannot be halved"),
        (0, {}, "0×0 px cannot be halved"),
        (64, {"depths": (1, 1, 1)}, "CMT has 4 stages"),
        (64, {"num_heads": (1, 3, 3, 4)}, "3 heads do not divide the width 8 of CMT's stage 2"),
        (64, {"sr_ratios": (8, 4, 4, 1)}, "sr ratio 4 of CMT's stage 3 must divide 2"),
    ],
)
def test_mistakes_are_one_line(size: int | tuple[int, int], overrides: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line) as caught:
        toy(size, **overrides)
    assert "\n" not in str(caught.value)


def test_an_image_or_a_request_that_does_not_fit() -> None:
    network = toy()
    with pytest.raises(UserError, match="40×64 px"):
        network(images(40, 64))
    with pytest.raises(UserError, match="NLC"):
        network.forward_intermediates(images(64), output_fmt="NLC")
    for indices in (5, 0, (4,), (-5,), ()):
        with pytest.raises(UserError, match="CMT has 4 stages"):
            network.forward_intermediates(images(64), indices=indices)
