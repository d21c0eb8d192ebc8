"""The loop: draw, forward, backward, check, clip, step, log. It knows nothing of masked image modeling.

The random draws of a step are a function of (seed, step), and the loader's batches one of (seed, epoch, position), so
a killed run continues from its last checkpoint bit by bit. All ranks draw the same for the global batch and each takes
its rows, so that several processes compute the same as one.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from remask.errors import UserError
from remask.seeds import generator, seeded
from remask.training.checkpoint import intact, restore
from remask.training.cost import Ledger, Window
from remask.training.finite import CURE, FiniteGuard
from remask.training.interfaces import Batches, Drawer, Draws, Hook
from remask.training.oom import LESS, across_batch, fewest_micro_batches, fits_in_memory, oom_retry, retried_line
from remask.training.optim import Schedule, clipped, set_lr
from remask.training.progress import Console
from remask.training.run_folder import RunFolder
from remask.training.run_log import GRAD_NORM, RunLog
from remask.training.runtime import Runtime
from remask.training.saving import Saver
from remask.training.sharding import exchanging
from remask.training.stopping import StopRequest, saved_at


class Trainer:
    """Trains `model` in `run`. `train` starts at step 0, or after `resume` at the checkpoint's step.

    model               model(images, draws) -> {"total": loss, name: loss}; its before_step(progress) and
                        after_step(progress), if it has them, precede and follow every step. The draws come from
                        model.draw(images, generator), with several processes model.draw(images, generator, rows,
                        batch), where the images are this rank's `rows` of `batch`; unless `draw` is given. They get the
                        images' numbers by of_images(index), if they have it
    ddp_model           the model wrapped for several processes (DDP, FSDP), which is then called for losses
    global_batch_size   images of a step over all ranks, set where each rank's `batches` yields its share
    Raises UserError for micro-batches of a model whose loss is `across_batch`.
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
        if schedule.accumulate > 1 and across_batch(model):
            raise UserError(
                f"{schedule.accumulate} micro-batches would cut the batch, and this loss compares its pictures: {LESS}"
            )
        self.model, self.batches, self.optimizer, self.schedule = model, batches, optimizer, schedule
        self.runtime, self.run, self.ledger, self.seed, self.hooks = runtime, run, ledger, seed, hooks
        self.ddp_model, self.world, self.global_batch_size = ddp_model or model, runtime.world, global_batch_size
        self.log, self.saver = RunLog(run, runtime, tensorboard), Saver(run)
        self.guard, self._draw = FiniteGuard(), draw
        self.global_step, self.micro_batches, self.saved = 0, schedule.accumulate, time.monotonic()
        self.notes: dict[str, Any] = {}  # saved in the state.json of every checkpoint
        self.saved_step: int | None = None

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
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"a checkpoint's state.json is damaged ({error!r}): take another of the run") from error
        if self.log.window.steps:  # versions before 2026-12 did not sum the norm
            self.log.window.losses.setdefault(GRAD_NORM, math.nan)

    def train(self, console: Console, then: Callable[[], object] = lambda: None, ended: str = "finished") -> None:
        """Train to the end, or to `until_epoch`, then call `then`; the run's state is `ended` when all steps are done.

        SIGINT or SIGTERM saves a checkpoint and raises KeyboardInterrupt; a non-finite loss raises UserError. Whatever
        ends it, a checkpoint that is being written is on the disk before.
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
                self._save("last")
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
            self._save("last")
        elif (name := self._kept_name()) and not (self.run.path / "checkpoints" / name).is_dir():
            self._save(name)

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
                    self._save("last")
                    raise saved_at(self.global_step, self.schedule.steps)
                yield batch, time.perf_counter() - began
                if self.global_step >= self.schedule.last_step:
                    return

    def step(self, batch: Any) -> dict[str, Tensor]:
        """One optimizer step. Returns this rank's share of the losses and of the gradient norm, still on the device."""
        self.model.train()
        if before_step := getattr(self.model, "before_step", None):
            before_step(self.schedule.progress_at(self.global_step))
        images = batch.images.to(self.runtime.device, non_blocking=True)
        self._refuse_unnormalised(images)
        draws = self._draws(batch._replace(images=images))

        forward_backward = partial(self._forward_backward, images, draws)
        if self.world.alone:
            losses, self.micro_batches = oom_retry(self.model, forward_backward, self.micro_batches, len(images))
        else:  # one rank cannot do again what the others have already reduced
            losses = forward_backward(self.micro_batches)

        norm = clipped(self.model, self.schedule.clip)
        self.guard.check(self.global_step + 1, losses, norm, self.optimizer, self.world.alone)
        set_lr(self.optimizer, partial(self.schedule.lr_at, self.global_step))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if after_step := getattr(self.model, "after_step", None):
            after_step(self.schedule.progress_at(self.global_step + 1))
        return {**losses, GRAD_NORM: norm / self.world.size}

    def _refuse_unnormalised(self, images: Tensor) -> None:
        """Check float images before the forward pass, which may be compiled and cannot raise."""
        if images.is_floating_point() and (backbone := getattr(self.model, "backbone", None)):
            backbone.normalise.refuse_unnormalised(images)

    def _draws(self, batch: Any) -> Draws:
        """The random draws of this step, for this rank's rows of the global batch."""
        random = generator(self.seed, "draw", self.global_step)
        if self._draw:
            return self._draw(batch, random)
        size = self.global_batch_size
        with self.runtime.autocast():
            share = () if size is None else (self.world.share(size), size)
            draws = self.model.draw(batch.images, random, *share)  # type: ignore[operator]
        return draws.of_images(batch.index) if hasattr(draws, "of_images") else draws

    def _forward_backward(self, images: Tensor, draws: Draws, micro_batches: int) -> dict[str, Tensor]:
        """Losses of the batch; gradients accumulate over the micro-batches.

        For losses and gradients, the mean over the global batch is the sum of each micro-batch's mean times its share.
        """
        totals = dict[str, Tensor]()
        rank = [] if self.world.main else [self.world.rank]  # drop path is each rank's own
        with seeded(self.seed, "step", self.global_step, *rank):
            chunks = zip(images.tensor_split(micro_batches), draws.split(micro_batches), strict=True)
            for i, (chunk, drawn) in enumerate(chunks):
                last = i == micro_batches - 1
                share = len(chunk) / (self.global_batch_size or len(images))
                with exchanging(self.ddp_model, now=last):
                    with self.runtime.autocast():
                        losses = self.ddp_model(chunk, drawn)
                    # gradients are averaged over ranks, and the sum is wanted
                    (losses["total"] * (share * self.world.size)).backward()
                if not last:
                    self.runtime.keep_gradients(self.model)
                for name, loss in losses.items():
                    totals[name] = totals.get(name, torch.zeros_like(loss)) + loss.detach() * share
        return totals

    def choose_micro_batches(self, batch: Any) -> int:
        """Find, by trying, the fewest micro-batches in which such a batch fits; set and return the number."""
        images = batch.images.to(self.runtime.device)
        draws = self._draws(batch._replace(images=images))
        forward_backward = partial(self._forward_backward, images, draws)
        self.model.train()
        attempt = partial(fits_in_memory, self.model, self.optimizer, forward_backward)
        self.micro_batches = fewest_micro_batches(attempt, len(images), across_batch(self.model))
        return self.micro_batches

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
        stops, due = self.world.any(stop.requested, due) if synchronises else (False, False)
        if end_of_epoch or due or stops:
            kept = self._kept_name()
            self._save(*([kept] if kept else []), "last")
        if stops:
            raise saved_at(self.global_step, self.schedule.steps)

    def _kept_name(self) -> str | None:
        """Name of the checkpoint to keep at this step: "epoch-0002"; None in mid-epoch, or if it is not kept."""
        (epoch, steps_into_epoch), every = self.schedule.place(self.global_step), self.schedule.keep_every_epochs
        return f"epoch-{epoch:04d}" if every and steps_into_epoch == 0 and epoch % every == 0 else None

    def _log(self, end_of_epoch: bool, console: Console) -> None:
        line = self.log.line(self.global_step)
        self._refuse_non_finite(line["loss/total"])
        if end_of_epoch:
            line |= self._run_hooks(self.schedule.place(self.global_step)[0])
        self.log.write(line, console)

    def _run_hooks(self, epoch: int) -> dict[str, float]:
        self.ledger.pause()
        results = {name: value for hook in self.hooks for name, value in hook(epoch).items()}
        self.world.wait()
        self.ledger.resume()
        self.log.window = Window()
        return results

    def _refuse_non_finite(self, loss: float) -> None:
        first = self.guard.first()
        if first is not None or not math.isfinite(loss):
            what = "the gradient is not finite" if math.isfinite(loss) else f"the loss is {loss}"
            raise UserError(
                f"{what} at step {first or self.global_step}: {CURE}; "
                f"the last good checkpoint is in {self.run.path / 'checkpoints' / 'last'}"
            )

    def _save(self, *names: str) -> None:
        """Save under these names, in this order: where "last" is of the end of an epoch, the kept one is there."""
        if self.saved_step == self.global_step and names == ("last",):
            return
        state = self.state()
        self._refuse_non_finite(state["window"]["losses"].get("total", 0.0))
        self.saver.save(names, self.model, self.optimizer, state)
        self.saved = time.monotonic()
        self.saved_step = self.global_step if "last" in names else self.saved_step

    def state(self) -> dict[str, Any]:
        """A checkpoint's state beside weights and optimizer: {"step", "epoch", "ledger", "window", ...}. Collective."""
        self.ledger.meet(self.world)
        position = {
            "step": self.global_step,
            "epoch": self.schedule.epoch_at(self.global_step),
            **self.schedule.marks(), "files": self.run.digests(),
        }  # fmt: skip
        return {**position, **self.notes, "ledger": self.ledger.state(), "window": self.log.window.state(self.world)}


__all__ = ["Batches", "Drawer", "Draws", "Hook", "Trainer"]
