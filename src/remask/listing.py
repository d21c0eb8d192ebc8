"""What remask knows and where it runs: the lists behind `remask recipes`, `show` and `doctor`."""

import json
import platform
import re
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from remask.recipe import Recipe, load_recipe, method_label, recipe_names
from remask.recipe.downstream import TASKS
from remask.recipe.load import load
from remask.recipe.naming import FOLDER


def recipes(as_json: bool = False) -> None:
    """Print every shipped recipe by the table it stands in, then those of downstream tasks; JSON has the former."""
    rows = [_row(load_recipe(name, environment={})) for name in recipe_names()]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    width = max(len(row["name"]) for row in rows)
    tables = sorted({_table(row) for row in rows}, key=lambda table: (table not in TABLES, table))
    for table in tables:
        print(f"\n{table} of DMJD, arXiv 2301.00230" if table in TABLES else f"\n{table}")
        for row in (row for row in rows if _table(row) == table):
            print(f"  {row['name']:<{width}}  {row['method']:<13}  {row['backbone']}, {row['target']}")
            print(f"  {'':<{width}}  expected: {row['expected'] or '-'}")
    for task, schema in TASKS.items():
        print(f"\nremask {task} RUN --recipe NAME")
        for name in recipe_names(FOLDER / task):
            one = load(schema, FOLDER / task, name, environment={})
            print(f"  {name:<{width}}  {one.title}\n  {'':<{width}}  expected: {one.expected or '-'}")
    print("\nremask show NAME prints a recipe's equation; remask pretrain --recipe NAME --data DIR trains it.")


TABLES = ("Table I", "Table II", "Table III", "Table IV", "Table V", "Table VI")


def _table(row: Mapping[str, str]) -> str:
    """The first of DMJD's tables in which a recipe is a row."""
    found = re.search(r"Tables? ([IV]+)\b", row["table"])
    return f"Table {found[1]}" if found else "Not in a table of DMJD"


def _row(recipe: Recipe) -> dict[str, str]:
    target = recipe.method.target
    return {
        "name": recipe.name,
        "title": recipe.title,
        "paper": recipe.paper,
        "table": recipe.table,
        "method": method_label(recipe),
        "backbone": recipe.backbone.name,
        "target": f"{target.kind}-{target.norm}" if target.norm != "none" else target.kind,
        "expected": recipe.expected,
    }


def show(name: str, settings: Sequence[str] = (), as_json: bool = False) -> None:
    """Print a recipe: what it trains, its equation, parameters and GFLOP. No weights are made."""
    recipe = load_recipe(name, settings)

    import torch

    from remask.build import build_method, gflops_per_image, parameters, peak_lr
    from remask.recipe import dump
    from remask.report.equation import equation

    with torch.device("meta"):
        method = build_method(recipe)
    size = {"backbone": parameters(method.backbone.network), "total": parameters(method)}
    facts: dict[str, Any] = {
        "recipe": recipe.model_dump(mode="json"),
        "equation": equation(method, recipe.data.image_size),
        "parameters": size,
        "gflops_forward_per_image": gflops_per_image(recipe),
        "peak_lr": peak_lr(recipe, method),
        "ete": method.masking.views * recipe.optim.epochs,
    }
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    print(f"{recipe.name}: {recipe.title}\n{recipe.paper}")
    print(f"{recipe.table or 'no table'}; expected: {recipe.expected or 'not published'}; cost: {recipe.cost or '-'}\n")
    print(f"{facts['equation']}\n")
    print(f"parameters  {size['backbone']:,} in the backbone, {size['total']:,} in all")
    print(f"forward     {facts['gflops_forward_per_image']:.2f} GFLOP per image, all views")
    print(f"schedule    {recipe.optim.epochs} epochs = {facts['ete']} ETE, peak lr {facts['peak_lr']:.3g}")
    print(f"run it      {recipe.command}\n")
    for note in recipe.notes:
        print(f"note        {note}")
    print(f"\n{dump(recipe)}", end="")


def environment() -> dict[str, Any]:
    """Versions and machine, the content of env.json."""
    import torch

    names = ("remask", "torch", "torchvision", "timm", "numpy", "pillow", "safetensors")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "versions": {name: _version(name) for name in names},
        "command": sys.argv[1:],
    }


def doctor() -> None:
    """Print what this machine offers; a missing extra is named with the command that brings it."""
    import torch

    from remask.runtime import resolve

    facts = environment()
    print(f"python      {facts['python']} on {facts['platform']}")
    for name, found in facts["versions"].items():
        print(f"{name:<11} {found or 'missing'}")
    for name, extra in (("pyarrow", "data"), ("datasets", "data"), ("tensorboard", "")):
        print(f"{name:<11} {_version(name) or 'missing' + (f': pip install remask[{extra}]' if extra else '')}")
    print(f"cpu         {facts['cpu']}, {facts['cores']} threads, {torch.backends.cpu.get_cpu_capability()}")
    print(f"gpus        {', '.join(facts['gpus']) or 'none'}; mps: {torch.backends.mps.is_available()}")
    print(f"would use   {resolve('auto', 'auto').describe()}")
    print(f"decoding    {_decode_speed():.0f} JPEGs of 500×375 a second on one core, decoded and cropped to 224")
    disk = shutil.disk_usage(".")
    print(f"disk        {disk.free / 2**30:.1f} GiB free here")


def _decode_speed(seconds: float = 1.0) -> float:
    import io

    import torch
    from PIL import Image

    from remask.images.decoding import decode
    from remask.images.sources import open_source
    from remask.images.transforms import RandomCropFlip

    buffer = io.BytesIO()
    photo = decode(open_source("photos").read(0))
    Image.fromarray(photo.permute(1, 2, 0).numpy()).resize((500, 375)).save(buffer, "JPEG", quality=90)
    crop, random, threads = RandomCropFlip((224, 224)), torch.Generator().manual_seed(0), torch.get_num_threads()
    torch.set_num_threads(1)
    crop(decode(buffer.getvalue()), random)  # the first one loads libraries
    count, began = 0, time.process_time()
    while (spent := time.process_time() - began) < seconds:
        crop(decode(buffer.getvalue()), random)
        count += 1
    torch.set_num_threads(threads)
    return count / spent


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
