"""kNN on the way: how good the features are after every few epochs, of images held out for it."""

from collections.abc import Callable, Iterator

import torch

from remask.build.pretraining import build_method, scaling_of
from remask.evaluation.probing.features import extract
from remask.evaluation.probing.knn import weighted_knn
from remask.images.loading.loader import Batch, iterate
from remask.images.sources.hold_out import hold_out, split_source
from remask.images.sources.opening import Source
from remask.images.sources.subset import Subset
from remask.images.transforms import CentreCrop
from remask.method import Method
from remask.recipe import Recipe
from remask.seeds import generator
from remask.training.runtime import Runtime
from remask.training.sharding import full_state
from remask.training.trainer import Hook


def knn_split(recipe: Recipe, source: Source, older: bool) -> tuple[tuple[Subset, Subset], list[str]]:
    """The pictures of [probe] that vote and those that are asked, 5,000 at most, and lines for the start.

    older   a run that was started before classes were looked at
    """
    assert recipe.probe
    order = torch.randperm(len(source), generator=generator(0, "probe on the way"))[:5000].tolist()
    held_out = hold_out(order, None if older else source.labels)
    bank, queries = split_source(source, held_out, "another set to --probe")
    said, k = [*queries.remarks], recipe.probe.k
    if len(bank) < k:
        said.append(f"kNN on the way: {len(bank)} pictures of {source.name} vote, not {k}, as there are no more")
    return (bank, queries), said


def knn_hook(
    recipe: Recipe, method: Method, runtime: Runtime, bank: Subset, queries: Subset, report: Callable[[str], None]
) -> Hook:
    """kNN accuracy on [probe].source every few epochs: four fifths vote, one fifth is asked.

    Of many processes the main one asks; where weights are in pieces, of a whole copy.
    """
    assert recipe.probe
    section = recipe.probe

    def hook(epoch: int) -> dict[str, float]:
        if epoch % section.every_epochs and epoch != recipe.optim.epochs:
            return {}
        full_method = method if runtime.world.alone or runtime.parallel == "ddp" else _copy(recipe, method, runtime)
        if not runtime.world.main:
            return {}
        known, query = (_features(full_method, subset, recipe, runtime, report) for subset in (bank, queries))
        return {"probe/knn": weighted_knn(*known, *query, k=min(section.k, len(known[1])))}

    return hook


def _copy(recipe: Recipe, method: Method, runtime: Runtime) -> Method:
    """A whole method on the main process's device; the others give their pieces."""
    state, copy = full_state(method.state_dict(), runtime.world.main), build_method(recipe, start=False)
    if runtime.world.main:
        copy.load_state_dict(state)
    return copy.to(runtime.device)


def _features(
    method: Method, source: Source, recipe: Recipe, runtime: Runtime, report: Callable[[str], None]
) -> tuple[torch.Tensor, torch.Tensor]:
    features, labels = extract(method.backbone, batches(recipe, source, report=report), device=runtime.device)
    assert labels is not None
    return features, labels


def batches(
    recipe: Recipe, source: Source, size: int = 256, report: Callable[[str], None] | None = None
) -> Iterator[Batch]:
    """Centre crops of a source, in order, as a recipe's backbone sees them; `report` gets a line for each bad one."""
    data = recipe.data
    return iterate(
        source, CentreCrop(data.image_size), size, channels=data.channels, max_bad=max(data.max_bad, 0.01),
        scaling=scaling_of(data), report=report,
    )  # fmt: skip


__all__ = ["batches", "knn_hook", "knn_split"]
