"""DMJD's official layout → ours (Ma et al., arXiv 2301.00230): masks, decoder (MPB), projector and predictor (VDB).

official                                ours
proj_embed.{0,1,3,4,6}.*  predictor.0.* Projector.project.{0,1,3,4,6}.*, Projector.predict.*
mask_token  decoder_*                   Decoder, as MAE's, without a class row in its table
mask [2B, N], 1 = removed               Views, row = v·B + b in both
"""

from collections.abc import Mapping

from jaxtyping import Float, Int, Num
from torch import Tensor

from remask.heads import Decoder, Projector
from remask.interop.mae import DECODER, POSITIONS, State, check, renamed, shape, sizes
from remask.method import Pair
from remask.tokens import take
from remask.types import Grid
from remask.views import Views

PROJECTOR = {"proj_embed.": "project.", "predictor.0.": "predict."}


def views_of(mask: Num[Tensor, "VB N"], grid: Grid, views: int = 2) -> Views:
    """The official mask, which stacks its views, as ours."""
    return Views.of(mask.bool().unflatten(0, (views, -1)), grid)


def projector(state: State, region: str = "visible") -> Projector:
    """The visible distillation branch of an official state, strictly. Raises UserError for what does not fit."""
    width, width_in = shape(state, "proj_embed.0.weight", "the state")
    head = Projector(width_in, shape(state, "predictor.0.weight", "the state")[0], width, region)
    _fill(head, state, PROJECTOR)
    return head


def decoder(state: State, *, heads: int, grid: Grid) -> Decoder:
    """The masked prediction branch of an official state, strictly; `heads` is asked for, since no shape tells it."""
    width, depth, mlp_ratio = sizes(state, "the state", "decoder_blocks.", heads)
    width_in = shape(state, "decoder_embed.weight", "the state")[1]
    width_out = shape(state, "decoder_pred.weight", "the state")[0]
    head = Decoder(width_in, width_out, grid, width, depth, heads, mlp_ratio)
    _fill(head, state, DECODER)
    return head


def to_official(head: Decoder | Projector) -> dict[str, Tensor]:
    """A head's tensors under their official names, bit for bit."""
    names = {ours: key for key, ours in (PROJECTOR if isinstance(head, Projector) else DECODER).items()}
    state = {renamed(key, names): tensor for key, tensor in head.state_dict().items()}
    return {key: tensor[None] if key == POSITIONS else tensor for key, tensor in state.items()}


def official_visible_pairs(
    predictions: Float[Tensor, "VB K P"],
    targets: Float[Tensor, "B N P"],
    views: Views,
    ids_keep: Int[Tensor, "VB K"],
) -> Pair:
    """The pairs that the released code compares, not Eq. (5): a compatibility switch for its numbers, for tests.

    There predictions stand in the order of `ids_keep`, which is that of the noise, and targets in raster order, so
    that a visible token is asked for the target of another one. `predictions` come in raster order, as ours do.
    See docs/decisions/0001.
    """
    rank = ids_keep.argsort(dim=1).argsort(dim=1)
    return take(predictions, rank), views.gather(targets, "visible")


def _fill(head: Decoder | Projector, state: State, names: Mapping[str, str]) -> None:
    part = {key: tensor for key, tensor in state.items() if key.startswith(tuple(names))}
    check(part, to_official(head), "the state")
    own = {renamed(key, names): tensor[0] if key == POSITIONS else tensor for key, tensor in part.items()}
    head.load_state_dict(own)


__all__ = ["decoder", "official_visible_pairs", "projector", "to_official", "views_of"]
