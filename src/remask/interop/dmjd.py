"""DMJD's official layout ⇄ ours (Ma et al., arXiv 2301.00230): ConViT, decoder (MPB), projector and predictor (VDB).

official                                ours
patch_embed*  blocks*  stage*_decode …  backbone, as ConvMAE's
mask_token  decoder_*                   branches.0.head, a Decoder, as MAE's, without a class row in its table
proj_embed.{0,1,3,4,6}.*  predictor.0.* branches.1.head, a Projector: project.{0,1,3,4,6}.*, predict.*
mask [2B, N], 1 = removed               Views, row = v·B + b in both
"""

from collections.abc import Mapping, Sequence

from jaxtyping import Float, Int, Num
from torch import Tensor

from remask.heads import Decoder, Projector
from remask.interop import convmae
from remask.interop.mae import DECODER, MEAN, POSITIONS, STD, check, renamed, shape, sizes
from remask.interop.state_dicts import Source, State, label, read
from remask.masking import Masking
from remask.method import Method, Pair
from remask.methods.convmae import convmae as build
from remask.methods.dmjd import dm, jd
from remask.targets import Hog
from remask.tokens import take
from remask.types import Grid, Size
from remask.views import Views

PROJECTOR = {"proj_embed.": "project.", "predictor.0.": "predict."}
VISIBLE = {key: f"branches.1.head.{name}" for key, name in PROJECTOR.items()}


def views_of(mask: Num[Tensor, "VB N"], grid: Grid, views: int = 2) -> Views:
    """Our views of an official mask, which stacks its views: row v·B + b."""
    return Views.of(mask.bool().unflatten(0, (views, -1)), grid)


def load(
    source: Source,
    *,
    heads: int,
    decoder_heads: int,
    size: Size | None = None,
    ratio: float = 0.6,
    cell: int = 2,
    prediction: float = 1.0,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> Method:
    """An official pre-training checkpoint, strictly, as ConvMAE + DM + JD on HOG that goes on training.

    heads, decoder_heads      required, never guessed, since weights fit any number (ConViT-B 12, L and decoder 16)
    size                      pixels of the images it was trained on; needed only where they were not square
    ratio, cell, prediction   of the two views (official: cells of 2×2 tokens at .6), which the weights do not tell
    """
    where, state = label(source), read(source, "convmae", classifiers=True)
    backbone, size = convmae.build(state, where, heads, size, mean, std)
    width, depth, mlp_ratio = sizes(state, where, "decoder_blocks.", decoder_heads)
    target = Hog(backbone.patch, mean, std)
    single = build(backbone, Masking(ratio, cell=cell), target, size, width, depth, decoder_heads, mlp_ratio)
    method = jd(dm(single, 2, prediction), target, shape(state, "proj_embed.0.weight", where)[0])
    check(state, to_official(method), where)
    method.load_state_dict(from_official(state))
    return method


def from_official(state: State) -> dict[str, Tensor]:
    """A pre-training state, or a part of one -> the state dict of the method of `load`. UserError for unknown keys."""
    visible = {key: tensor for key, tensor in state.items() if key.startswith(tuple(VISIBLE))}
    rest = {key: tensor for key, tensor in state.items() if key not in visible}
    return {**convmae.from_official(rest), **{renamed(key, VISIBLE): tensor for key, tensor in visible.items()}}


def to_official(module: Decoder | Projector | Method) -> dict[str, Tensor]:
    """A head's tensors under their official names, or a whole method's, bit for bit."""
    if isinstance(module, Method):
        names = {**convmae.OFFICIAL, **{ours: key for key, ours in VISIBLE.items()}}
    else:
        names = {ours: key for key, ours in (PROJECTOR if isinstance(module, Projector) else DECODER).items()}
    state = {renamed(key, names): tensor for key, tensor in module.state_dict().items()}
    return {key: tensor[None] if key == POSITIONS else tensor for key, tensor in state.items()}


def projector(state: State, region: str = "visible") -> Projector:
    """The visible distillation branch of an official state, strictly. Raises UserError for tensors that do not fit."""
    width, width_in = shape(state, "proj_embed.0.weight", "the state")
    head = Projector(width_in, shape(state, "predictor.0.weight", "the state")[0], width, region)
    _load_strictly(head, state, PROJECTOR)
    return head


def decoder(state: State, *, heads: int, grid: Grid) -> Decoder:
    """The masked prediction branch of an official state, strictly; `heads` is required, since no shape tells it."""
    width, depth, mlp_ratio = sizes(state, "the state", "decoder_blocks.", heads)
    width_in = shape(state, "decoder_embed.weight", "the state")[1]
    width_out = shape(state, "decoder_pred.weight", "the state")[0]
    head = Decoder(width_in, width_out, grid, width, depth, heads, mlp_ratio)
    _load_strictly(head, state, DECODER)
    return head


def official_visible_pairs(
    predictions: Float[Tensor, "VB K P"],
    targets: Float[Tensor, "B N P"],
    views: Views,
    ids_keep: Int[Tensor, "VB K"],
) -> Pair:
    """The pairs that the released code compares, not Eq. (5): a compatibility switch for its numbers, for tests.

    In the released code predictions are in the order of `ids_keep`, that of the noise, and targets in raster order, so
    that a visible token is compared with the target of another one. `predictions` are in raster order, as ours are.
    See docs/decisions/0001.
    """
    rank = ids_keep.argsort(dim=1).argsort(dim=1)
    return take(predictions, rank), views.gather(targets, "visible")


def _load_strictly(head: Decoder | Projector, state: State, names: Mapping[str, str]) -> None:
    module = {key: tensor for key, tensor in state.items() if key.startswith(tuple(names))}
    check(module, to_official(head), "the state")
    ours = {renamed(key, names): tensor[0] if key == POSITIONS else tensor for key, tensor in module.items()}
    head.load_state_dict(ours)


classifier_state, load_backbone = convmae.classifier_state, convmae.load_backbone

__all__ = [
    "classifier_state", "decoder", "from_official", "load", "load_backbone", "official_visible_pairs", "projector",
    "to_official", "views_of",
]  # fmt: skip
