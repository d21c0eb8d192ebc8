"""The loop: a batch, a step, a line of the log, a checkpoint. It knows nothing of masked image modeling.

The loader's batches are a function of (seed, epoch, position) and a step's draws one of (seed, step), so a killed run
continues from its last checkpoint bit by bit.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from remask.errors import UserError
from remask.files.escaping import quoted
from remask.training.checkpoint import intact, restore
from remask.training.cost import Ledger, Window
from remask.training.finite import CURE, FiniteGuard, Skipped, non_finite
from remask.training.interfaces import Batches, Drawer, Draws, Hook
from remask.training.oom import retried_line
from remask.training.optim import Schedule
from remask.training.progress import Console
from remask.training.run_folder import RunFolder
from remask.training.run_log import GRAD_NORM, RunLog
from remask.training.runtime import Runtime
from remask.training.saving import Saver
from remask.training.step import Stepper
from remask.training.stopping import StopRequest, saved_at


class Trainer(Stepper):
    """Trains a model in `run`, step by step. `train` starts at step 0, or after `resume` at the checkpoint's step.

    calmer   options of `remask resume` that are advised where numbers are not finite
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        runtime: Runtime,
        run: RunFolder,
        ledger: Ledger,
        *,
        seed: int = 0,
        hooks: Sequence[Hook] = (),
        tensorboard: bool = True,
        draw: Drawer | None = None,
        ddp_model: nn.Module | None = None,
        global_batch_size: int | None = None,
    ) -> None:
        given = {"seed": seed, "draw": draw, "ddp_model": ddp_model, "global_batch_size": global_batch_size}
        super().__init__(model, optimizer, schedule, runtime, **given)  # type: ignore[arg-type]
        self.batches, self.run, self.ledger, self.hooks = batches, run, ledger, hooks
        self.log, self.saver = RunLog(run, runtime, tensorboard), Saver(run)
        self.saved = time.monotonic()
        self.notes: dict[str, Any] = {}  # saved in the state.json of every checkpoint
        self.saved_step: int | None = None
        self.calmer = "--set optim.base_lr=LESS --set optim.clip=1"
        self._last_skipped: Skipped | None = None
        self._finite_at: int | None = None  # the last step at which weights and moments were seen to be finite

    def resume(self, folder: Path | None = None) -> None:
        """Continue from a checkpoint, by default the last: weights, optimizer, position, cost so far."""
        folder = folder or intact(self.run)
        self.place(restore(folder, self.model, self.optimizer))
        self.saved_step = self.global_step if folder.name == "last" else None
        self.run.rewind(self.global_step)
        self.world.wait()  # no process saves while another reads

    def place(self, state: Mapping[str, Any]) -> None:
        """Restore step, cost and log window from `state`, whose epochs may have had another number of steps."""
        try:
            self.global_step, self.schedule = state["step"], self.schedule.going_on(state)
            self.ledger.load(state["ledger"], self.world.main, self.schedule.epochs_unlike(state))
            self.log.window.load(state["window"], self.world.main)
            limit, skipped = self.schedule.max_skipped, state.get("skipped", [])
            self.guard = FiniteGuard(limit, self.world.alone, skipped, self.global_step)
            self.log.skipped = self.guard.steps
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"a checkpoint's state.json is damaged ({error!r}): take another of the run") from error
        if self.log.window.steps:  # versions before 2026-12 did not sum the norm
            self.log.window.losses.setdefault(GRAD_NORM, math.nan)

    def train(self, console: Console, then: Callable[[], object] = lambda: None, ended: str = "finished") -> None:
        """Train to the end, or to `until_epoch`, then call `then`; the run's state is `ended` when all steps are done.

        SIGINT, SIGTERM or SIGUSR1 saves a checkpoint and raises KeyboardInterrupt; too many skipped steps in a row,
        and weights that are not finite, raise UserError. Whatever ends it, a checkpoint that is being written is on the
        disk before.
        """
        self.log.open(self.global_step, self.schedule, self.ledger)
        try:
            with console, StopRequest() as stop:
                self.log.status("running", self.global_step)
                self._save_first()
                self.ledger.resume()
                for batch, waited in self._steps(stop):
                    before, losses = self.micro_batches, self.step(batch)
                    self.global_step += 1
                    self.world.at_step(self.global_step)
                    if before < self.micro_batches:
                        console.say(retried_line(self.global_step, self.micro_batches))
                    self.log.add(losses, waited, self.global_batch_size or len(batch.images))
                    self._after_step(stop, console)
                self.save("last")
                self.saver.wait()
            then()
            state = ended if self.global_step >= self.schedule.steps else "running"
            self.log.status(state, self.global_step)
        except BaseException as error:
            self._end(error)
            raise
        self.log.close()

    def _save_first(self) -> None:
        """Save at step 0; at the end of an epoch that is kept, what a killed run had not kept of it."""
        if self.global_step == 0:
            self.save("last")
        elif (name := self._kept_name()) and not (self.run.path / "checkpoints" / name).is_dir():
            self.save(name)

    def _end(self, error: BaseException) -> None:
        """Complete the checkpoint that is being written, and note why the run ends, as far as there is room for it."""
        why = str(error)
        try:
            self.saver.wait()
        except OSError as unsaved:
            why += f" (and the last checkpoint could not be written: {unsaved})"
        with suppress(OSError):  # which would hide `error`
            self.log.ended_by(error, self.global_step, why)
            self.log.close()

    def _steps(self, stop: StopRequest) -> Iterator[tuple[Any, float]]:
        """(batch, seconds waited for it) from the current position to the end, unless it is to stop while waiting."""
        while self.global_step < self.schedule.last_step:
            epoch, start = self.schedule.place(self.global_step)
            batches = self.batches.epoch(epoch, start)
            for _ in range(start, self.schedule.steps_per_epoch):
                began = time.perf_counter()
                if (batch := stop.next_of(batches, self.world.alone)) is None:
                    self.save("last")
                    raise saved_at(self.global_step, self.schedule.steps, stop.time_limit)
                yield batch, time.perf_counter() - began
                if self.global_step >= self.schedule.last_step:
                    return

    def _after_step(self, stop: StopRequest, console: Console) -> None:
        """Log at the end of a window or an epoch; save at the end of an epoch or when due; stop on request."""
        self.saver.check()
        end_of_epoch = self.schedule.place(self.global_step)[1] == 0
        logs = self.global_step % self.schedule.log_every == 0 or self.global_step == self.schedule.steps
        if logs or end_of_epoch:
            self._log(end_of_epoch, console)
        due = time.monotonic() - self.saved > 60 * self.schedule.save_minutes
        # clocks and signals differ between processes: they agree only at steps at which they synchronise anyway
        synchronises = logs or end_of_epoch or self.world.alone
        wishes = stop.requested, due, stop.time_limit
        stops, due, time_limit = self.world.any(*wishes) if synchronises else (False, False, False)
        if end_of_epoch or due or stops:
            kept = self._kept_name()
            self.save(*([kept] if kept else []), "last")
        if stops:
            raise saved_at(self.global_step, self.schedule.steps, time_limit)

    def _kept_name(self) -> str | None:
        """Name of the checkpoint to keep at this step: "epoch-0002"; None in mid-epoch, or if it is not kept."""
        (epoch, steps_into_epoch), every = self.schedule.place(self.global_step), self.schedule.keep_every_epochs
        return f"epoch-{epoch:04d}" if every and steps_into_epoch == 0 and epoch % every == 0 else None

    def _log(self, end_of_epoch: bool, console: Console) -> None:
        for skipped in self._skipped():
            console.say(f"{_what(skipped)} at step {skipped.step}, which was skipped")
        line = self.log.line(self.global_step)
        self._refuse(line.get("loss/total", 0.0))
        if end_of_epoch:
            self._require_finite()  # what the hooks look at
            line |= self._run_hooks(self.schedule.place(self.global_step)[0])
        self.log.write(line, console)

    def _run_hooks(self, epoch: int) -> dict[str, float]:
        self.ledger.pause()
        results = {name: value for hook in self.hooks for name, value in hook(epoch).items()}
        self.world.wait()
        self.ledger.resume()
        self.log.window = Window()
        return results

    def _skipped(self) -> list[Skipped]:
        """The steps skipped since this was last asked, which the log's window gets to know."""
        found = self.guard.read()
        self.log.window.skipped += [skipped.step for skipped in found]
        self._last_skipped, self.log.skipped = found[-1] if found else self._last_skipped, self.guard.steps
        return found

    def save(self, *names: str) -> None:
        """Save under these names, in this order: where "last" is of the end of an epoch, the kept one is there.

        A large one is on the disk after `saver.wait()`. Collective. Raises UserError, and leaves older checkpoints as
        they are, if something in it is not finite.
        """
        if self.saved_step == self.global_step and names == ("last",):
            return
        self._skipped()
        state = self.state()
        self._refuse(state["window"]["losses"].get("total", 0.0))
        self._require_finite()
        self.saver.save(names, self.model, self.optimizer, state)
        self.saved = time.monotonic()
        self.saved_step = self.global_step if "last" in names else self.saved_step

    def _require_finite(self) -> None:
        """Raise UserError if a weight, buffer or moment is not finite after the last step. Collective."""
        if self._finite_at == self.global_step:
            return
        faults = [fault for fault in self.world.gathered(non_finite(self.model, self.optimizer)) if fault]
        if faults:
            raise UserError(f"{faults[0]} are not finite after step {self.global_step}, and not saved: {self._cure()}")
        self._finite_at = self.global_step

    def _refuse(self, loss: float) -> None:
        """Raise UserError if too many steps in a row were skipped, or a mean loss is not finite. Collective."""
        last = self._last_skipped
        if self.guard.halted and last:
            total = self.world.sums({"loss": last.loss})["loss"]
            steps = range(last.step - self.guard.in_row + 1, last.step + 1)
            many = f", and steps {steps[0]} to {steps[-1]} were skipped" if len(steps) > 1 else ""
            raise UserError(f"{_what(last._replace(loss=total))} at step {last.step}{many}: {self._cure()}")
        if not math.isfinite(loss):
            raise UserError(f"the loss is {loss} at step {self.global_step}: {self._cure()}")

    def _cure(self) -> str:
        """What to do, and the command that does it."""
        command = f"remask resume {quoted(self.run.path)} {self.calmer}"
        last = self.run.path / "checkpoints" / "last"
        return f"{CURE}, with {command}; the last good checkpoint is in {last}"

    def state(self) -> dict[str, Any]:
        """A checkpoint's state beside weights and optimizer: {"step", "epoch", "ledger", "window", ...}. Collective."""
        self.ledger.meet(self.world)
        position = {
            "step": self.global_step,
            "epoch": self.schedule.epoch_at(self.global_step),
            **self.schedule.marks(),
            "files": self.run.digests(),
        }
        skipped = {"skipped": self.guard.steps} if self.guard.steps else {}
        window = self.log.window.state(self.world)
        return {**position, **skipped, **self.notes, "ledger": self.ledger.state(), "window": window}


def _what(skipped: Skipped) -> str:
    """What of a step is not finite."""
    return f"the gradient is {skipped.norm}" if math.isfinite(skipped.loss) else f"the loss is {skipped.loss}"


__all__ = ["Batches", "Drawer", "Draws", "Hook", "Trainer"]
