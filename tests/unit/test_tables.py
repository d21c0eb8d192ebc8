"""backbones/tables.py: a network's tables of positions, made for one image size, fit one that is built for another."""

from typing import Any

import pytest
import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from remask.backbones import Backbone
from remask.backbones.beit import create_beit
from remask.backbones.hierarchical import create_hierarchical
from remask.backbones.swin import create_swin
from remask.backbones.tables import offsets, resize_state, resize_table, spline, window_before
from remask.backbones.vit import create_vit
from remask.types import UserError

MEAN, STD = [0.5] * 3, [0.25] * 3
TOY = {"patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2}
MAKERS: dict[str, Any] = {
    "vit_micro": lambda size: create_vit("vit_micro", size, MEAN, STD, positions="learned", overrides=TOY),
    "beit_micro": lambda size: create_beit("beit_micro", size, MEAN, STD, overrides=TOY),
    "swin_micro": lambda size: create_swin(
        "swin_micro", size, MEAN, STD, overrides={"embed_dim": 8, "num_heads": (1, 2, 2)}
    ),
    "cmt_micro": lambda size: create_hierarchical("cmt_micro", size, MEAN, STD),
}
SIZES = {"vit_micro": ((16, 24), (24, 40)), "beit_micro": ((16, 24), (24, 16)), "swin_micro": ((48, 48), (64, 64))}


def made(name: str, size: tuple[int, int], seed: int = 0) -> Backbone:
    torch.manual_seed(seed)
    backbone = MAKERS[name](size).eval()
    for parameter in backbone.parameters():
        nn.init.normal_(parameter, std=0.2)
    return backbone


def resized(
    name: str, before: tuple[int, int], after: tuple[int, int]
) -> tuple[dict[str, Tensor], dict[str, Tensor], Backbone]:
    """The old state, the resized one, and the network built for the new size with it."""
    old, new = made(name, before), made(name, after, seed=1)
    state = old.network.state_dict()
    out = resize_state(state, new.network, before, after, new.patch)
    new.network.load_state_dict(out, strict=True)
    return state, out, new


def pictures(size: tuple[int, int]) -> Tensor:
    return torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", MAKERS)
def test_only_tables_change(name: str) -> None:
    before, after = SIZES.get(name, ((64, 32), (96, 64)))
    state, out, _ = resized(name, before, after)
    changed = {key for key in state if not torch.equal(out[key], state[key])}
    assert changed
    tables = ("pos_embed", "relative_position_bias_table", *(f"relative_pos_{stage}" for stage in "abcd"))
    assert all(key.endswith(tables) for key in changed)


@pytest.mark.parametrize("name", MAKERS)
def test_equal_sizes_change_nothing(name: str) -> None:
    size = SIZES.get(name, ((64, 32),))[0]
    state, out, _ = resized(name, size, size)
    assert all(torch.equal(state[key], out[key]) for key in state)


@pytest.mark.parametrize("name", ["vit_micro", "beit_micro", "cmt_micro"])
def test_a_resized_network_is_the_one_that_resizes_on_the_way(name: str) -> None:
    """What a backbone makes of an image of another size than it was built for."""
    before, after = SIZES.get(name, ((64, 32), (96, 64)))
    _, _, new = resized(name, before, after)
    old: Any = made(name, before)
    images = pictures(after)
    with torch.no_grad():
        assert torch.allclose(old(images).tokens, new(images).tokens, atol=1e-5)  # type: ignore[operator]


def test_positions_of_a_vit_on_grids_that_are_not_square() -> None:
    """By timm's own resampling; the class token keeps its row."""
    state, out, _ = resized("vit_micro", (16, 24), (24, 40))
    old, new = state["pos_embed"], out["pos_embed"]
    assert (old.shape, new.shape) == ((1, 1 + 4 * 6, 8), (1, 1 + 6 * 10, 8))
    assert torch.equal(new[:, :1], old[:, :1])
    assert torch.equal(new, resample_abs_pos_embed(old, new_size=[6, 10], old_size=[4, 6], num_prefix_tokens=1))
    along_rows = torch.arange(4.0).repeat_interleave(6)[None, :, None].expand(1, 24, 8)
    ramp = {"pos_embed": torch.cat([old[:, :1], along_rows], 1)}
    grown = resize_state(ramp, made("vit_micro", (24, 40)).network, (16, 24), (24, 40), (4, 4))["pos_embed"]
    rows = grown[0, 1:, 0].unflatten(0, (6, 10))
    assert torch.allclose(rows, rows[:, :1].expand(-1, 10), atol=1e-5)  # nothing of a column leaks into rows
    assert bool((rows[1:, 0] > rows[:-1, 0]).all())


@pytest.mark.parametrize(("before", "after", "old", "new"), [(48, 64, 6, 4), (40, 48, 5, 6), (32, 64, 4, 4)])
def test_the_window_of_a_swin_follows_the_image(before: int, after: int, old: int, new: int) -> None:
    """4 where it tiles all stages, or else the last grid."""
    state, out, network = resized("swin_micro", (before, before), (after, after))
    tables = [key for key in state if key.endswith("relative_position_bias_table")]
    assert len(tables) == 6
    for key in tables:
        table, grown = state[key], out[key]
        assert (len(table), len(grown)) == (offsets((old, old)), offsets((new, new)))
        assert torch.equal(grown, resize_table(table, (old, old), (new, new)))
        assert torch.allclose(grown[len(grown) // 2], table[len(table) // 2], atol=1e-6)  # no offset stays no offset
    assert torch.isfinite(network(pictures((after, after))).tokens).all()  # type: ignore[operator]


def test_a_window_that_changes_on_the_same_image() -> None:
    """A network of the same image size may have been given other windows."""
    state, new = made("swin_micro", (32, 32)).network.state_dict(), made("swin_micro", (48, 48)).network
    key = "layers.0.blocks.0.attn.relative_position_bias_table"
    resized = resize_state(state, new, (48, 48), (48, 48), (8, 8))
    assert torch.equal(resized[key], resize_table(state[key], (4, 4), (6, 6)))


def test_a_turned_image_has_turned_tables() -> None:
    """As many cells and as many offsets, and yet other ones."""
    state, out, new = resized("vit_micro", (16, 24), (24, 16))
    old: Any = made("vit_micro", (16, 24))
    assert out["pos_embed"].shape == state["pos_embed"].shape
    assert not torch.equal(out["pos_embed"], state["pos_embed"])
    with torch.no_grad():
        images = pictures((24, 16))
        assert torch.allclose(old(images).tokens, new(images).tokens, atol=1e-5)  # type: ignore[operator]


def test_the_rows_of_beits_class_token_are_kept() -> None:
    state, out, _ = resized("beit_micro", (16, 24), (24, 16))
    (key,) = (key for key in state if key.endswith("relative_position_bias_table"))
    old, new = state[key], out[key]
    assert (len(old), len(new)) == (offsets((4, 6)) + 3, offsets((6, 4)) + 3)
    assert torch.equal(new[-3:], old[-3:])
    assert torch.allclose(new[:-3].unflatten(0, (11, 7))[5, 3], old[:-3].unflatten(0, (7, 11))[3, 5], atol=1e-5)


def test_names_that_the_network_lacks_are_kept() -> None:
    new = made("vit_micro", (24, 40)).network
    extra = torch.randn(3)
    assert resize_state({"elsewhere": extra}, new, (16, 24), (24, 40), (4, 4))["elsewhere"] is extra


def test_a_tensor_that_is_no_table_is_refused_in_one_line() -> None:
    """A mixer's weights over tokens belong to one image size."""
    before, after = (64, 64), (96, 96)
    old, new = (create_hierarchical("mixer_s32_224", size, MEAN, STD) for size in (before, after))
    line = (
        r"blocks.0.mlp_tokens.fc1.weight is \(256, 4\) for images of 64×64 px and \(256, 9\) for 96×96, "
        "and is no table that can be resized; choose another backbone, or one size"
    )
    with pytest.raises(UserError, match=line) as caught:
        resize_state(old.network.state_dict(), new.network, before, after, new.patch)
    assert "\n" not in str(caught.value)


def test_positions_on_another_grid_than_the_tokens_are_refused() -> None:
    """Hiera adds its positions on the grid of its stem."""
    before, after = (64, 64), (128, 128)
    sizes = {"embed_dim": 8, "num_heads": 1, "stages": (1, 1, 1, 1)}
    old, new = (create_hierarchical("hiera_tiny_224", size, MEAN, STD, overrides=sizes) for size in (before, after))
    with pytest.raises(UserError, match=r"pos_embed is \(1, 256, 8\) for images of 64×64 px and \(1, 1024, 8\)"):
        resize_state(old.network.state_dict(), new.network, before, after, new.patch)


def test_a_table_that_still_does_not_fit_is_refused() -> None:
    state = made("vit_micro", (16, 24)).network.state_dict()
    state["pos_embed"] = torch.zeros(1, 25, 12)  # another width
    with pytest.raises(UserError, match=r"pos_embed is \(1, 25, 12\)"):
        resize_state(state, made("vit_micro", (24, 40)).network, (16, 24), (24, 40), (4, 4))


@pytest.mark.parametrize(
    ("before", "window", "old", "new"),
    [
        ((4, 6), (6, 4), (4, 6), (6, 4)),  # the whole grid
        ((3, 3), (4, 4), (6, 6), (8, 8)),  # grows with the image
        ((7, 7), (4, 4), (8, 8), (4, 4)),  # a window that did not follow: square
        ((7, 7), (7, 7), (7, 14), (14, 7)),  # one that stayed
        ((2, 4), (7, 7), (2, 4), (7, 14)),  # once the whole grid, now seven
    ],
)
def test_the_window_that_a_table_was_for(before: Any, window: Any, old: Any, new: Any) -> None:
    assert window_before(offsets(before), window, old, new) == before


def test_a_table_for_no_window_at_all() -> None:
    assert window_before(22, (4, 4), (8, 8), (4, 4)) is None


@pytest.mark.parametrize(("old", "new"), [(3, 7), (7, 3), (1, 5), (5, 1), (13, 27)])
def test_a_spline_keeps_constants_and_symmetry(old: int, new: int) -> None:
    matrix = spline(old, new)
    assert matrix.shape == (new, old)
    assert torch.allclose(matrix.sum(1), torch.ones(new), atol=1e-5)
    assert torch.allclose(matrix, matrix.flip(0, 1), atol=1e-5)
