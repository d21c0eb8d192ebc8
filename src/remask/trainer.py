"""The loop: losses → backward → step → log. It knows nothing of masked image modeling.

Whatever is random in a step is a function of (seed, step), and whatever the loader yields is one of (seed, epoch,
position), so a run that was killed continues from its last checkpoint bit by bit.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Generator, Tensor, nn

from remask.checkpoint import RunFolder, find, restore, save
from remask.console import Console
from remask.fitting import attempted, fewest, fitted
from remask.ledger import Ledger
from remask.optim import Schedule, set_lr
from remask.runtime import Runtime, StopRequest, generator, seeded
from remask.types import UserError


class Draw(Protocol):
    """What is random in a step, drawn once for the whole batch."""

    def split(self, parts: int) -> Sequence[Any]: ...


class Trainable(Protocol):
    """A module that draws what is random in a step and returns named losses, "total" among them.

    Where losses need more of a batch than its images, the trainer is given another `draw`.
    """

    def draw(self, images: Tensor, generator: Generator) -> Draw: ...

    def __call__(self, images: Tensor, draw: Any) -> dict[str, Tensor]: ...


Drawer = Callable[[Any, Generator], Draw]
"""(batch, generator) -> what is random in a step, and the labels where there are any."""


class Batches(Protocol):
    """Batches of an epoch from any position on; `len` is batches per epoch."""

    def __len__(self) -> int: ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]: ...


Hook = Callable[[int], Mapping[str, float]]
"""Called with the number of epochs done; what it returns is logged. Its time is not booked as training."""


class Trainer:
    """Trains `model` in `run`. `train` starts at the step that `resume` found, or at 0."""

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
    ) -> None:
        self.model, self.batches, self.optimizer, self.schedule = model, batches, optimizer, schedule
        self.runtime, self.run, self.ledger, self.seed, self.hooks = runtime, run, ledger, seed, hooks
        self.tensorboard, self.step, self._draw = tensorboard, 0, draw or self._of_images
        self.saved, self.parts = time.monotonic(), schedule.accumulate
        self.window = Window()

    def resume(self) -> None:
        """Continue from the last checkpoint: weights, optimizer, position, cost so far."""
        self.place(restore(find(self.run), self.model, self.optimizer))
        self.run.rewind(self.step)

    def place(self, state: Mapping[str, Any]) -> None:
        """Stand where `state` says."""
        self.step = state["step"]
        self.ledger.load(state["ledger"])
        self.window.load(state["window"])

    def train(self, console: Console) -> None:
        """Run to the end, or `until_epoch`. Asked to stop (Ctrl-C, SIGTERM), it saves and raises KeyboardInterrupt."""
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
                    self.ledger.add(len(batch.images), waited)
                    self._after(losses, waited, len(batch.images), console, writer)
                    if stop.asked:
                        self._save()
                        raise KeyboardInterrupt
            self._save()
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
        per_epoch = self.schedule.steps_per_epoch
        while self.step < self.schedule.last_step:
            batches = self.batches.epoch(self.step // per_epoch, self.step % per_epoch)
            for _ in range(self.step % per_epoch, per_epoch):
                began = time.perf_counter()
                batch = next(batches)
                yield self.step, batch, time.perf_counter() - began
                if self.step >= self.schedule.last_step:
                    return

    def _of_images(self, batch: Any, generator: Generator) -> Draw:
        return self.model.draw(batch.images, generator)  # type: ignore[operator]

    def _learn(self, step: int, batch: Any) -> dict[str, Tensor]:
        """One optimizer step, again in more slices where memory runs out. Returns losses still on the device."""
        slices = self._slices(step, batch)
        totals, self.parts = fitted(self.model, slices, self.parts, len(batch.images))
        set_lr(self.optimizer, self.schedule.lr_at(step))
        if self.schedule.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.schedule.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return totals

    def _slices(self, step: int, batch: Any) -> Callable[[int], dict[str, Tensor]]:
        """Forward and backward of a batch in a number of slices, for the gradients and the losses that it returns."""
        self.model.train()
        images = batch.images.to(self.runtime.device, non_blocking=True)
        draw = self._draw(batch._replace(images=images), generator(self.seed, "draw", step))

        def through(parts: int) -> dict[str, Tensor]:
            totals = dict[str, Tensor]()
            with seeded(self.seed, "step", step):
                for chunk, share in zip(images.tensor_split(parts), draw.split(parts), strict=True):
                    with self.runtime.autocast():
                        losses = self.model(chunk, share)
                    weight = len(chunk) / len(images)
                    (losses["total"] * weight).backward()
                    for name, loss in losses.items():
                        totals[name] = totals.get(name, torch.zeros_like(loss)) + loss.detach() * weight
            return totals

        return through

    def fit(self, batch: Any) -> int:
        """Find the fewest parts in which such a batch fits, by trying, and train with them. Changes nothing else."""
        slices = self._slices(self.step, batch)
        self.parts = fewest(partial(attempted, self.model, self.optimizer, slices), len(batch.images))
        return self.parts

    def _after(self, losses: dict[str, Tensor], waited: float, images: int, console: Console, writer: Any) -> None:
        """Log where a window of steps or an epoch ends, save there or when it is time."""
        self.window.add(losses, waited, images)
        end_of_epoch = self.step % self.schedule.steps_per_epoch == 0
        if self.step % self.schedule.log_every == 0 or end_of_epoch or self.step == self.schedule.steps:
            self._log(end_of_epoch, console, writer)
        if end_of_epoch or time.monotonic() - self.saved > 60 * self.schedule.save_minutes:
            self._save()
        epoch, every = self.step // self.schedule.steps_per_epoch, self.schedule.keep_every_epochs
        if end_of_epoch and every and epoch % every == 0:
            self._save(f"epoch-{epoch:04d}")

    def _log(self, end_of_epoch: bool, console: Console, writer: Any) -> None:
        line = self._line()
        self._check(line["loss/total"])
        if end_of_epoch:
            line |= self._hooks(self.step // self.schedule.steps_per_epoch)
        self.run.log(line)
        self._report(line, console, writer)

    def _line(self) -> dict[str, Any]:
        """The metrics of a window, a line of metrics.jsonl."""
        mean, images_per_s, wait = self.window.close()
        return {
            "step": self.step,
            "epoch": round(self.step / self.schedule.steps_per_epoch, 4),
            **{f"loss/{name}": value for name, value in mean.items()},
            "lr": self.schedule.lr_at(self.step - 1),
            "images_per_s": round(images_per_s, 2),
            "views_per_s": round(images_per_s * self.ledger.views_per_image, 2),
            "data_wait": round(wait, 4),
        }

    def _hooks(self, epoch: int) -> dict[str, float]:
        self.ledger.pause()
        results = {name: value for hook in self.hooks for name, value in hook(epoch).items()}
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
            f"eta {_clock(left)} | {hours} | ETE {cost['ete']:.2f}{extra}",
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
        self._check(float(self.window.losses.get("total", 0.0)))
        save(self.run, name, self.model, self.optimizer, self.state())
        self.saved = time.monotonic()

    def state(self) -> dict[str, Any]:
        """Where the run stands, beside weights and optimizer."""
        state = {"step": self.step, "epoch": self.step / self.schedule.steps_per_epoch}
        return {**state, "ledger": self.ledger.state(), "window": self.window.state()}

    def _status(self, state: str, why: str = "") -> None:
        status = {"state": state, "step": self.step, "steps": self.schedule.steps}
        status |= {"resume_command": f"remask resume {self.run.path}", "updated": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        self.run.write("status.json", status | ({"error": why} if why else {}))

    def _tensorboard(self) -> Any:
        if not self.tensorboard:
            return None
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.run.path / "tensorboard"), purge_step=self.step)


class Window:
    """Means over the steps since the last log line. Losses stay on the device until the window closes."""

    def __init__(self) -> None:
        self.losses: dict[str, Tensor | float] = {}
        self.steps, self.images, self.waited, self.began = 0, 0, 0.0, time.perf_counter()

    def add(self, losses: Mapping[str, Tensor], waited: float, images: int) -> None:
        for name, loss in losses.items():
            self.losses[name] = self.losses.get(name, 0.0) + loss.double()
        self.steps, self.images, self.waited = self.steps + 1, self.images + images, self.waited + waited

    def close(self) -> tuple[dict[str, float], float, float]:
        """(mean losses, images per second, share of the time spent waiting for data); the window starts anew."""
        seconds = time.perf_counter() - self.began
        mean = {name: float(loss / self.steps) for name, loss in self.losses.items()}
        result = mean, self.images / seconds, min(self.waited / seconds, 1.0)
        self.__init__()  # type: ignore[misc]
        return result

    def state(self) -> dict[str, Any]:
        return {"losses": {name: float(loss) for name, loss in self.losses.items()}, "steps": self.steps}

    def load(self, state: Mapping[str, Any]) -> None:
        self.losses, self.steps = dict(state["losses"]), state["steps"]


def _clock(hours: float) -> str:
    minutes, seconds = divmod(round(hours * 3600), 60)
    return f"{minutes // 60}h{minutes % 60:02d}m" if minutes >= 60 else f"{minutes}m{seconds:02d}s"


__all__ = ["Trainer"]
