"""A model over several processes: DDP (a full copy in each) or FSDP2 (a shard in each; Zhao et al., 2304.11277).

A dry run on the "meta" device finds the modules to shard and the parameters without gradient. Checkpoints hold full
tensors in both modes.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from remask.errors import UserError
from remask.training.batch_norm import synchronised
from remask.training.distributed import World
from remask.training.global_batch import with_global_draws

Parallel = Literal["ddp", "fsdp"]


@dataclass(frozen=True)
class ShardingPlan:
    """Module names to shard (FSDP units) and parameters that receive no gradient, as a dry run shows them.

    blocks   members of module lists that run by their own forward: gathered while they run, sharded otherwise. A block
             whose layers are called one by one (the decoder's last) belongs to its parent's unit. Inner blocks first
    silent   trainable parameters that the loss does not reach
    at_times_silent   other parameters join during the training: which of them a loss reaches is looked up in every step
    """

    blocks: tuple[str, ...] = ()
    silent: frozenset[str] = frozenset()
    at_times_silent: bool = False


def trace_plan(model: nn.Module, loss: Callable[[], Tensor]) -> ShardingPlan:
    """The plan of a model on the "meta" device, from a forward and backward of `loss`."""
    names = {module: name for name, module in model.named_modules()}
    list_members = {
        member
        for layer in names
        if isinstance(layer, nn.ModuleList | nn.Sequential) and len(layer) > 1
        for member in layer
    }
    called = dict[nn.Module, None]()
    hooks = [module.register_forward_pre_hook(lambda it, _: called.setdefault(it)) for module in names]
    try:
        loss().backward()
    finally:
        for hook in hooks:
            hook.remove()
    blocks = [names[module] for module in called if module in list_members and _is_block(module)]
    inner_first = tuple(sorted(blocks, key=lambda name: -name.count(".")))
    silent = frozenset(name for name, p in model.named_parameters() if p.requires_grad and p.grad is None)
    return ShardingPlan(inner_first, silent)


def _is_block(module: nn.Module) -> bool:
    """Whether a module has several layers with parameters, and is not a single layer."""
    return sum(1 for layer in module.modules() if next(layer.parameters(recurse=False), None) is not None) > 1


def spread(model: nn.Module, plan: ShardingPlan, world: World, parallel: Parallel, compiled: bool) -> nn.Module:
    """Wrap a model, which is on its device, in DDP or FSDP; returns the module to call. Make the optimizer afterwards.

    compiled   compile the full forward (DDP) or each block (FSDP)
    Raises UserError for scalar parameters, which FSDP cannot shard.
    """
    device, model = next(model.parameters()).device, with_global_draws(synchronised(model))
    if parallel == "ddp":
        if compiled:
            model.forward = torch.compile(model.forward)
        ignored = [*plan.silent, *(name for name, _ in model.named_buffers())]  # buffers are constant tables
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ignored)
        ids = [device] if device.type == "cuda" else None
        return DistributedDataParallel(
            model, device_ids=ids, gradient_as_bucket_view=True, find_unused_parameters=plan.at_times_silent
        )
    if any(not p.ndim for p in model.parameters()):
        raise UserError("fsdp cannot cut learned weights of branches, one number each: set runtime.parallel ddp")
    mesh = init_device_mesh(device.type, (world.size,))
    for name in plan.blocks:
        block = model.get_submodule(name)
        if compiled:
            block.compile()
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


@contextlib.contextmanager
def exchanging(model: nn.Module, now: bool) -> Iterator[None]:
    """Context in which backward reduces gradients over ranks only if `now`; else they accumulate locally."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(now)
    with model.no_sync() if isinstance(model, DistributedDataParallel) and not now else contextlib.nullcontext():
        yield


def full_state(state: Any, keep: bool = True) -> Any:
    """Nested state with every DTensor gathered to a full CPU tensor. Collective.

    keep   False: take part in the collective, but return None for tensors
    Tensors are gathered one by one, so that the full state is never on a GPU.
    """
    if isinstance(state, Mapping):
        return {key: full_state(value, keep) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(full_state(value, keep) for value in state)
    if isinstance(state, DTensor):
        full = state.full_tensor()
        return full.cpu() if keep else None
    return state if keep or not isinstance(state, Tensor) else None


def shard_state(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Full tensors, sharded like those of the state dict `own`; each process keeps its shard."""
    return {key: shard_like(value, own[key]) for key, value in state.items()}


def shard_like(value: Tensor, own: Tensor) -> Tensor:
    """A full tensor, sharded like `own` if that is sharded and of the same shape; one that is sharded stays."""
    if not isinstance(own, DTensor) or isinstance(value, DTensor) or value.shape != own.shape:
        return value
    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements, src_data_rank=None)


__all__ = ["Parallel", "ShardingPlan", "exchanging", "full_state", "shard_like", "shard_state", "spread", "trace_plan"]
