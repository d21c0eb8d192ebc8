"""A recipe's parameters, FLOPs and bytes, counted on tensors that have shapes and no memory. Nothing is estimated.

Bytes are those of a step's live tensors, followed operation by operation through forward and backward at the very batch
size. An allocator's gaps, a library's work space and what a CUDA context takes are not in them.
"""

import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from remask.build.pretraining import build_method, checkpoint_blocks, parameters
from remask.method import Method
from remask.recipe import Recipe

MB = 2**20


class Anatomy(NamedTuple):
    """Parameters, and GFLOP of one image in all its views. Frozen teachers are in neither count of parameters."""

    backbone: int
    total: int
    trained: int
    views: int
    forward: float
    training: float


class PeakMemory(NamedTuple):
    """MB of one device at the peak of a step. The first four are alive then; `rest` is gradients and transient tensors.

    activations     saved for the backward pass, whole at the end of the forward one
    """

    weights: float
    optimizer: float
    images: float
    activations: float
    rest: float

    @property
    def total(self) -> float:
        return sum(self)


def anatomy(recipe: Recipe) -> Anatomy:
    """Raises UserError where the recipe cannot be built, for a file of weights that is not there for instance."""
    method = _on_meta(recipe)
    forward, targets = _flops(method, recipe)
    again = 1 if recipe.runtime.checkpointing else 0  # at most: heads and embeddings are not done again
    # 3 times forward: the counter sees a grouped convolution's backward as if it were dense
    training = (3 + again) * (forward - targets) + targets
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    size = parameters(method.backbone.network), parameters(method), trained
    return Anatomy(*size, method.masking.views, round(forward / 1e9, 4), round(training / 1e9, 4))


def peak_memory(recipe: Recipe, batch: int, micro_batches: int, dtype: torch.dtype) -> PeakMemory:
    """Memory at the peak of a step with `batch` images, under autocast to `dtype` as on a CPU, with attention fused."""
    method, size = _on_meta(recipe), recipe.data.image_size
    if recipe.runtime.checkpointing:
        checkpoint_blocks(method)
    method.train()
    with FakeTensorMode(allow_non_fake_inputs=True):
        _materialise(method)
        with Live() as live:
            for tensor in _owned(method):
                live.note(tensor)
            weights = live.now
            images = torch.zeros(batch, recipe.data.channels, *size, dtype=torch.uint8)
            pixels, activations = live.now - weights, 0
            for _ in range(min(micro_batches, 2)):  # the second slice meets the gradients of the first
                before, chunk = live.now, images.tensor_split(micro_batches)[0]
                with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
                    loss = method(chunk)["total"]
                activations = live.now - before
                loss.backward()
                del loss
    moments = 8 * sum(p.numel() for p in method.parameters() if p.requires_grad)  # fp32, two of them
    rest = live.peak - weights - pixels - activations
    return PeakMemory(*(count / MB for count in (weights, moments, pixels, activations, rest)))


class Live(TorchDispatchMode):
    """Bytes of the storages that operations made and that are still there, now and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[int, weakref.finalize[Any, Any]] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.note(leaf)
        return out

    def note(self, tensor: Tensor) -> None:
        """Count a tensor's storage, once, until it is gone."""
        storage = tensor.untyped_storage()
        place, size = storage._cdata, storage.nbytes()
        if place not in self.known:
            self.known[place] = weakref.finalize(storage, self._gone, place, size)
            self.now += size
            self.peak = max(self.peak, self.now)

    def _gone(self, place: int, size: int) -> None:
        self.now -= size
        self.known.pop(place, None)


def _on_meta(recipe: Recipe) -> Method:
    with torch.device("meta"):
        return build_method(recipe)


def _flops(method: Method, recipe: Recipe) -> tuple[int, int]:
    """Forward FLOPs of one image, and those of its targets among them."""
    with torch.device("meta"), torch.no_grad():
        image = torch.zeros(1, recipe.data.channels, *recipe.data.image_size, dtype=torch.uint8)
        views = method.draw(image)
        with FlopCounterMode(display=False) as everything:
            method(image, views)
        with FlopCounterMode(display=False) as targets:
            for target in {branch.target for branch in method.branches}:
                target(image, views)
    return everything.get_total_flops(), targets.get_total_flops()


def _networks(method: Method) -> Iterator[nn.Module]:
    """The method, and the frozen networks that its targets hold beside it."""
    yield method
    for target in {module for branch in method.branches for module in branch.target.modules()}:  # type: ignore[attr-defined]
        yield from getattr(target, "networks", ())


def _owned(method: Method) -> Iterator[Tensor]:
    for network in _networks(method):
        yield from network.parameters()
        yield from network.buffers()


def _materialise(method: Method) -> None:
    """Give every parameter and buffer a (fake) CPU tensor; what was shared stays shared."""
    made: dict[Tensor, Tensor] = {}
    for module in (module for network in _networks(method) for module in network.modules()):
        for table in (module._parameters, module._buffers):
            for name, old in table.items():
                if old is not None and old not in made:
                    new = torch.empty(old.shape, dtype=old.dtype)
                    made[old] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
                if old is not None:
                    table[name] = made[old]  # type: ignore[assignment]


__all__ = ["Anatomy", "PeakMemory", "anatomy", "peak_memory"]
