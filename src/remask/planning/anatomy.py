"""A recipe's parameters, FLOPs and bytes, counted exactly on tensors that have shapes but no memory.

Bytes are those of a step's live tensors, tracked operation by operation through forward and backward at the given batch
size. They exclude fragmentation of the allocator, work space of libraries, and the CUDA context.
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
    """Counts of parameters, and GFLOP of one image in all its views. Parameters exclude those of frozen teachers.

    backbone, total, trained   numbers of parameters     forward, training   GFLOP per image
    """

    backbone: int
    total: int
    trained: int
    views: int
    forward: float
    training: float


class PeakMemory(NamedTuple):
    """MiB on one device at the peak of a step; their sum is the peak.

    optimizer     two fp32 moments of Adam     activations   saved for backward, measured at the end of forward
    rest          gradients and transient tensors
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
    """Counts of the recipe's method. Raises UserError if it cannot be built, e.g. for a missing file of weights."""
    method = _on_meta(recipe)
    forward, targets = _flops(method, recipe)
    again = 1 if recipe.runtime.checkpointing else 0  # upper bound: heads and embeddings are not recomputed
    # 3 times forward: the counter sees a grouped convolution's backward as if it were dense
    training = (3 + again) * (forward - targets) + targets
    if recipe.method.name == "refiner":  # whose first blocks are not trained
        training = _counted(method, recipe) + again * (forward - targets)
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    size = parameters(method.backbone.network), parameters(method), trained
    return Anatomy(*size, method.masking.views, round(forward / 1e9, 4), round(training / 1e9, 4))


def peak_memory(recipe: Recipe, batch: int, micro_batches: int, dtype: torch.dtype) -> PeakMemory:
    """Peak memory of a step of `batch` images in `micro_batches`, with CPU autocast to `dtype` and fused attention."""
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
            for _ in range(min(micro_batches, 2)):  # the second one runs beside the gradients of the first
                before, chunk = live.now, images.tensor_split(micro_batches)[0]
                with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
                    loss = method(chunk)["total"]
                activations = live.now - before
                loss.backward()
                del loss
    moments = 8 * sum(p.numel() for p in method.parameters() if p.requires_grad)  # two fp32 moments
    rest = live.peak - weights - pixels - activations
    return PeakMemory(*(count / MB for count in (weights, moments, pixels, activations, rest)))


class Live(TorchDispatchMode):
    """Bytes of live storages that operations created: `now`, and `peak` so far."""

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
        """Count a tensor's storage once, until it is freed."""
        storage = tensor.untyped_storage()
        address, size = storage._cdata, storage.nbytes()
        if address not in self.known:
            self.known[address] = weakref.finalize(storage, self._gone, address, size)
            self.now += size
            self.peak = max(self.peak, self.now)

    def _gone(self, address: int, size: int) -> None:
        self.now -= size
        self.known.pop(address, None)


def _on_meta(recipe: Recipe) -> Method:
    with torch.device("meta"):
        return build_method(recipe)


def _flops(method: Method, recipe: Recipe) -> tuple[int, int]:
    """Forward FLOPs of one image, and the share of them that computes targets and guides, without gradient."""
    with torch.device("meta"), torch.no_grad():
        crops = recipe.data.crops  # of one image, which some methods compare
        images = torch.zeros(crops, recipe.data.channels, *recipe.data.image_size, dtype=torch.uint8)
        with FlopCounterMode(display=False) as everything:
            views = method.draw(images)
            method(images, views)
        with FlopCounterMode(display=False) as targets:
            method.targets(images, method.draw(images))
    return everything.get_total_flops() // crops, targets.get_total_flops() // crops


def _counted(method: Method, recipe: Recipe) -> int:
    """FLOPs of forward and backward of one image, where only some blocks are trained."""
    crops, size = recipe.data.crops, recipe.data.image_size
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        images = torch.zeros(crops, recipe.data.channels, *size, dtype=torch.uint8)
        method(images, method.draw(images))["total"].backward()
    return counter.get_total_flops() // crops


def _networks(method: Method) -> Iterator[nn.Module]:
    """The method, and the frozen networks of its targets, which are not its submodules."""
    yield method
    for target in {module for branch in method.branches for module in branch.target.modules()}:  # type: ignore[attr-defined]
        yield from getattr(target, "networks", ())


def _owned(method: Method) -> Iterator[Tensor]:
    for network in _networks(method):
        yield from network.parameters()
        yield from network.buffers()


def _materialise(method: Method) -> None:
    """Replace every parameter and buffer by a (fake) CPU tensor; shared ones stay shared."""
    replaced: dict[Tensor, Tensor] = {}
    for module in (module for network in _networks(method) for module in network.modules()):
        for table in (module._parameters, module._buffers):
            for name, old in table.items():
                if old is not None and old not in replaced:
                    new = torch.empty(old.shape, dtype=old.dtype)
                    replaced[old] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
                if old is not None:
                    table[name] = replaced[old]  # type: ignore[assignment]


__all__ = ["Anatomy", "PeakMemory", "anatomy", "peak_memory"]
