"""A part of `make bench-gpu`: the step fed from JPEGs on the disk, beside the step on what lies on the device."""

import io
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu_steps import Case, Rows, Session, Step, ours
from remask.build.training import build_loader
from remask.images.decoding import decode
from remask.images.sources.opening import open_source
from remask.images.transforms import RandomCropFlip
from remask.seeds import generator


def loader(session: Session, case: Case, data: str | None) -> Rows:
    """The same step fed from JPEGs on the disk, over the step on pictures that lie on the device."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    step = ours(session, case, session.batch)
    for _ in range(3):
        step()
    synthetic = statistics.median(session.seconds(step) for _ in range(session.steps))
    with tempfile.TemporaryDirectory() as folder:
        source = open_source(data or jpegs(Path(folder), session))
        settings = {"optim.batch_size": session.batch, "data.reduced": True}
        batches: Any = build_loader(session.recipe(case, **settings), source, step.runtime, step.model)  # type: ignore[arg-type]
        took = fed(session, step, batches, 2 * session.steps)
    name = f"{case.what}: images/s from JPEGs on {cores} cores, over pictures on the device"
    yield {"name": name, "ratio": synthetic / took, "bar": 0.95, "unit": "x"}


def fed(session: Session, step: Step, batches: Any, count: int) -> float:
    """Seconds a step, after a quarter of them for the loader to fill its queues."""
    warm, done, epoch, began = max(1, count // 4), 0, 0, 0.0
    while True:
        for batch in batches.epoch(epoch):
            step(batch.images.to(session.device, non_blocking=True))
            done += 1
            if done == warm:
                session.synchronize()
                began = time.perf_counter()
            if done == warm + count:
                session.synchronize()
                return (time.perf_counter() - began) / count
        epoch += 1


def jpegs(folder: Path, session: Session) -> str:
    """A folder of JPEGs of 500×375, windows of scikit-image's photographs: 200 files, each there many times."""
    from PIL import Image

    photos, window = open_source("photos"), RandomCropFlip((375, 500), scale=(0.3, 1.0))
    different, copies = (3, 2) if session.tiny else (200, 40)
    for i in range(different):
        picture = window(decode(photos.read(i % len(photos))), generator(0, i)).permute(1, 2, 0).contiguous().numpy()
        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, "JPEG", quality=90)
        for copy in range(copies):
            (folder / f"{copy:02d}-{i:03d}.jpg").write_bytes(stream.getvalue())
    return str(folder)
