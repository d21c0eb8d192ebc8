"""MIM-Refiner (arXiv 2402.10093): a second stage after masked image modeling, which tells images apart."""

from collections.abc import Sequence
from functools import partial

from remask.backbones import Backbone, class_tokens
from remask.backbones.masked_input import AllTokens
from remask.color_jitter import BatchColorJitter
from remask.distances import info_nce
from remask.errors import UserError, setting
from remask.heads import InstanceHead
from remask.masking.unmasked import Unmasked
from remask.method import Branch, Method
from remask.methods.mae import initialise
from remask.targets.neighbours import Neighbours
from remask.tokens import Pool
from remask.types import END


def refiner(
    backbone: Backbone,
    blocks: int | None = None,
    layers: Sequence[int] | None = None,
    *,
    width: int | None = None,
    hidden: int | None = None,
    predictor: int | None = None,
    pool: Pool | None = None,
    queue: int = 65536,
    neighbours: int = 20,
    temperature: float = 0.2,
    frozen: float = 0.4,
    jitter: float = 0.0,
    pretrained: bool = True,
) -> Method:
    """f sees two whole crops of an image; at each of its last blocks a head predicts a neighbour of the other; InfoNCE.

    A batch has the two crops of an image in consecutive rows. Weights before the last blocks are not trained.
    blocks        the last so many are trained; a third of them unless given
    layers        blocks with a head; all that are trained unless given, the last behind the final norm
    width         of projections and predictions; 256, or the backbone's if that is less, unless given
    hidden, predictor   widths inside both; two and four times the backbone's unless given, 2048 and 4096 on a ViT-L
    pool          what stands for a crop, "class" or "mean"; the class token where there is one, unless given
    queue, neighbours   vectors of crops seen before that are kept, and the nearest of which one is the positive
    frozen        share of the training, from its beginning, in which heads alone are trained
    jitter        strength of colour jitter on the student's crops
    pretrained    leave the backbone's weights as they are; False gives it MAE's first weights, as a control
    # official: ten small crops of an image are predicted as well, all blocks are trained at rates that decay with
    # depth, and colours of the teacher's crops change too.
    Raises UserError for blocks that do not exist, and a class token that does not.
    """
    blocks = max(1, backbone.depth // 3) if blocks is None else blocks
    layers, pool = _layers(backbone, blocks, layers), _pool(backbone, pool)
    if not pretrained:
        backbone.network.apply(initialise)
    if before := backbone.depth - blocks:
        freeze_first(backbone, before)
    width = width or min(256, backbone.width)
    inside, branches = (hidden or 2 * backbone.width, predictor or 4 * backbone.width), []
    for layer in layers:
        head = InstanceHead(backbone.width, width, inside, pool, class_tokens(backbone))
        head.apply(initialise)
        name, distance = "end" if layer == END else f"block{layer}", partial(info_nce, temperature=temperature)
        target = Neighbours(head, layer, queue, neighbours)
        branches.append(Branch(name, head, target, distance, "pooled", 1 / len(layers), layer))
    return Method(backbone, Unmasked(), branches, AllTokens(frozen), BatchColorJitter(jitter) if jitter else None)


def freeze_first(backbone: Backbone, blocks: int) -> None:
    """Stop training the embedding and the first `blocks`."""
    for name, parameter in backbone.network.named_parameters():
        if backbone.param_depth(name) <= blocks:
            parameter.requires_grad_(False)


def _layers(backbone: Backbone, blocks: int, layers: Sequence[int] | None) -> Sequence[int]:
    """Where the heads are: those given if they can be, else all blocks that are trained, or the end alone."""
    depth = backbone.depth
    if not 0 < blocks <= depth:
        name = setting("refine.blocks", "blocks")
        raise UserError(f"{name}: the backbone has {depth} blocks, of which 1 to {depth} can be trained, not {blocks}")
    alike = len(getattr(backbone.network, "blocks", None) or getattr(backbone.network, "blocks3", [])) == depth
    if layers is None:
        return [*range(depth - blocks, depth - 1), END] if alike else [END]
    name = setting("refine.layers", "layers")
    if not layers or len({*layers}) < len(layers) or not all(-1 <= layer < depth for layer in layers):
        raise UserError(f"{name}: the backbone has blocks 0 to {depth - 1}, -1 is its end: each once, not {[*layers]}")
    if not alike and [*layers] != [END]:
        network = type(backbone.network).__name__
        raise UserError(f"{name}: the layers of {network} have different widths, and heads read one: give -1, the end")
    return layers


def _pool(backbone: Backbone, pool: Pool | None) -> Pool:
    if pool == "class" and not backbone.prefix:
        name = setting("refine.pool class", 'pool "class"')
        raise UserError(f'{name}: the backbone has no class token; choose "mean"')
    return pool or ("class" if backbone.prefix else "mean")


__all__ = ["freeze_first", "refiner"]
