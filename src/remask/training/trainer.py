"""The loop: losses → backward → step → log. It knows nothing of masked image modeling.

Whatever is random in a step is a function of (seed, step), and whatever the loader yields is one of (seed, epoch,
position), so a run that was killed continues from its last checkpoint bit by bit. Many processes draw alike, for the
whole batch, and each takes its part, so that they do what one would do.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Generator, Tensor, nn

from remask.errors import UserError
from remask.files.escaping import quoted
from remask.seeds import generator, seeded
from remask.training.checkpoint import restore, save
from remask.training.cost import Ledger, Window
from remask.training.oom import attempted, fewest, fitted
from remask.training.optim import Schedule, set_lr
from remask.training.progress import Console, clock
from remask.training.run_folder import RunFolder, find
from remask.training.runtime import Runtime, StopRequest
from remask.training.sharding import exchanging


class Draw(Protocol):
    """What is random in a step, drawn once for the whole batch."""

    def split(self, parts: int) -> Sequence[Any]: ...


Drawer = Callable[[Any, Generator], Draw]
"""(batch, generator) -> what is random in a step, and the labels where there are any."""


class Batches(Protocol):
    """Batches of an epoch from any position on; `len` is batches per epoch."""

    def __len__(self) -> int: ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]: ...


Hook = Callable[[int], Mapping[str, float]]
"""Called with the number of epochs done, in every process; what it returns is logged. Its time is no training."""


class Trainer:
    """Trains `model` in `run`. `train` starts at the step that `resume` found, or at 0.

    model     (images, what was drawn) -> named losses, "total" among them; its `draw` draws, unless another is given
              (images, generator, part of them): a part has what it has when all is drawn
    learner   what is called for losses where it is not the model itself: the model, exchanging gradients
    whole     images of a batch over all processes, where `batches` gives this one a part of each
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
        learner: nn.Module | None = None,
        whole: int | None = None,
    ) -> None:
        self.model, self.batches, self.optimizer, self.schedule = model, batches, optimizer, schedule
        self.runtime, self.run, self.ledger, self.seed, self.hooks = runtime, run, ledger, seed, hooks
        self.tensorboard, self.step, self._draw = tensorboard, 0, draw or self._of_images
        self.learner, self.world, self.whole = learner or model, runtime.world, whole
        self.saved, self.parts, self.window = time.monotonic(), schedule.accumulate, Window()
        self.notes: dict[str, Any] = {}  # they go into the state.json of every checkpoint

    def resume(self) -> None:
        """Continue from the last checkpoint: weights, optimizer, position, cost so far."""
        self.place(restore(find(self.run), self.model, self.optimizer))
        self.run.rewind(self.step)
        self.world.wait()  # none saves while another reads

    def place(self, state: Mapping[str, Any]) -> None:
        """Stand where `state` says, in epochs too where these had another number of steps then."""
        self.step, self.schedule = state["step"], self.schedule.going_on(state)
        self.ledger.load(state["ledger"], self.world.main, self.schedule.epochs_unlike(state))
        self.window.load(state["window"], self.world.main)

    def train(self, console: Console, then: Callable[[], object] = lambda: None) -> None:
        """Run to the end, or `until_epoch`, then do `then`. Asked to stop (Ctrl-C): save, KeyboardInterrupt."""
        writer = self._tensorboard()
        if self.step == 0:
            self._save()
        self.ledger.resume()
        self._status("running")
        try:
            with console, StopRequest() as stop:
                for step, batch, waited in self._steps():
                    parts, losses = self.parts, self._learn(step, batch)
                    if parts < self.parts:
                        console.say(f"memory ran out in step {step + 1}: done again, batches now in {self.parts} parts")
                    self.step = step + 1
                    self.ledger.add(self._whole(batch), waited)
                    self.window.add(losses, waited, self._whole(batch))
                    self._after(stop, console, writer)
            self._save()
            then()
            self._status("finished" if self.step >= self.schedule.steps else "running")
        except BaseException as error:
            self._status("interrupted" if isinstance(error, KeyboardInterrupt) else "failed", str(error))
            raise
        finally:
            self.run.write("cost.json", self.ledger.cost(self.runtime.peak_memory_mb()))
            if writer:
                writer.close()

    def _steps(self) -> Iterator[tuple[int, Any, float]]:
        """(step, batch, seconds waited for it) from the current position to the end."""
        while self.step < self.schedule.last_step:
            epoch, start = self.schedule.place(self.step)
            batches = self.batches.epoch(epoch, start)
            for _ in range(start, self.schedule.steps_per_epoch):
                began = time.perf_counter()
                batch = next(batches)
                yield self.step, batch, time.perf_counter() - began
                if self.step >= self.schedule.last_step:
                    return

    def _of_images(self, batch: Any, generator: Generator) -> Draw:
        return self.model.draw(batch.images, generator)  # type: ignore[operator]

    def _whole(self, batch: Any) -> int:
        """Images of the batch, over all processes."""
        return self.whole or len(batch.images)

    def _drawn(self, step: int, batch: Any) -> Draw:
        """What is random in a step, for this process: a part of what is drawn for the whole batch."""
        random = generator(self.seed, "draw", step)
        if self.whole is None:
            return self._draw(batch, random)
        images = batch.images[:1].expand(self.whole, *batch.images.shape[1:])  # a shape, without memory
        return self.model.draw(images, random, self.world.share(self.whole))  # type: ignore[operator]

    def _learn(self, step: int, batch: Any) -> dict[str, Tensor]:
        """One optimizer step, again in more slices where memory runs out. Returns losses still on the device."""
        slices = self._slices(step, batch)
        if self.world.alone:
            totals, self.parts = fitted(self.model, slices, self.parts, len(batch.images))
        else:  # one process cannot do again what the others have exchanged
            totals = slices(self.parts)
        set_lr(self.optimizer, self.schedule.lr_at(step))
        if self.schedule.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.schedule.clip)  # one kernel a list on a GPU, no sync
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return totals

    def _slices(self, step: int, batch: Any) -> Callable[[int], dict[str, Tensor]]:
        """Forward and backward of a batch in a number of slices, for the gradients and the losses that it returns.

        A mean over the whole batch is the sum of each slice's mean times its share, of gradients as of losses.
        """
        self.model.train()
        images = batch.images.to(self.runtime.device, non_blocking=True)
        if backbone := images.is_floating_point() and getattr(self.model, "backbone", None):
            backbone.normalise.look(images)  # a compiled step cannot
        draw, whole = self._drawn(step, batch._replace(images=images)), self._whole(batch)
        rank = [] if self.world.main else [self.world.rank]  # drop path is each process's own

        def through(parts: int) -> dict[str, Tensor]:
            totals = dict[str, Tensor]()
            with seeded(self.seed, "step", step, *rank):
                for i, (chunk, share) in enumerate(zip(images.tensor_split(parts), draw.split(parts), strict=True)):
                    weight = len(chunk) / whole
                    with exchanging(self.learner, now=i == parts - 1):
                        with self.runtime.autocast():
                            losses = self.learner(chunk, share)
                        (losses["total"] * (weight * self.world.size)).backward()  # what is exchanged is averaged
                    if i < parts - 1:
                        self.runtime.keep_gradients(self.model)
                    for name, loss in losses.items():
                        totals[name] = totals.get(name, torch.zeros_like(loss)) + loss.detach() * weight
            return totals

        return through

    def fit(self, batch: Any) -> int:
        """Find the fewest parts in which such a batch fits, by trying, and train with them. Changes nothing else."""
        slices = self._slices(self.step, batch)
        self.parts = fewest(partial(attempted, self.model, self.optimizer, slices), len(batch.images))
        return self.parts

    def _after(self, stop: StopRequest, console: Console, writer: Any) -> None:
        """Log where a window of steps or an epoch ends, save there or when it is time, stop where it is asked for."""
        (epoch, beyond), every = self.schedule.place(self.step), self.schedule.keep_every_epochs
        end_of_epoch = beyond == 0
        logs = self.step % self.schedule.log_every == 0 or end_of_epoch or self.step == self.schedule.steps
        if logs:
            self._log(end_of_epoch, console, writer)
        late = time.monotonic() - self.saved > 60 * self.schedule.save_minutes
        # many processes agree where they meet anyway: a clock or a signal is one's own
        asked, late = self.world.any(stop.asked, late) if logs or self.world.alone else (False, False)
        if end_of_epoch or late:
            self._save()
        if end_of_epoch and every and epoch % every == 0:
            self._save(f"epoch-{epoch:04d}")
        if asked:
            self._save()
            raise KeyboardInterrupt

    def _log(self, end_of_epoch: bool, console: Console, writer: Any) -> None:
        line = self._line()
        self._check(line["loss/total"])
        if end_of_epoch:
            line |= self._hooks(self.schedule.place(self.step)[0])
        self.run.log(line)
        self._report(line, console, writer)

    def _line(self) -> dict[str, Any]:
        """The metrics of a window, a line of metrics.jsonl."""
        self.ledger.meet(self.world)
        mean, images_per_s, wait = self.window.close(self.world)
        return {
            "step": self.step,
            "epoch": round(self.schedule.epoch_at(self.step), 4),
            **{f"loss/{name}": value for name, value in mean.items()},
            "lr": self.schedule.lr_at(self.step - 1),
            "images_per_s": round(images_per_s, 2),
            "views_per_s": round(images_per_s * self.ledger.views_per_image, 2),
            "data_wait": round(wait, 4),
        }

    def _hooks(self, epoch: int) -> dict[str, float]:
        self.ledger.pause()
        results = {name: value for hook in self.hooks for name, value in hook(epoch).items()}
        self.world.wait()
        self.ledger.resume()
        self.window = Window()
        return results

    def _report(self, line: Mapping[str, Any], console: Console, writer: Any) -> None:
        cost = self.ledger.cost(self.runtime.peak_memory_mb())
        self._status("running")
        self.run.write("cost.json", cost)
        left = (self.schedule.steps - self.step) * self.ledger.hours / max(self.step, 1)
        hours = f"gpu-h {cost['gpu_hours']:.3f}" if cost["gpu_hours"] else f"cpu-h {cost['cpu_hours']:.3f}"
        extra = "".join(f" | {name} {value:.1f}" for name, value in line.items() if name.startswith("probe/"))
        console.update(
            self.step,
            f"epoch {line['epoch']:.2f}/{self.schedule.epochs} | loss {line['loss/total']:.4f} | lr {line['lr']:.2e} | "
            f"{line['images_per_s']:.0f} images/s | {line['views_per_s']:.0f} views/s | wait {line['data_wait']:.0%} | "
            f"eta {clock(left)} | {hours} | ETE {cost['ete']:.2f}{extra}",
        )
        if writer:
            for name, value in line.items():
                if name not in ("step", "epoch"):
                    writer.add_scalar(name, value, self.step)

    def _check(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise UserError(
                f"the loss is {loss} at step {self.step}: lower optim.base_lr, set optim.clip or use fp32; "
                f"the last good checkpoint is in {self.run.path / 'checkpoints' / 'last'}"
            )

    def _save(self, name: str = "last") -> None:
        state = self.state()
        self._check(state["window"]["losses"].get("total", 0.0))
        save(self.run, name, self.model, self.optimizer, state)
        self.saved = time.monotonic()

    def state(self) -> dict[str, Any]:
        """Where the run stands, beside weights and optimizer; all processes call it together."""
        self.ledger.meet(self.world)
        state = {"step": self.step, "epoch": self.schedule.epoch_at(self.step), **self.schedule.marks(), **self.notes}
        return {**state, "ledger": self.ledger.state(), "window": self.window.state(self.world)}

    def _status(self, state: str, why: str = "") -> None:
        status = {"state": state, "step": self.step, "steps": self.schedule.steps}
        command, now = f"remask resume {quoted(self.run.path)}", time.strftime("%Y-%m-%dT%H:%M:%S%z")
        status |= {"resume_command": command, "updated": now}
        self.run.write("status.json", status | ({"error": why} if why else {}))

    def _tensorboard(self) -> Any:
        if not self.tensorboard or not self.world.main:
            return None
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.run.path / "tensorboard"), purge_step=self.step)


__all__ = ["Trainer"]
