"""A neighbour of the moving average's projection of the other crop (NNCLR 2104.14548, MIM-Refiner 2402.10093)."""

import copy
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from remask.distances import full_precision
from remask.errors import UserError, setting
from remask.targets.moving_average import Average, AverageReader, Layers, Outputs
from remask.tokens import Pool, pooled
from remask.training.gathering import all_rows
from remask.views import Views


class ProjectorHead(Protocol):
    """A head of two parts, of which the target copies the first."""

    @property
    def project(self) -> nn.Module: ...

    width: int
    pool: Pool
    class_tokens: int


EMPTY, UNKNOWN = -1, -2
"""In place of an image's number: nothing is stored yet, and an image without number, which counts as another one."""


class Neighbours(AverageReader):
    """Per crop two unit vectors side by side: a neighbour of the other crop's projection, and that projection itself.

    Rows 2i and 2i + 1 of a batch are two crops of one image. The neighbour is drawn from the `neighbours` nearest of a
    queue, which holds the last projections of crops seen, never one of the image itself; while the queue has none it
    is the other crop. Queue and projector, a moving average of the head's, are in checkpoints.

    head    the student's head, of which the projector is copied
    layer   of the moving average that the projector reads
    Raises UserError for a queue that is smaller than the number of neighbours.
    """

    draws_images = True
    """Views have a random number and the image's own number beside each image."""

    queue: Tensor
    owners: Tensor
    written: Tensor

    def __init__(self, head: ProjectorHead, layer: int = -1, queue: int = 65536, neighbours: int = 20) -> None:
        super().__init__()
        if not 0 < neighbours <= queue:
            names = setting("refine.neighbours and refine.queue", "neighbours and queue")
            raise UserError(f"{names}: of a queue of {queue} 1 to all are neighbours, not {neighbours}")
        self.width, self.pool, self.class_tokens = head.width, head.pool, head.class_tokens
        self.neighbours = neighbours
        self.layer = layer
        self.wanted: list[tuple[int, Outputs]] = [(layer, "block")]
        self.projector: nn.Module = copy.deepcopy(head.project).requires_grad_(False)
        self.register_buffer("queue", torch.zeros(queue, head.width))
        self.register_buffer("owners", torch.full((queue,), EMPTY))
        self.register_buffer("written", torch.zeros((), dtype=torch.long))
        self._latest: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def combine(self, features: Layers, views: Views | None = None) -> Float[Tensor, "B 1 PP"]:
        row = pooled(features[self.layer, "block"], self.pool, self.class_tokens)[:, 0]
        own = F.normalize(self.projector(row).float(), dim=-1)
        if len(own) % 2:
            raise UserError(f"a batch of {len(own)} crops is not one of pairs: give two crops of every image in turn")
        other = own.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
        images = None if views is None else views.index
        if images is None:
            images = torch.full((len(own),), UNKNOWN, device=own.device)
        if self.training:
            self._latest = all_rows(own), all_rows(images)
        chance = torch.rand(len(own), device=own.device) if views is None or views.chance is None else views.chance
        return torch.cat([self._near(other, images, chance), other], dim=-1).unsqueeze(1)

    def _near(self, x: Float[Tensor, "B P"], images: Int[Tensor, "B"], chance: Float[Tensor, "B"]) -> Tensor:
        """One of the nearest entries of other images, by a number in 0..1; x where there is none."""
        own = (self.owners == images[:, None]) & (self.owners >= 0)
        with full_precision(x.device):
            similar = (x @ self.queue.T).masked_fill((self.owners == EMPTY) | own, -torch.inf)
        nearest = similar.topk(self.neighbours, dim=1)
        known = nearest.values.isfinite().sum(1)
        rank = (chance * known).long().clamp(max=self.neighbours - 1)
        found = self.queue[nearest.indices.gather(1, rank[:, None])[:, 0]]
        return torch.where(known[:, None] > 0, found, x)

    @torch.no_grad()
    def follow(self, head: Any, decay: float, taken: Tensor | None = None) -> None:
        """Move the projector towards the student's, and put the last batch into the queue, unless it was skipped."""
        Average.mix(self.projector, head.project, decay, taken)
        if self._latest is None:
            return
        (rows, images), self._latest = self._latest, None
        rows, images, count = rows[-len(self.queue) :], images[-len(self.queue) :], min(len(rows), len(self.queue))
        at = (self.written + torch.arange(count, device=rows.device)) % len(self.queue)
        if taken is None:
            taken = torch.ones((), device=rows.device)
        self.queue[at] = torch.where(taken > 0, rows, self.queue[at])
        self.owners[at] = torch.where(taken > 0, images, self.owners[at])
        self.written += (count * taken).long()

    def describe(self) -> str:
        block = "" if self.layer == -1 else f" at block {self.layer}"
        return (
            f"moving average of the other crop{block}, one of its {self.neighbours} nearest in a queue of "
            f"{len(self.queue)}"
        )


__all__ = ["Neighbours"]
