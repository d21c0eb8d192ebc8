"""Logging of a run: metrics.jsonl, TensorBoard, status.json, cost.json, the progress bar."""

import math
import time
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from remask.errors import GO_ON, MachineError
from remask.files.escaping import quoted
from remask.files.system_errors import system_line
from remask.training.cost import Ledger, Window
from remask.training.optim import Schedule
from remask.training.progress import Console, clock
from remask.training.pulse import from_exchange, ignore_sigterm
from remask.training.run_folder import RunFolder
from remask.training.runtime import Runtime

GRAD_NORM = "grad_norm"
"""Key of the norm of all gradients, before clipping, among the losses of a step."""


class RunLog:
    """The log of a run. All processes call it; the main one writes.

    window    losses and times since the last line
    skipped   all steps of the run that were skipped, as their loss or gradient was not finite
    """

    ledger: Ledger
    schedule: Schedule

    def __init__(self, run: RunFolder, runtime: Runtime, tensorboard: bool = True) -> None:
        self.run, self.runtime = run, runtime
        self.window, self._tensorboard = Window(), tensorboard
        self.skipped = list[int]()
        self._writer: Any = None

    def open(self, step: int, schedule: Schedule, ledger: Ledger) -> None:
        """Begin at `step`; TensorBoard entries of later steps, left by a killed run, are discarded."""
        self.schedule, self.ledger = schedule, ledger
        if self._tensorboard and self.runtime.world.main:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.run.path / "tensorboard"), purge_step=step)

    def close(self) -> None:
        """Write the cost, and close TensorBoard."""
        self.run.write("cost.json", self.ledger.cost(self.runtime.peak_memory_mb()))
        if self._writer:
            self._writer.close()

    def add(self, losses: Mapping[str, Tensor], waited: float, images: int) -> None:
        """Add a step: its losses, seconds waited for data, and number of images over all processes."""
        self.ledger.add(images, waited)
        self.window.add(losses, waited, images)

    def line(self, step: int) -> dict[str, Any]:
        """A line of metrics.jsonl, its keys as below, with means over the window, which is then reset. Collective.

        "skipped" lists the steps that were, if any; there are no losses if all were.
        """
        world = self.runtime.world
        self.ledger.meet(world)
        skipped = {"skipped": self.window.skipped} if self.window.skipped else {}
        mean, images_per_s, wait = self.window.close(world)
        norm = mean.pop(GRAD_NORM, math.nan)
        return {
            "step": step,
            "epoch": round(self.schedule.epoch_at(step), 4),
            **skipped,
            **{f"loss/{name}": value for name, value in mean.items()},
            **({GRAD_NORM: norm} if math.isfinite(norm) else {}),
            "lr": self.schedule.lr_at(step - 1),
            "images_per_s": round(images_per_s, 2),
            "views_per_s": round(images_per_s * self.ledger.views_per_image, 2),
            "data_wait": round(wait, 4),
        }

    def write(self, line: Mapping[str, Any], console: Console) -> None:
        """Write a line to metrics.jsonl, TensorBoard and the bar; update status.json and cost.json."""
        step = line["step"]
        self.run.log(line)
        self.status("running", step, sync=False)
        cost = self.ledger.cost(self.runtime.peak_memory_mb())
        self.run.write("cost.json", cost, sync=False)
        hours_left = (self.schedule.steps - step) * self.ledger.hours / max(step, 1)
        hours = f"gpu-h {cost['gpu_hours']:.3f}" if cost["gpu_hours"] else f"cpu-h {cost['cpu_hours']:.3f}"
        probes = "".join(f" | {name} {value:.1f}" for name, value in line.items() if name.startswith("probe/"))
        loss = f"loss {line['loss/total']:.4f}" if "loss/total" in line else "skipped"
        console.update(
            step,
            f"epoch {line['epoch']:.2f}/{self.schedule.epochs} | {loss} | lr {line['lr']:.2e} | "
            f"{line['images_per_s']:.0f} images/s | {line['views_per_s']:.0f} views/s | wait {line['data_wait']:.0%} | "
            f"eta {clock(hours_left)} | {hours} | ETE {cost['ete']:.2f}{probes}",
        )
        if self._writer:
            for name, value in line.items():
                if name not in ("step", "epoch"):
                    self._writer.add_scalar(name, len(value) if name == "skipped" else value, step)

    def ended_by(self, error: BaseException, step: int, why: str) -> None:
        """Write why a training ended before its end; an error that is no fault of its own is told how it goes on."""
        interrupted, of_another = isinstance(error, KeyboardInterrupt), from_exchange(error)
        if of_another:
            ignore_sigterm()
        if interrupted or of_another or isinstance(error, MachineError) or system_line(error):
            error.add_note(f"{GO_ON}remask resume {quoted(self.run.path)}")
        self.status("interrupted" if interrupted else "failed", step, why)

    def status(self, state: str, step: int, why: str = "", *, sync: bool = True) -> None:
        """Write status.json: the state, the step, the command to resume. sync: see `atomic_write`.

        state   running, trained (results are still to be written), finished, interrupted, failed
        """
        status = {"state": state, "step": step, "steps": self.schedule.steps}
        command, now = f"remask resume {quoted(self.run.path)}", time.strftime("%Y-%m-%dT%H:%M:%S%z")
        status |= {"resume_command": command, "updated": now}
        if state == "trained":
            status["stage"] = "training done, results missing"
        if self.skipped:
            status["skipped"] = self.skipped
        if self.run.recovered:
            status["recovered"] = self.run.recovered
        self.run.write("status.json", status | ({"error": why} if why else {}), sync=sync)


__all__ = ["GRAD_NORM", "RunLog"]
