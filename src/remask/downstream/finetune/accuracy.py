"""Accuracy of a fine-tuned classifier: top-1, top-5, per class, and the confusion matrix."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from remask.downstream.finetune.classifier import Classifier
from remask.errors import UserError
from remask.evaluation.figures.lettering import labels, png
from remask.evaluation.probing.features import Labelled, evaluating
from remask.training.gathering import total

CONFUSION_CLASSES = 100
"""Maximum number of classes with which a JSON file holds the full confusion matrix; else only its largest entries."""
LISTED = 20
"""Maximum number of listed confusions."""
_INK, _PAPER = "#1f2328", "#ffffff"


@dataclass(frozen=True)
class Scores:
    """Counts of predictions for the images of a source.

    confusion   numbers of images by true class (rows) and predicted class (columns)
    top5        number of images whose class is among the five most likely (among all if there are fewer)
    loss        mean cross-entropy without label smoothing, in nats
    """

    confusion: Int[Tensor, "classes classes"]
    top5: int
    loss: float

    @property
    def images(self) -> int:
        return int(self.confusion.sum())

    @property
    def top1(self) -> float:
        """Share of the images whose class is the most likely one, in percent."""
        return 100 * int(self.confusion.diagonal().sum()) / self.images

    def summary(self, names: Sequence[str] | None = None) -> dict[str, Any]:
        """Scores for a JSON file, its keys as below; accuracies in percent. names: of the classes, by number."""
        classes = len(self.confusion)
        content = {
            "top1": self.top1,
            "top5": 100 * self.top5 / self.images,
            "loss": self.loss,
            "images": self.images,
            "classes": classes,
            "per_class": self.per_class(names),
            "confusions": self.confusions(names),
        }
        return content | ({"confusion": self.confusion.tolist()} if classes <= CONFUSION_CLASSES else {})

    def per_class(self, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """{"class", "images", "top1" in percent, "mistaken_for": most often, or None} for each class with images."""
        rows, errors = [], self.confusion.clone().fill_diagonal_(0)
        for number, (row, counts) in enumerate(zip(self.confusion, errors, strict=True)):
            if images := int(row.sum()):
                mistaken_for = _name(int(counts.argmax()), names) if counts.any() else None
                top1 = 100 * int(row[number]) / images
                rows.append(
                    {"class": _name(number, names), "images": images, "top1": top1, "mistaken_for": mistaken_for}
                )
        return rows

    def confusions(self, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """The most frequent errors, sorted: {"class", "taken_for", "images"}."""
        errors = self.confusion.clone().fill_diagonal_(0).flatten()
        order = errors.argsort(descending=True, stable=True)[:LISTED].tolist()
        pairs = [(*divmod(index, len(self.confusion)), int(errors[index])) for index in order if errors[index]]
        return [{"class": _name(i, names), "taken_for": _name(j, names), "images": n} for i, j, n in pairs]


def score(
    classifier: Classifier,
    batches: Iterable[Labelled],
    device: torch.device | str | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Scores:
    """The scores of a classifier, in evaluation mode, on all images of `batches`, those of all processes. Collective.

    device     of the images; None: the classifier's
    autocast   returns the context of the forward passes; losses are computed in float32
    Raises UserError for no images, images without labels, or a label outside the head's classes.
    """
    target_device, classes = device or next(classifier.parameters()).device, classifier.classes
    confusion, top5, loss = torch.zeros(classes, classes, dtype=torch.long), 0, 0.0
    with torch.inference_mode(), evaluating([classifier]):
        for batch in batches:
            labels = _checked(batch.labels, classes)
            with autocast():
                logits = classifier.logits(batch.images.to(target_device))
            logits = logits.float().cpu()
            best = logits.topk(min(5, classes), dim=1).indices
            confusion += torch.bincount(labels * classes + best[:, 0], minlength=classes**2).view(classes, classes)
            top5 += int((best == labels[:, None]).sum())
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
    sums = total(torch.cat([confusion.flatten(), torch.tensor([top5])]))
    confusion, images = sums[:-1].view_as(confusion).clone(), int(sums[:-1].sum())
    if not images:
        raise UserError("there is no image to classify: the source gave no batch")
    return Scores(confusion, int(sums[-1]), float(total(torch.tensor(loss, dtype=torch.float64))) / images)


def evaluate(
    classifier: Classifier,
    batches: Iterable[Labelled],
    device: torch.device | str | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """`Scores.summary` of `score`; names: of the classes, by number."""
    return score(classifier, batches, device, autocast).summary(names)


def confusion_figure(confusion: Int[Tensor, "classes classes"], names: Sequence[str] | None = None) -> bytes:
    """A PNG: rows are true classes, columns predictions, in percent of the row's images; names up to 30 classes."""
    from matplotlib.figure import Figure

    classes, shares = len(confusion), _shares(confusion)
    side = min(max(2.2 + 0.32 * classes, 4.0), 10.0)
    figure = Figure(figsize=(side, side), dpi=150, facecolor=_PAPER, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=100)
    axes.set_xlabel("predicted class", color=_INK)
    axes.set_ylabel("true class", color=_INK)
    accuracy = 100 * float(confusion.diagonal().sum() / confusion.sum().clamp(min=1))
    axes.set_title(f"{accuracy:.1f} % of {int(confusion.sum())} images right", color=_INK, fontsize=10)
    if classes <= 30:
        texts = labels([_name(i, names) for i in range(classes)])
        axes.set_xticks(range(classes), texts, rotation=90, fontsize=7, parse_math=False)
        axes.set_yticks(range(classes), texts, fontsize=7, parse_math=False)
    if classes <= 15:
        for row, column in (shares >= 0.5).nonzero().tolist():
            share = float(shares[row, column])
            colour = _PAPER if share > 55 else _INK
            axes.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=7, color=colour)
    return png(figure)


def _shares(confusion: Int[Tensor, "classes classes"]) -> Float[Tensor, "classes classes"]:
    """Percent of each row; 0 for a class without images."""
    return 100 * confusion.float() / confusion.sum(1, keepdim=True).clamp(min=1)


def _checked(labels: Int[Tensor, "B"] | None, classes: int) -> Int[Tensor, "B"]:
    if labels is None:
        raise UserError("accuracy needs labels: give class folders, or a set that has them")
    if (largest := int(labels.max())) >= classes or int(labels.min()) < 0:
        raise UserError(f"class number {largest} among the labels, and the classifier knows {classes} classes")
    return labels.long().cpu()


def _name(number: int, names: Sequence[str] | None) -> str:
    return str(number) if names is None or number >= len(names) else names[number]


__all__ = ["Scores", "confusion_figure", "evaluate", "score"]
