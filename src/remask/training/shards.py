"""Weights and moments in pieces: each process of an FSDP run writes its own, and any number of processes reads them.

torch.distributed.checkpoint (DCP) cuts them, and cuts them anew for another number of processes. Its files are
safetensors here: its own format has an index that is a pickle, which may run code when it is read.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from remask.errors import UserError, first_line
from remask.files.tensors import DAMAGED

WEIGHTS, MOMENTS = "model.", "optimizer."
SINGLE = "[]"
"""End of the key of a tensor without dimensions, which is stored with one."""


def is_sharded(folder: Path) -> bool:
    """Whether a checkpoint's folder holds pieces."""
    return next(folder.glob("shard-*.safetensors"), None) is not None


def write_shards(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write this process's pieces of weights and moments into a folder, and sync them. Collective.

    Raises on all processes what went wrong in one of them.
    """
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        save(_everything(model, optimizer), storage_writer=writer)
    except CheckpointException as error:
        causes = [failure[0] for failure in error.failures.values()]
        raise next((cause for cause in causes if isinstance(cause, OSError)), causes[0]) from error


def check_complete(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Raise UserError if a folder does not hold all pieces of weights and moments, for not all processes see it."""
    found = _metadata(folder)
    for key, value in _everything(model, optimizer).items():
        pieces = found[key].chunks if key in found else []
        if sum(math.prod(piece.sizes) for piece in pieces) != value.numel():
            raise UserError(
                f"{folder.parent} did not get the pieces of all processes ({key} is not whole): choose an --out that "
                'all machines see, or set runtime.state_dict_type "full"'
            )


def plain_values(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state dict of an optimizer without the tensors of its moments, which `write_shards` writes."""
    state = optimizer.state_dict()
    left = {
        i: {name: value for name, value in moments.items() if not isinstance(value, Tensor)}
        for i, moments in state["state"].items()
    }
    return {**state, "state": left}


def listed_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of which a folder holds pieces, on the "meta" device: shapes and dtypes alone."""
    return {
        name: torch.empty(_shape(key, about), dtype=about.properties.dtype, device="meta")
        for key, about in _metadata(folder).items()
        if (name := key.removesuffix(SINGLE).removeprefix(WEIGHTS)) != key.removesuffix(SINGLE)
    }


def read_weights(folder: Path, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """New tensors with the weights of a folder, cut as those of `like` are, by the names there; "meta" ones stay."""
    values = {name: torch.empty_like(tensor) for name, tensor in like.items()}
    _read(folder, {_key(WEIGHTS, name, value): value for name, value in values.items() if not value.is_meta})
    return values


def read_moments(folder: Path, parameters: Sequence[Tensor]) -> dict[int, dict[str, Tensor]]:
    """The optimizer's state of a folder by the parameters' numbers; what has a parameter's shape is cut as that is."""
    state = dict[int, dict[str, Tensor]]()
    for key, about in _metadata(folder).items():
        if key.startswith(MOMENTS):
            number, _, name = key.removeprefix(MOMENTS).removesuffix(SINGLE).partition(".")
            shape, dtype, own = _shape(key, about), about.properties.dtype, parameters[int(number)]
            cut = own.shape == shape and not key.endswith(SINGLE)
            value = torch.empty_like(own, dtype=dtype) if cut else torch.empty(shape, dtype=dtype)
            state.setdefault(int(number), {})[name] = value.detach()
    _read(folder, {
        _key(MOMENTS, f"{number}.{name}", value): value
        for number, moments in state.items() for name, value in moments.items()
    })  # fmt: skip
    return state


def local(value: Tensor) -> Tensor:
    """This process's piece of a tensor, or all of one that is not cut."""
    return value.to_local() if isinstance(value, DTensor) else value


def _everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights and moments by the keys they are stored under."""
    named = [(WEIGHTS, name, value) for name, value in model.state_dict().items()]
    named += [
        (MOMENTS, f"{i}.{name}", value)
        for i, moments in optimizer.state_dict()["state"].items()
        for name, value in moments.items()
        if isinstance(value, Tensor)
    ]
    return {_key(kind, name, value): _stored(value).contiguous() for kind, name, value in named}


def _key(kind: str, name: str, value: Tensor) -> str:
    return f"{kind}{name}{'' if value.ndim else SINGLE}"


def _stored(value: Tensor) -> Tensor:
    """A tensor, or a view of one dimension if it has none."""
    return value.detach() if value.ndim else value.detach().reshape(1)


def _shape(key: str, about: TensorStorageMetadata) -> torch.Size:
    return torch.Size() if key.endswith(SINGLE) else about.size


def _metadata(folder: Path) -> dict[str, TensorStorageMetadata]:
    """Shapes and pieces of what a folder holds, by key. Raises UserError if a file is damaged."""
    try:
        return dict(HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata)  # type: ignore[arg-type]
    except (OSError, *DAMAGED) as error:
        why = first_line(error)
        raise UserError(f"{folder} cannot be read: {why}; take another checkpoint of the run") from error


def _read(folder: Path, into: Mapping[str, Tensor]) -> None:
    """Read what is stored under these keys into the tensors, this process's pieces alone. Not collective."""
    wanted = {key: _stored(value) for key, value in into.items()}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            load(wanted, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    except CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]
        if not isinstance(cause, (OSError, *DAMAGED)):
            raise cause from error
        why = first_line(cause)
        raise UserError(f"{folder} cannot be read: {why}; take another checkpoint of the run") from error


__all__ = [
    "check_complete", "is_sharded", "listed_weights", "local", "plain_values", "read_moments", "read_weights",
    "write_shards",
]  # fmt: skip
