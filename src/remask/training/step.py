"""One optimizer step: draw, forward, backward, check, clip, update. It knows nothing of masked image modeling.

The random draws of a step are a function of (seed, step). All ranks draw the same for the global batch and each takes
its rows, so that several processes compute the same as one.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from remask.errors import UserError
from remask.seeds import generator, seeded
from remask.training.finite import FiniteGuard, RunningMeans, poisoned, update
from remask.training.global_batch import micro_batch
from remask.training.interfaces import Drawer, Draws
from remask.training.oom import LESS, across_batch, fewest_micro_batches, fits_in_memory, oom_retry
from remask.training.optim import Schedule, clipped, set_lr
from remask.training.run_log import GRAD_NORM
from remask.training.runtime import Runtime
from remask.training.sharding import exchanging


class Stepper:
    """Takes the steps of a training, one after the other: `step` is the next, `global_step` counts those done.

    model               model(images, draws) -> {"total": loss, name: loss}; its before_step(progress) and
                        after_step(progress, taken), if it has them, precede and follow every step; `taken`, [] on the
                        device, is 0 where the update was left out, and nothing that is learned may then change. The
                        draws come from model.draw(images, generator), with several processes
                        model.draw(images, generator, rows, batch), where the images are this rank's `rows` of `batch`;
                        unless `draw` is given. They get the images' numbers by of_images(index), if they have it
    ddp_model           the model wrapped for several processes (DDP, FSDP), which is then called for losses
    global_batch_size   images of a step over all ranks, set where each rank's batches are its share
    A step whose loss or gradient is not finite is skipped: its pictures, draws and place in the schedule are used up,
    and weights, moments, running means and what follows the weights stay. From `schedule.max_skipped` such steps in a
    row on all are skipped. Raises UserError for micro-batches of a model whose loss is `across_batch`.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        runtime: Runtime,
        *,
        seed: int = 0,
        draw: Drawer | None = None,
        ddp_model: nn.Module | None = None,
        global_batch_size: int | None = None,
    ) -> None:
        if schedule.accumulate > 1 and across_batch(model):
            raise UserError(
                f"{schedule.accumulate} micro-batches would cut the batch, and this loss compares its pictures: {LESS}"
            )
        self.model, self.optimizer, self.schedule, self.runtime = model, optimizer, schedule, runtime
        self.ddp_model, self.world, self.global_batch_size = ddp_model or model, runtime.world, global_batch_size
        self.guard = FiniteGuard(schedule.max_skipped, self.world.alone)
        self.seed, self._draw = seed, draw
        self.global_step, self.micro_batches = 0, schedule.accumulate

    def step(self, batch: Any) -> dict[str, Tensor]:
        """The next step. Returns this rank's share of the losses and of the gradient norm, still on the device.

        They are 0 where the step was skipped.
        """
        self.model.train()
        if before_step := getattr(self.model, "before_step", None):
            before_step(self.schedule.progress_at(self.global_step))
        images = batch.images.to(self.runtime.device, non_blocking=True)
        self._refuse_unnormalised(images)
        draws, means = self._draws(batch._replace(images=images)), RunningMeans(self.model)

        forward_backward = partial(self._forward_backward, images, draws)
        if self.world.alone:
            losses, self.micro_batches = oom_retry(self.model, forward_backward, self.micro_batches, len(images))
        else:  # one rank cannot do again what the others have already reduced
            losses = forward_backward(self.micro_batches)

        norm = clipped(self.model, self.schedule.clip)
        skipped = self.guard.check(self.global_step + 1, losses["total"], norm)
        means.restore(skipped)
        set_lr(self.optimizer, partial(self.schedule.lr_at, self.global_step))
        update(self.optimizer, skipped)
        self.optimizer.zero_grad(set_to_none=True)
        if after_step := getattr(self.model, "after_step", None):
            after_step(self.schedule.progress_at(self.global_step + 1), (~skipped).float())
        losses[GRAD_NORM] = norm / self.world.size
        return {name: torch.where(skipped, 0.0, loss) for name, loss in losses.items()}

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
        with seeded(self.seed, "step", self.global_step):
            chunks = zip(images.tensor_split(micro_batches), draws.split(micro_batches), strict=True)
            for i, (chunk, drawn) in enumerate(chunks):
                last = i == micro_batches - 1
                share = len(chunk) / (self.global_batch_size or len(images))
                rows = micro_batch(self.world, self.global_batch_size or len(images), micro_batches, i)
                with rows, exchanging(self.ddp_model, now=last):
                    with self.runtime.autocast():
                        losses = self.ddp_model(chunk, drawn)
                    # gradients are averaged over ranks, and the sum is wanted
                    losses["total"].backward(poisoned(losses["total"], share * self.world.size))
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


__all__ = ["Stepper"]
