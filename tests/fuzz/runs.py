"""The small files of a run's folder: their seeds, their changes, and what opens a run of which one is changed."""

import contextlib
import functools
import hashlib
import io
import json
import random
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from remask.errors import UserError
from tests.fuzz import mutate

FILES = {
    "manifest": "checkpoints/last/manifest.json", "state": "checkpoints/last/state.json", "status": "status.json",
    "settings": "settings.json", "task": "task.json", "run": "recipe.toml", "env": "env.json",
}  # fmt: skip
"""Target -> the file that is changed."""
NAMES = ("../x", "/dev/zero", "a\0", "é" * 300, "", ".", "\udc80", "state.json")
"""Names of files in a manifest."""


def seeds() -> dict[str, list[bytes]]:
    """What a run's small files are like, and the checkpoint beside them."""
    import torch

    from remask.commands.saved_progress import MARK

    stream = io.BytesIO()
    torch.save({"key": "{}", "reached": {"epoch": 1, "weights": torch.zeros(2)}}, stream)
    content = stream.getvalue()
    status = {"state": "trained", "step": 3, "resume_command": "remask resume x", "skipped": [1, 2], "error": "x"}
    settings = [
        {"step": 1, "epoch": 0.5, "time": "now", "set": {"optim.epochs": 3, "data.image_size": [32, 32]}},
        {"step": 2, "epoch": 0.7, "time": "now", "set": {"optim.max_skipped": 5, "optim.base_lr": 1e-3}},
    ]
    task = {"classes": ["a", "b"], "range": [0, 255], "pictures": [3, 2], "held_out": None, "metric": "accuracy"}
    digest = {"bytes": 5, "sha256": hashlib.sha256(b"hello").hexdigest()}
    state = {
        "step": 3,
        "epoch": 1.0,
        "ledger": {"images": 5},
        "files": {"recipe.toml": digest, "metrics.jsonl": digest},
    }
    return {
        "manifest": [(_template(False) / FILES["manifest"]).read_bytes()],
        "state": [json.dumps({"step": 3, "epoch": 1, "ledger": {"images": 5}}).encode(), json.dumps(state).encode()],
        "status": [json.dumps(status).encode()],
        "settings": [json.dumps({"history": settings}).encode()],
        "task": [json.dumps(task).encode()],
        "env": [json.dumps({"format": 2, "remask": "1.0", "cpu": "x"}).encode()],
        "run": [_recipe(task).encode() for task in (False, True)],
        "partial": [content, MARK + hashlib.sha256(content).hexdigest().encode() + b"\n" + content],
    }  # fmt: skip


def _recipe(task: bool) -> str:
    from remask.recipe import load_recipe
    from remask.recipe.downstream import TASKS
    from remask.recipe.load import load
    from remask.recipe.naming import FOLDER
    from remask.recipe.write import dump

    if not task:
        return dump(load_recipe("mae-vit-b", environment={}))
    return dump(load(TASKS["finetune"], FOLDER / "finetune", "vit-b", environment={}))


@functools.cache
def _template(task: bool) -> Path:
    """The folder of a run with one checkpoint, made once in each process."""
    import torch

    from remask.training import checkpoint as checkpoints
    from remask.training.run_folder import RunFolder

    folder = Path(tempfile.mkdtemp(prefix="fuzz-run-"))
    run = RunFolder(folder)
    (folder / "recipe.toml").write_text(_recipe(task))
    run.write("env.json", {"format": 2})
    run.write("status.json", {"state": "trained", "step": 3})
    if task:
        run.write("task.json", {"classes": ["a", "b"]})
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    (folder / "checkpoints").mkdir()
    model = torch.nn.Linear(2, 1, bias=False)
    state = {"step": 3, "epoch": 1.0, "files": run.digests()}
    for name in ("epoch-1", "last"):
        checkpoints.save(run, name, model, torch.optim.AdamW(model.parameters()), state)
    return folder


def reader(name: str) -> Callable[[bytes, Path], None]:
    """A run of which one file is changed: opened, verified, and asked where it may go on."""

    def read(data: bytes, folder: Path) -> None:
        from remask.commands.verifying import verify
        from remask.runs.opening import open_run, open_task
        from remask.training.checkpoint import newest_kept, position, starting_point
        from remask.training.run_folder import RunFolder, is_trained, refuse_existing

        path = folder / "run"
        shutil.copytree(_template(name == "task" or b'task = "finetune"' in data), path)
        (path / FILES[name]).write_bytes(data)
        run = RunFolder(path)
        taken = 0
        steps: tuple[Callable[[], object], ...] = (
            lambda: open_run(path), lambda: open_task(path), lambda: verify(path, say=len),
            lambda: starting_point(run), lambda: starting_point(run, "last"), lambda: position(run),
            lambda: newest_kept(run),
        )  # fmt: skip
        for step in steps:
            with contextlib.suppress(UserError), contextlib.redirect_stderr(io.StringIO()):
                step()
                taken += 1
        with contextlib.suppress(UserError):  # a run that is there is refused
            refuse_existing(path)
        is_trained(run)
        if not taken:
            raise UserError("refused")

    return read


def manifest(data: bytes, draw: random.Random, seeds: Sequence[bytes]) -> bytes:
    """A manifest whose document is mutated, at times with other names in it; in most its own digest is made right."""
    if draw.random() < 0.2:
        return mutate.mutate_json(data, draw, seeds)
    document = mutate.mutated_document(json.loads(data), draw)
    if not isinstance(document, dict) or draw.random() > mutate.REPAIRED:
        return json.dumps(document).encode()
    files = document.get("files")
    if isinstance(files, dict) and files and draw.random() < 0.3:
        files[draw.choice(NAMES)] = files.pop(draw.choice(sorted(files)))
    if isinstance(files, dict) and draw.random() < 0.2:
        files[draw.choice(NAMES)] = {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    document["sha256"] = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    return json.dumps(document).encode()


def partial(data: bytes, draw: random.Random, seeds: Sequence[bytes]) -> bytes:
    """What a long evaluation stored, with its digest made right in most."""
    from remask.commands.saved_progress import MARK

    line, _, rest = data.partition(b"\n") if data.startswith(MARK) else (b"", b"", data)
    changed = mutate.weights(rest, draw, [rest])
    if not line:
        return changed
    digest = hashlib.sha256(changed).hexdigest().encode() if draw.random() < mutate.REPAIRED else draw.randbytes(8)
    return MARK + digest + b"\n" + changed


__all__ = ["FILES", "manifest", "partial", "reader", "seeds"]
