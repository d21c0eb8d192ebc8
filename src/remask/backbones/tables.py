"""Tables of positions, resized: so that a backbone can be trained at one resolution and used at another."""

from collections.abc import Mapping
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from remask.errors import UserError
from remask.tokens import grid_of
from remask.types import Grid, Size

POSITIONS, BIASES = "pos_embed", "relative_position_bias_table"


def resize_state(
    state: Mapping[str, Tensor], network: nn.Module, before: Size, after: Size, patch: Size
) -> dict[str, Tensor]:
    """The tensors of a network built for images of `before` pixels, their tables resized for one built for `after`.

    Positions: bicubic, antialiased. Relative biases: `resize_table`. Names that the network lacks are kept as they are.
    Raises UserError for a tensor of another shape that is neither.
    """
    if resize_own := getattr(network, "resized", None):
        state = resize_own(state, before)
    wanted, out = network.state_dict(), dict(state)
    old, new = grid_of(before, patch), grid_of(after, patch)
    for name, tensor in state.items():
        if name not in wanted:
            continue
        if old != new and name.endswith(POSITIONS) and tensor.ndim == 3:  # also where a turned grid has as many cells
            prefix = wanted[name].shape[1] - new[0] * new[1]
            if prefix == tensor.shape[1] - old[0] * old[1]:
                out[name] = resize_positions(tensor, old, new, prefix)
        elif name.endswith(BIASES) and (old != new or tensor.shape != wanted[name].shape):
            window = window_size(network, name.rpartition(".")[0], new)
            extra = len(wanted[name]) - offsets(window)
            if extra >= 0 and (old_window := window_before(len(tensor) - extra, window, old, new)):
                out[name] = resize_table(tensor, old_window, window, extra)
        if out[name].shape != wanted[name].shape:
            raise UserError(
                f"{name} is {tuple(tensor.shape)} for images of {before[0]}×{before[1]} px and "
                f"{tuple(wanted[name].shape)} for {after[0]}×{after[1]}, and is no table that can be resized; "
                "choose another backbone, or one size"
            )
    return out


def resize_positions(
    table: Float[Tensor, "1 old D"], old: Grid, new: Grid, prefix: int = 0, antialias: bool = True
) -> Float[Tensor, "1 new D"]:
    """A table of positions of the grid `old` for the grid `new`: bicubic; the first `prefix` rows are kept.

    The grids decide, not their number of cells: 4×16 and 8×8 tokens are as many and lie elsewhere.
    Raises UserError where the table is not one of the grid `old`.
    # timm's resample_abs_pos_embed is the same from 1.0.29 on; older ones take as many cells for the same ones.
    """
    if table.shape[1] != prefix + old[0] * old[1]:
        raise UserError(f"a table of {table.shape[1] - prefix} positions is not one of {old[0]}×{old[1]} cells")
    if old == new:
        return table
    first, cells = table[:, :prefix], table[:, prefix:].float().unflatten(1, old).permute(0, 3, 1, 2)
    cells = F.interpolate(cells, size=new, mode="bicubic", antialias=antialias)
    return torch.cat([first, cells.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)


def window_size(network: nn.Module, holder: str, grid: Grid) -> Grid:
    """Tokens of the window that a module's table of biases is for; without one it is the whole grid."""
    window = getattr(network.get_submodule(holder), "window_size", grid)
    return int(window[0]), int(window[1])


def window_before(count: int, window: Grid, old: Grid, new: Grid) -> Grid | None:
    """The window with `count` offsets that a table was built for: the window now, scaled as the grid was, the whole old
    grid, the same window, or a square one; None where none of them has so many offsets."""
    scaled = max(1, round(window[0] * old[0] / new[0])), max(1, round(window[1] * old[1] / new[1]))
    side = (round(count**0.5) + 1) // 2
    return next((candidate for candidate in (scaled, old, window, (side, side)) if offsets(candidate) == count), None)


def offsets(window: Grid) -> int:
    """Rows of a table of relative offsets."""
    return (2 * window[0] - 1) * (2 * window[1] - 1)


def resize_table(table: Float[Tensor, "old heads"], old: Grid, new: Grid, extra: int = 0) -> Float[Tensor, "new heads"]:
    """A table of biases by relative offset, built for windows of `old` tokens, for windows of `new`; differentiable.

    BEiT's and SimMIM's way: the old offsets lie in geometric progression over the new ones, dense near 0, and a cubic
    spline goes through them. The last `extra` rows (for the class token) are kept.
    # official: scipy's interp2d, which is gone; here one spline an axis, which is the same for a tensor product.
    """
    rows, last = table[: len(table) - extra], table[len(table) - extra :]
    along = [spline(2 * a - 1, 2 * b - 1).to(table.device, table.dtype) for a, b in zip(old, new, strict=True)]
    square = rows.unflatten(0, (2 * old[0] - 1, 2 * old[1] - 1))
    return torch.cat([torch.einsum("ab,cd,bdh->ach", *along, square).flatten(0, 1), last])


@cache
def spline(old: int, new: int) -> Float[Tensor, "new old"]:
    """The matrix of one axis: values at `old` offsets (odd, symmetric around 0) → values at `new` offsets."""
    import numpy as np
    from scipy.interpolate import make_interp_spline

    if old == new:
        return torch.eye(old, device="cpu")  # explicit: the result is cached, and torch.device(...) may be active
    if old == 1:
        return torch.ones(new, 1, device="cpu")
    half = _geometric(old // 2, new // 2)
    known = np.array([-x for x in reversed(half)] + [0.0] + half)
    wanted = np.clip(np.arange(new) - new // 2, known[0], known[-1])  # constant beyond the border
    matrix = make_interp_spline(known, np.eye(old), k=min(3, old - 1))(wanted)
    return torch.from_numpy(np.asarray(matrix, dtype=np.float32))


def _geometric(count: int, reach: int) -> list[float]:
    """1, 1 + q, 1 + q + q², …, `count` of them, with the q in 1.01..1.5 for which the last comes nearest `reach`."""
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        q = (low + high) / 2
        low, high = (low, q) if sum(q**i for i in range(count)) > reach else (q, high)
    return [sum(q**i for i in range(n + 1)) for n in range(count)]


__all__ = ["resize_positions", "resize_state", "resize_table", "spline"]
