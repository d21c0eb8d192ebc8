"""Which anchors and regions a detector learns from: drawn for each image by its own seed, and counted.

torchvision's sampler draws from the global generator, image after image, so that its choice depends on how a batch is
cut. Here an image's choice is the same in every micro-batch and process. The losses, which torchvision averages over
the choice in one of them, are brought to the mean over those of all processes.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Num
from torch import Generator, Tensor

from remask.training.gathering import total


class SeededSampler:
    """torchvision's BalancedPositiveNegativeSampler with a seed for each image.

    chosen, share   number of places per image, and the largest share of them on objects
    seeds           of the images of the next call; None: the global generator
    counts          after a call: the numbers of places on objects, and of all
    """

    def __init__(self, chosen: int, share: float, stream: int) -> None:
        self.chosen, self.share, self.stream = chosen, share, stream
        self.seeds: Sequence[int] | None = None
        self.counts = (0, 0)

    def __call__(self, matched: Sequence[Num[Tensor, "_"]]) -> tuple[list[Tensor], list[Tensor]]:
        """Masks of the chosen places on objects (above 0) and on background (0), for each image."""
        positives, negatives, on_objects, of_all = list[Tensor](), list[Tensor](), 0, 0
        for number, labels in enumerate(matched):
            generator = None
            if self.seeds is not None:
                generator = Generator(labels.device).manual_seed(self.seeds[number] + self.stream)
            objects, background = (labels >= 1).nonzero()[:, 0], (labels == 0).nonzero()[:, 0]
            wanted = min(int(self.chosen * self.share), len(objects))
            rest = min(self.chosen - wanted, len(background))
            positives.append(_some(labels, objects, wanted, generator))
            negatives.append(_some(labels, background, rest, generator))
            on_objects, of_all = on_objects + wanted, of_all + wanted + rest
        self.counts = on_objects, of_all
        return positives, negatives


def _some(labels: Tensor, places: Tensor, count: int, generator: Generator | None) -> Tensor:
    mask = torch.zeros_like(labels, dtype=torch.uint8)
    mask[places[torch.randperm(len(places), device=places.device, generator=generator)[:count]]] = 1
    return mask


def over_all(
    losses: Mapping[str, Float[Tensor, ""]], counts: Mapping[str, int], images: int
) -> dict[str, Float[Tensor, ""]]:
    """Losses that, weighted by each process's share of the images, add up to the mean over the places of all.

    losses   means over the places of this process's `images`     counts   the number of its places, by loss
    The same losses in a single process. Collective.
    """
    device = next(iter(losses.values())).device
    own = torch.tensor([images, *(counts[name] for name in losses)], device=device)
    of_all = total(own)
    if of_all is own:
        return dict(losses)
    weights = (own[1:] / own[0]) / (of_all[1:].clamp(min=1) / of_all[0])
    return {name: loss * weight for (name, loss), weight in zip(losses.items(), weights, strict=True)}


__all__ = ["SeededSampler", "over_all"]
