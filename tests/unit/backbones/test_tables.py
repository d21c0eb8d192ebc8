"""backbones/tables.py: a network's tables of positions, made for one image size, fit one that is built for another."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from remask.backbones import Backbone
from remask.backbones.beit import create_beit
from remask.backbones.convvit import create_convvit
from remask.backbones.hierarchical import create_hierarchical
from remask.backbones.swin import create_swin
from remask.backbones.tables import offsets, resize_positions, resize_state, resize_table, spline, window_before
from remask.backbones.vit import create_vit
from remask.errors import UserError

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


AS_MANY = [((4, 16), (8, 8)), ((8, 8), (4, 16)), ((8, 8), (2, 32)), ((4, 6), (6, 4)), ((1, 64), (8, 8))]
"""Grids of as many cells in another place: what lies where is decided by rows and columns, not by their product."""


def lying(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """The rows [1, N, D] of a table of the grid `old` on the grid `new`, by torch alone."""
    picture = table.reshape(1, *old, -1).permute(0, 3, 1, 2)
    return F.interpolate(picture, size=new, mode="bicubic", antialias=True).permute(0, 2, 3, 1).flatten(1, 2)


@pytest.mark.parametrize(("old", "new"), AS_MANY)
@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_as_many_cells_elsewhere_are_resized(old: tuple[int, int], new: tuple[int, int], prefix: int) -> None:
    table = torch.randn(1, prefix + old[0] * old[1], 3, generator=torch.Generator().manual_seed(0))
    found = resize_positions(table, old, new, prefix)
    assert torch.equal(found[:, :prefix], table[:, :prefix])
    assert torch.equal(found[:, prefix:], lying(table[:, prefix:], old, new))
    assert not torch.equal(found[:, prefix:], table[:, prefix:])
    assert resize_positions(table, old, old, prefix) is table
    with pytest.raises(UserError, match=f"{old[0] * old[1]} positions is not one of 3×5 cells"):
        resize_positions(table, (3, 5), new, prefix)


@pytest.mark.parametrize(("old", "new"), AS_MANY)
@pytest.mark.parametrize("kind", ["vit", "registers", "beit", "convvit"])
def test_backbones_resize_as_many_cells_elsewhere(kind: str, old: tuple[int, int], new: tuple[int, int]) -> None:
    """On the way as in `resize_state`, whichever version of timm is there."""
    before, after = (4 * old[0], 4 * old[1]), (4 * new[0], 4 * new[1])
    network, found, own = positions(kind, before, new)
    table = network.pos_embed.detach()
    expected = lying(table[:, own:], old, new)[0]
    assert torch.equal(found.detach(), expected)
    state = resize_state(network.state_dict(), network, before, after, (4, 4))
    assert torch.equal(state["pos_embed"][0, own:], expected)
    assert torch.equal(state["pos_embed"][:, :own], table[:, :own])


def positions(kind: str, size: tuple[int, int], new: tuple[int, int]) -> tuple[Any, Tensor, int]:
    """A network for images of `size` pixels, its positions on the grid `new`, and its rows before the first cell."""
    torch.manual_seed(0)
    if kind == "convvit":
        sizes = {"patch_size": 4, "width": 16, "depth": 1, "num_heads": 2}
        convvit: Any = create_convvit("convvit_micro", size, MEAN, STD, overrides=sizes)
        return convvit.network, convvit.network.positions(new), 0
    if kind == "beit":
        beit: Any = create_beit("beit_micro", size, MEAN, STD, overrides={**TOY, "use_abs_pos_emb": True})
        nn.init.normal_(beit.network.pos_embed)
        return beit.network, beit._positions(new)[0, 1:], 1
    extra = {"reg_tokens": 4, "no_embed_class": False} if kind == "registers" else {}
    vit: Any = create_vit("vit_micro", size, MEAN, STD, positions="learned", overrides={**TOY, **extra})
    return vit.network, vit._positions(new)[0], vit.prefix


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
