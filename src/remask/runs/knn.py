"""kNN probing during pre-training: accuracy of the features every few epochs, on held-out images."""

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
    """((bank, queries), lines for the log): at most 5,000 images of [probe], some held out as queries.

    older   the run has format 1, whose split ignored classes
    """
    assert recipe.probe
    order = torch.randperm(len(source), generator=generator(0, "probe on the way"))[:5000].tolist()
    held_out = hold_out(order, None if older else source.labels)
    bank, queries = split_source(source, held_out, "another set to --probe")
    lines, k = [*queries.remarks], recipe.probe.k
    if len(bank) < k:
        lines.append(f"kNN on the way: {len(bank)} pictures of {source.name} vote, not {k}, as there are no more")
    return (bank, queries), lines


def knn_hook(
    recipe: Recipe, method: Method, runtime: Runtime, bank: Subset, queries: Subset, report: Callable[[str], None]
) -> Hook:
    """Hook that returns {"probe/knn": accuracy of `queries` by the neighbours in `bank`, in %} every few epochs.

    Only the main process evaluates; with sharded weights it does so on a full copy of the method.
    """
    assert recipe.probe
    section = recipe.probe

    def hook(epoch: int) -> dict[str, float]:
        if epoch % section.every_epochs and epoch != recipe.optim.epochs:
            return {}
        model = full_method(recipe, method, runtime)
        if not runtime.world.main:
            return {}
        bank_features, query_features = (
            _features(model, subset, recipe, runtime, report) for subset in (bank, queries)
        )
        return {"probe/knn": weighted_knn(*bank_features, *query_features, k=min(section.k, len(bank_features[1])))}

    return hook


def full_method(recipe: Recipe, method: Method, runtime: Runtime) -> Method:
    """The method, or where its weights are sharded a copy with full ones on the main process. Collective."""
    if runtime.world.alone or runtime.parallel == "ddp":
        return method
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
    recipe: Recipe, source: Source, size: int = 256, report: Callable[[str], None] | None = None,
    max_bad: float | None = None,
) -> Iterator[Batch]:  # fmt: skip
    """Batches of `size` centre crops of a source, in order, scaled for a recipe's backbone.

    report    called with a line for each unusable image
    max_bad   share of unusable images that is allowed; the recipe's, or one in a hundred, unless given
    """
    data = recipe.data
    allowed = max(data.max_bad, 0.01) if max_bad is None else max_bad
    return iterate(
        source, CentreCrop(data.image_size), size, channels=data.channels, max_bad=allowed,
        scaling=scaling_of(data), report=report,
    )  # fmt: skip


__all__ = ["batches", "full_method", "knn_hook", "knn_split"]
