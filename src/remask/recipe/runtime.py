"""[runtime] and [probe]: where and how a recipe runs, and what is looked at on the way."""

from typing import Annotated, Literal

from pydantic import Field

from remask.recipe.values import Device, Section


class RuntimeSection(Section):
    """Where and how it runs; no key here changes results beyond the order of float sums."""

    device: Device = Field(default="auto", description="auto, cpu, cuda, cuda:N, mps.")
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(default="auto", description="Loader processes.")
    accumulate: int = Field(default=1, ge=1, description="Parts into which a batch is cut to fit in memory.")
    compile: bool | Literal["auto", "graphs"] = Field(
        default="auto", description="torch.compile; auto = on GPUs; graphs = into CUDA graphs, for small batches."
    )
    parallel: Literal["ddp", "fsdp"] = Field(
        default="ddp", description="Under torchrun: a whole copy in each process, or a piece (FSDP2), for large models."
    )
    threads: int | None = Field(default=None, ge=1, description="CPU threads; unset = PyTorch's choice.")
    save_every_minutes: float = Field(default=10.0, gt=0, description="Minutes between checkpoints to resume from.")
    keep_every_epochs: int | None = Field(default=None, ge=1, description="Keep a checkpoint of every N-th epoch.")
    patience: float = Field(
        default=1800.0, ge=0, description="Seconds after which a loader or a process counts as stuck; 0 = never."
    )
    log_every: int = Field(default=10, ge=1, description="Steps between two lines of the log.")
    tensorboard: bool = Field(default=True, description="Write TensorBoard files beside metrics.jsonl.")


class PretrainingRuntime(RuntimeSection):
    """What pre-training has beside: ways to fit into memory."""

    accumulate: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(  # type: ignore[assignment]
        default=1, description='Parts into which a batch is cut to fit in memory; "auto" finds the fewest that do.'
    )
    state_dict_type: Literal["full", "sharded"] = Field(
        default="full", description="Of checkpoints under FSDP: whole tensors, or a piece from each process (DCP)."
    )
    checkpointing: bool = Field(default=False, description="Recompute blocks in backward: less memory, more time.")


class ProbeSection(Section):
    """kNN on the way, as a curve."""

    source: str = Field(description="Labelled pictures to classify.")
    every_epochs: int = Field(default=5, ge=1, description="Epochs between two probes.")
    k: int = Field(default=20, ge=1, description="Neighbours that vote.")
