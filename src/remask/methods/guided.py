"""Masks that adapt to the images, as plug-ins to any method, and the modules that their guides come from.

By the attention of the moving average (AttMask 2203.12719), or by the loss that it predicts (HPM 2304.05919).
"""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from remask.backbones.attention import class_attention, refuse_without_class_attention
from remask.distances import full_precision, pair_ranking
from remask.errors import UserError, setting
from remask.heads.loss_decoder import LossDecoder
from remask.masking.guided import MostAttended, hardest, rank
from remask.masking.scores import Guide
from remask.method import Branch, Method
from remask.methods.mae import initialise
from remask.targets.loss_of import LossOf
from remask.targets.moving_average import Average
from remask.types import END, Grid, Images
from remask.views import Views

CHUNK = 128
"""Images that the moving average reads at once: a batch that is trained in parts has its masks drawn whole."""


def guided_by_attention(method: Method, probability: float = 0.5, hints: float = 0.0) -> Method:
    """AttMask: what the class token of the moving average attends to is hidden first; arguments of `MostAttended`.

    Raises UserError for backbones without a class token, or whose attention cannot be read.
    """
    refuse_without_class_attention(method.backbone)
    _refuse_split_tokens(method)
    _refuse_guided(method)
    masking = replace(method.masking, score=MostAttended(probability, hints))
    return method.with_(masking, guide=AttentionGuide())


def guided_by_loss(method: Method, share: float = 0.5, weight: float = 1.0, depth: int = 1) -> Method:
    """HPM: what the moving average finds hard to predict is hidden first, the rest at random.

    A second branch predicts a number for each masked token, so that they are ranked as the losses of the masked branch.
    share    α_T: of what a view hides, the share that is the hardest at the end of the training, in [0, 1)
    weight   λ of the second branch
    depth    blocks of its decoder, which is half as wide as the backbone
    Raises UserError for methods without a branch that predicts masked tokens one by one.
    """
    _refuse_split_tokens(method)
    _refuse_guided(method)
    branch = next((b for b in method.branches if b.region in ("masked", "predicted")), None)
    if branch is None:
        raise UserError(
            f"{setting('masking.pattern loss ranks', 'these masks rank')} masked tokens by loss, and no branch of "
            f"this method predicts masked tokens: {setting('choose another masking.pattern', 'choose other masks')}"
        )
    head = _loss_head(method, branch.region, depth)
    ranking = Branch("difficulty", head, LossOf(branch.name, branch.distance), pair_ranking, branch.region, weight)
    masking = replace(method.masking, score=hardest)
    return method.with_(masking, [*method.branches, ranking], LossGuide(head, share))


def _refuse_guided(method: Method) -> None:
    if method.guide:
        raise UserError(f"masks go by one guide, and this method's by the {method.guide.describe()} already")


class AttentionGuide(nn.Module):
    """The class token's attention in the last block of the moving average, mean over the heads and a cell's tokens."""

    @torch.no_grad()
    def forward(self, average: Average, images: Images, cells: Grid, hidden: int) -> Guide:
        attention = _in_chunks(partial(class_attention, average.backbone), images)
        return per_cell(attention, _grid(average, images), cells)

    def follow(self, average: Average, progress: float, taken: Tensor | None = None) -> None:
        """Nothing: the average is all it needs."""

    def restart(self, average: Average) -> None:
        """Nothing, as in `follow`."""

    def describe(self) -> str:
        return "attention of the moving average's class token on the whole image, last block, mean over heads"


class LossGuide(nn.Module):
    """The loss that the moving averages of backbone and `head` predict from the whole image, where it is highest.

    share   α_T: of what a view hides, α_t = α_T · progress have a guide, the hardest cells; the others' is -inf
    The head's average and the progress are in the state dict. Raises UserError for a share outside [0, 1).
    # official: α_t rises by epochs; here by steps.
    """

    progress: Tensor

    def __init__(self, head: LossDecoder, share: float = 0.5) -> None:
        super().__init__()
        if not 0 <= share < 1:
            raise UserError(
                f"{setting('masking.share', 'share')} {share:g} is outside [0, 1): hardest alone is worse than random"
            )
        self.head = copy.deepcopy(head).requires_grad_(False).eval()
        self.share, self._student = share, [head]
        self.register_buffer("progress", torch.zeros(()))

    def train(self, mode: bool = True) -> "LossGuide":
        """Stay in evaluation mode, as the moving average."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, average: Average, images: Images, cells: Grid, hidden: int) -> Guide:
        loss = per_cell(_in_chunks(partial(self.predicted, average), images), _grid(average, images), cells)
        count = (self.share * self.progress * hidden).floor()
        return loss.masked_fill(rank(-loss) >= count, -math.inf)

    def predicted(self, average: Average, images: Images) -> Float[Tensor, "B N"]:
        """The number for every token of the whole images; higher is harder. In fp32, for numbers in bf16 would tie.

        Mask tokens ask at every place, for outputs at visible tokens are never trained, see docs/decisions/0018.
        """
        features, grid = average(images, [(END, "block")])[END, "block"], _grid(average, images)
        everything = Views(
            features.tokens.new_ones(1, len(images), math.prod(grid), dtype=torch.bool), grid, math.prod(grid)
        )
        with full_precision(images.device):
            return self.head(features, everything).squeeze(-1)

    @torch.no_grad()
    def follow(self, average: Average, progress: float, taken: Tensor | None = None) -> None:
        """The head's average follows at the pace of the backbone's, unless the step was skipped, and α_t rises."""
        average.mix(self.head, self._student[0], average.decay_at(progress), taken)
        self.progress.fill_(progress)

    def restart(self, average: Average) -> None:
        """Equal the student's head."""
        average.mix(self.head, self._student[0], 0.0)

    def describe(self) -> str:
        return (
            f"loss that the moving average predicts from the whole image: the hardest are up to {self.share:g} of "
            "what a view hides"
        )


def per_cell(values: Float[Tensor, "B N"], grid: Grid, cells: Grid) -> Float[Tensor, "B cells"]:
    """The mean over the tokens of each cell; `grid` in tokens is a multiple of `cells` along every axis."""
    sides = [(n, tokens // n) for tokens, n in zip(grid, cells, strict=True)]
    inside = tuple(range(2, 2 * len(grid) + 1, 2))
    return values.reshape(len(values), *[side for pair in sides for side in pair]).mean(inside).flatten(1)


def _in_chunks(read: Callable[[Images], Tensor], images: Images) -> Float[Tensor, "B N"]:
    return torch.cat([read(chunk) for chunk in images.split(CHUNK)])


def _grid(average: Average, images: Images) -> Grid:
    return average.backbone.grid((images.shape[-2], images.shape[-1]))


def _loss_head(method: Method, region: str, depth: int) -> LossDecoder:
    """A decoder that predicts one number a token, half as wide as the backbone, with heads of 32 channels or more."""
    backbone = method.backbone
    width = max(4, backbone.width // 8 * 4)
    heads = next(count for count in range(max(1, width // 32), 0, -1) if width % count == 0)
    head = LossDecoder(backbone.width, method.grid(backbone.size), width, depth, heads, region)  # type: ignore[arg-type]
    head.apply(initialise)
    return head


def _refuse_split_tokens(method: Method) -> None:
    if method.mask_unit != method.backbone.patch:
        keys = setting("masking.pattern and masking.cell_pixels", "a guide and mask_unit")
        raise UserError(
            f"{keys} do not go together: masks are finer than tokens here, and the moving average has one number for "
            "a token: choose a pattern without a guide, or cells of whole patches"
        )


__all__ = ["AttentionGuide", "LossGuide", "guided_by_attention", "guided_by_loss", "per_cell"]
