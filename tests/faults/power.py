"""Power cuts at every operation of a run: what is left leads to the same end, and loses no checkpoint there was."""

import functools
import hashlib
import json
import pickle
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from remask.errors import UserError
from remask.files.manifest import damage, sha256
from remask.training.checkpoint import starting_point, state_of
from remask.training.run_folder import RunFolder, refuse_existing
from tests.faults.crash_states import Operation, Tree, replayed, states
from tests.faults.injecting import Injection, Reference, Result
from tests.faults.recorder import materialise
from tests.faults.subjects import Outcome, recovered


class Recording(NamedTuple):
    """All operations of a run. digests: of the weights in `last` by step; promised: step of the checkpoint that is
    complete before each operation, -1 before the first."""

    operations: list[Operation]
    digests: dict[int, str]
    promised: list[int]
    end: Tree


@functools.cache
def recorded(run: Path) -> Recording:
    """What was recorded of a run."""
    operations = [Operation(*op) for op in pickle.loads(run.with_name("recording").read_bytes())]
    digests, promised, steps = dict[int, str](), [-1], dict[str, int]()
    weights = dict[str, str]()
    last = -1
    for op in operations:
        folder, _, name = op.name.rpartition("/")
        if op.kind == "write" and name == "model.safetensors":
            weights[folder] = hashlib.sha256(op.content).hexdigest()
        if op.kind == "write" and name == "state.json":
            steps[folder] = json.loads(op.content)["step"]
            digests[steps[folder]] = weights[folder]
        if op.kind in ("rename", "exchange") and op.other == "checkpoints/last":
            last = steps[op.name]
        promised.append(last if op[:2] == ("sync", "checkpoints") else promised[-1])
    return Recording(operations, digests, promised, replayed({}, operations, {}))


def power_cut(injection: Injection) -> Result:
    """All states that a power cut may leave of a pre-training, from the first operation to the report."""
    return _of_all(injection, injection.references["pretrain"], ("export/manifest.json", "export/backbone.safetensors"))


def power_cut_of_finetuning(injection: Injection) -> Result:
    """The same of a fine-tuning."""
    return _of_all(injection, injection.references["finetune"], ("eval/finetune.json",))


def power_cut_gone_on_with(injection: Injection) -> Result:
    """One of the states, which is then gone on with to the end."""
    reference = injection.references["pretrain"]
    found = recorded(reference.midway.with_name("recorded") / "run")
    end = injection.number * len(found.operations) // injection.count
    left = [*states({}, found.operations[:end])]
    _, lost, tree = injection.random.choice(left[-200:])
    materialise(tree, injection.run)
    if not tree:
        injection.run.rmdir()
    shutil.copy(reference.midway.with_name("recorded") / "shown", injection.folder / "shown")
    if not (injection.run / "checkpoints/last/state.json").exists():
        (injection.folder / "shown").unlink()
    fault, outcome = recovered(reference.subject, injection.run, reference.measured)
    return injection.result(lost, fault, outcome)


def _of_all(injection: Injection, reference: Reference, lasting: tuple[str, ...]) -> Result:
    found = recorded(reference.midway.with_name("recorded") / "run")
    tried, wrong = 0, list[str]()
    for end, lost, tree in states({}, found.operations):
        if end % injection.count == injection.number:
            tried += 1
            materialise(tree, injection.run)
            if why := _fault(injection.run, found, found.promised[end], (*lasting, *reference.subject.lasting)):
                wrong.append(f"{lost}: {why}")
    result = injection.result(f"{tried} states", "; ".join(wrong[:3]), Outcome())
    return result._replace(injected=tried, survived=tried - len(wrong))


def _fault(folder: Path, found: Recording, promised: int, lasting: tuple[str, ...]) -> str:
    """What is wrong with a state, "" if nothing."""
    run = RunFolder(folder)
    try:
        if not (folder / "recipe.toml").is_file():
            refuse_existing(folder)
            return "" if promised < 0 else f"step {promised} was saved, and the run has no recipe"
        RunFolder.open(folder)
        start = starting_point(run)
        state: dict[str, Any] = state_of(start) if start else {"step": -1}
        step = state["step"]
        if step < promised:
            return f"step {promised} was saved, and it goes on at {step}"
        if start and sha256(start / "model.safetensors") != found.digests[step]:
            return f"other weights at step {step}"
        if run.recovered:
            return run.recovered
        last = max(found.digests)
        wanted = [line for line in _lines(found) if line["step"] <= step]
        if [line for line in run.metrics() if line["step"] <= step] != wanted:
            return f"metrics before step {step}"
        status = run.read_or_empty("status.json").get("state")
        if status in ("trained", "finished") and step < last:
            return f"{status} at step {step} of {last}"
        absent = [name for name in lasting if not _same(folder, name, found.end)] if status == "finished" else []
        kept = [name for name in found.end if name.count("/") == 1 and "/epoch-" in name]
        absent += [name for name in kept if int(name[-4:]) * 4 < step and damage(folder / name) != []]
        return f"missing: {absent}" if absent else ""
    except UserError as error:
        return f"refused: {error}"


def _lines(found: Recording) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (found.end["metrics.jsonl"] or b"").splitlines()]


def _same(folder: Path, name: str, end: Tree) -> bool:
    return (folder / name).is_file() and (folder / name).read_bytes() == end[name]


__all__ = ["power_cut", "power_cut_gone_on_with", "power_cut_of_finetuning"]
