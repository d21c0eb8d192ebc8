"""What is disturbed: a small pre-training and a fine-tuning, how each is begun and gone on with, what must be equal.

A run that was disturbed is compared with one that was not: every line of metrics.jsonl without its times, weights and
moments of every checkpoint, images, views and ETE, and which images each step has had.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from remask.files.manifest import damage, sha256
from tests.faults.launching import Command, Ended, Prepare

STEPS, PER_EPOCH = 24, 4
NETWORK = [
    "backbone.width=32", "backbone.depth=2", "backbone.heads=2", "method.decoder_width=32", "method.decoder_heads=2",
    "method.decoder_depth=1", "jd.width=32",
]  # fmt: skip
COMMON = ["runtime.threads=1", "runtime.device=cpu", "runtime.tensorboard=false", "optim.precision=fp32"]
TIMES = ("images_per_s", "views_per_s", "data_wait")


def settings(*values: str) -> list[str]:
    """Values of a recipe as options of the command line."""
    return [word for value in values for word in ("--set", value)]


PRETRAIN = [
    "pretrain", "--recipe", "dmjd-vit-micro-cifar", "--data", "digits:train", "--limit", "64", "--quiet",
    *settings(
        *NETWORK, *COMMON, f"optim.epochs={STEPS // PER_EPOCH}", "optim.batch_size=16", "optim.warmup_epochs=1",
        "runtime.log_every=2", "runtime.keep_every_epochs=3",
    ),
]  # fmt: skip
FINETUNE = [
    "--data", "digits:train", "--val", "digits:val", "--limit", "64", "--quiet",
    *settings("optim.epochs=3", "optim.batch_size=16", "optim.warmup_epochs=1", "runtime.log_every=2", *COMMON[:3]),
]  # fmt: skip


class Subject(NamedTuple):
    """A command that trains. begin: its words before --out; lasting: files of a run that is finished."""

    name: str
    begin: Sequence[str]
    lasting: Sequence[str]

    def more(self, *values: str) -> "Subject":
        """The same with other values of the recipe."""
        return self._replace(begin=[*self.begin, *settings(*values)])


def pretraining() -> Subject:
    """Pre-training, of 24 steps with seven saves, export, figure and report."""
    return Subject("pretrain", PRETRAIN, ("export/manifest.json", "pictures/reconstruction.png", "report.html"))


def finetuning(run: Path) -> Subject:
    """Fine-tuning of a run."""
    return Subject("finetune", ["finetune", str(run), *FINETUNE], ("eval/finetune.json", "report.html"))


def noting(shown: Path, prepare: Prepare | None = None) -> Prepare:
    """What is prepared, and then: every step appends its number and its images to a file."""

    def install() -> object:
        from remask.training.trainer import Trainer

        descriptor, write = os.open(shown, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), os.write
        step, place = Trainer.step, Trainer.place

        def noted(self: Any, batch: Any) -> Any:
            done = step(self, batch)
            index = getattr(batch, "index", None)
            line = [self.global_step, [] if index is None else index.tolist()]
            write(descriptor, (json.dumps(line) + "\n").encode())
            return done

        def placed(self: Any, state: Any) -> None:
            place(self, state)
            write(descriptor, (json.dumps([self.global_step, None]) + "\n").encode())

        Trainer.step, Trainer.place = noted, placed  # type: ignore[method-assign]
        return prepare() if prepare else None

    return install


def images_of(shown: Path) -> dict[int, list[int]]:
    """Images of each step as the last process that did it had them; what a resume discarded is not among them."""
    steps = dict[int, list[int]]()
    for line in shown.read_text().splitlines() if shown.exists() else ():
        step, images = json.loads(line)
        for later in [number for number in steps if number >= step]:
            del steps[later]
        if images is not None:
            steps[step] = images
    return steps


class Outcome(NamedTuple):
    """A run beside the undisturbed one."""

    lost: int = 0
    repeated: int = 0
    curve: int = 0
    other: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        return self == Outcome()


class Measured(NamedTuple):
    """What is compared of a run."""

    lines: list[dict[str, Any]]
    checkpoints: dict[str, str]
    cost: dict[str, Any]
    images: dict[int, list[int]]


def measured(run: Path, shown: Path) -> Measured:
    """Read it."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    cost = json.loads((run / "cost.json").read_text())
    digests = {
        f"{folder.name}/{name}": sha256(folder / name)
        for folder in (run / "checkpoints").glob("[!.]*")
        for name in ("model.safetensors", "optimizer.pt")
    }
    digests |= {f"export/{path.name}": sha256(path) for path in (run / "export").glob("*.safetensors")}
    return Measured(
        [{key: value for key, value in line.items() if key not in TIMES} for line in lines],
        digests,
        {key: value for key, value in cost.items() if key in ("images", "views", "ete")},
        images_of(shown),
    )


def compared(subject: Subject, run: Path, shown: Path, reference: Measured) -> Outcome:
    """How a finished run differs from the undisturbed one."""
    wrong = [name for name in subject.lasting if not (run / name).is_file()]
    try:
        found = measured(run, shown)
        state = json.loads((run / "status.json").read_text())["state"]
    except (OSError, ValueError, KeyError) as error:
        return Outcome(curve=len(reference.lines), other=(f"unreadable: {error}",))
    wrong += [f"state {state}"] if state != "finished" else []
    wrong += [f"{name} differs" for name in reference.checkpoints if found.checkpoints.get(name) is None]
    wrong += [name for name, digest in found.checkpoints.items() if digest != reference.checkpoints.get(name)]
    wrong += ["cost"] if found.cost != reference.cost else []
    wrong += [str(folder) for folder in (run / "checkpoints/last", run / "export") if damage(folder)]
    wrong += [path.name for path in run.rglob("*") if path.suffix in (".part", ".old")]
    lost = repeated = 0
    for epoch in {step // PER_EPOCH for step in reference.images}:
        before, now = (
            Counter(i for step, images in of.items() if step // PER_EPOCH == epoch for i in images)
            for of in (reference.images, found.images)
        )
        lost, repeated = lost + (before - now).total(), repeated + (now - before).total()
    if not lost + repeated and found.images != reference.images:
        wrong.append("order of the images")
    pairs = zip(found.lines, reference.lines, strict=False)
    curve = sum(one != other for one, other in pairs) + abs(len(found.lines) - len(reference.lines))
    return Outcome(lost, repeated, curve, tuple(wrong))


LINE = re.compile(r"^remask: ")


def well_ended(ended: Ended, *codes: int) -> str:
    """What is wrong with how a command ended, "" if nothing: one of these codes, and one line of ours if any."""
    if ended.code is None:
        return "it hung"
    if ended.code not in codes:
        return f"code {ended.code}: {ended.errors.strip()[-300:]}"
    lines = [line for line in ended.lines if line.strip()]
    strange = [line for line in lines if not LINE.match(line)]
    if ended.code not in (0, -9) and (strange or len(lines) != 1):
        return f"{len(lines)} lines: {ended.errors.strip()[-300:]}"
    return f"said: {ended.errors.strip()[-300:]}" if "do report it" in ended.errors else ""


def beside(run: Path, name: str) -> Path:
    """A file of the harness beside a run, or beside the disk on which the run lies alone."""
    return (run.parent if run.parent.is_mount() else run).with_name(name)


def begun(subject: Subject, run: Path, prepare: Prepare | None = None) -> Command:
    """Start the training in a new folder."""
    return Command([*subject.begin, "--out", run], beside(run, "said"), noting(beside(run, "shown"), prepare))


def gone_on(subject: Subject, run: Path, prepare: Prepare | None = None) -> Command:
    """Go on with it as a person would: `resume` where there is a run, else the command again."""
    if not (run / "recipe.toml").is_file():
        return begun(subject, run, prepare)
    words = ["resume", run, "--quiet"]
    return Command(words, beside(run, "said again"), noting(beside(run, "shown"), prepare))


def recovered(subject: Subject, run: Path, reference: Measured) -> tuple[str, Outcome]:
    """(what is wrong, "" if nothing; the comparison) after a run was gone on with to its end."""
    ended = gone_on(subject, run).wait()
    done = ended.code == 2 and "is finished" in ended.errors
    fault = "" if done else well_ended(ended, 0)
    outcome = compared(subject, run, beside(run, "shown"), reference)
    return fault, outcome


__all__ = [
    "PER_EPOCH", "PRETRAIN", "STEPS", "Measured", "Outcome", "Subject", "begun", "beside", "compared", "finetuning",
    "gone_on", "images_of", "measured", "noting", "pretraining", "recovered", "settings", "well_ended",
]  # fmt: skip
