"""The export of a downstream run: the full model, its metadata, the backbone, and a script that loads it.

A classifier with a network of timm needs only timm. ConvViT, CMT, networks whose head timm computes differently,
segmenters and detectors need remask: `load_export` rebuilds them from the folder alone.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from remask.downstream.build import build_model
from remask.downstream.finetune.classifier import Classifier
from remask.downstream.finetune.timm_classifier import as_timm
from remask.errors import UserError
from remask.files.escaping import encodable
from remask.files.manifest import refuse_damaged, write_manifest
from remask.files.replacing import replaced_folder
from remask.files.text import read_json
from remask.images.levels import rule_of
from remask.interop.export import FILES, write_backbone
from remask.interop.start import constants
from remask.recipe import dump
from remask.recipe.downstream import TASKS, Downstream
from remask.recipe.load import load
from remask.recipe.naming import FOLDER
from remask.training.checkpoint import load_weights
from remask.types import Size

OPENING = '''"""Load this {what} with {loader}: python load_example.py [PICTURE]"""

import json
import sys
from pathlib import Path

'''
READER = """sys.path.insert(0, str(here))
from read_pixels import CentreCrop, ends_in_one_line, normalised, read_image, ready, resize

"""
READ_IMAGE = """
channels, size = len(config["mean"]), tuple(config["image_size"])
if len(sys.argv) > 1:
    with ends_in_one_line(sys.argv[1], config):
        picture = read_image(sys.argv[1], config)
else:
    picture = torch.randint(0, 256, (channels, *size), dtype=torch.uint8)
"""
CROPPED = """picture = CentreCrop(size, config["crop_pct"])(picture)
"""
SHOWN = """for share, number in zip(*logits.softmax(1)[0].topk(min(5, len(config["classes"])))):
    print(f"{100 * share:5.1f} %  {config['classes'][number]}")
"""
TIMM = (
    OPENING.format(what="classifier", loader="timm alone")
    + """import timm
import torch
from safetensors.torch import load_file

here = Path(__file__).parent
"""
    + READER
    + """config = json.loads((here / "model.json").read_text(encoding="utf-8"))
model = timm.create_model(config["model"], **config["arguments"]).eval()
model.load_state_dict(load_file(here / "model.safetensors"), strict=True)
"""
    + READ_IMAGE
    + CROPPED
    + """
with torch.inference_mode():
    logits = model(normalised(picture, config)[None])
"""
    + SHOWN
)
REMASK = (
    """import torch

from remask.downstream.export import load_export

here = Path(__file__).parent
"""
    + READER
    + """config = json.loads((here / "model.json").read_text(encoding="utf-8"))
model, _ = load_export(here)
"""
)
CLASSIFIED = """
with torch.inference_mode():
    logits = model.logits(ready(picture, config)[None], normalised=True)
"""
SEGMENTED = """
with torch.inference_mode():
    classes = model.predict(ready(picture, config)[None], size=size, window=size, normalised=True)[0]
for number, name in enumerate(config["classes"]):
    print(f"{100 * (classes == number).float().mean():5.1f} %  {name}")
"""
DETECTED = """
shown = torch.full((channels, *size), 128, dtype=torch.uint8)
shown = normalised(shown, config)
scale = min(size[0] / picture.shape[1], size[1] / picture.shape[2])
resized = [max(1, round(scale * side)) for side in picture.shape[1:]]
shown[:, : resized[0], : resized[1]] = normalised(resize(picture, resized), config)
found = model.detect(shown[None], normalised=True)[0]
for label, score, box in zip(found["labels"], found["scores"], found["boxes"] / scale):
    print(f"{score:.2f}  {config['classes'][label - 1]}  x0 y0 x1 y1 {[round(float(x)) for x in box]}")
print(f"{len(found['labels'])} found; masks inside the boxes: {'masks' in found}")
"""
SCRIPTS = {
    "finetune": ("classifier", CROPPED + CLASSIFIED + SHOWN),
    "segment": ("segmenter", SEGMENTED),
    "detect": ("detector", DETECTED),
}


def export_model(model: Any, recipe: Downstream, size: Size, facts: Mapping[str, Any], folder: Path) -> str:
    """Write model.safetensors, model.json, load_example.py, and the backbone's export with load_backbone.py, at once.

    Returns the package that loads the model: "timm", or "remask", for which the recipe is written too.
    """
    with replaced_folder(folder, FILES) as tmp:
        loader = _write_model(model, recipe, size, facts, tmp)
        write_manifest(tmp)
    return loader


def _write_model(model: Any, recipe: Downstream, size: Size, facts: Mapping[str, Any], folder: Path) -> str:
    backbone = model.backbone.cpu()
    mean, std = constants(backbone)
    write_backbone(backbone, folder, size, mean, std)
    os.replace(folder / "load_example.py", folder / "load_backbone.py")
    content: dict[str, Any] = {"task": recipe.task, "classes": facts["classes"], "image_size": size}
    content |= {"mean": mean, "std": std, "range": rule_of(backbone.normalise.levels), "facts": dict(facts)}
    if isinstance(model, Classifier):
        content["crop_pct"] = recipe.data.crop_pct  # type: ignore[attr-defined]
    timm_model = as_timm(model, size) if isinstance(model, Classifier) else None
    if timm_model:
        content |= {"loader": "timm", "model": timm_model.name, "arguments": timm_model.arguments}
        script, state = TIMM, timm_model.state
    else:
        what, end = SCRIPTS[recipe.task]
        content["loader"] = "remask"
        script, state = OPENING.format(what=what, loader="remask") + REMASK + READ_IMAGE + end, model.state_dict()
        (folder / "recipe.toml").write_text(dump(recipe), encoding="utf-8")
    (folder / "model.json").write_text(json.dumps(encodable(content), indent=2) + "\n", encoding="utf-8")
    (folder / "load_example.py").write_text(script, encoding="utf-8")
    save_file(_plain(state), folder / "model.safetensors", metadata={"format": "pt"})
    return str(content["loader"])


def load_export(folder: Path) -> tuple[Any, dict[str, Any]]:
    """The Classifier, Segmenter or Detector of an export that needs remask, in evaluation mode, and its model.json.

    Raises UserError if the folder is no such export, or a file in it is damaged.
    """
    refuse_damaged(folder)
    try:
        content = read_json(folder / "model.json")
        task = str(content["task"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} is no export of a downstream run: write one with remask export RUN") from error
    if content.get("loader") != "remask":
        raise UserError(f"{folder} holds a classifier that timm loads: see its load_example.py")
    start = {"model.source": f"run:{folder}", "model.untrained": False, "model.checkpointing": False}
    size = {"data.image_size": list(content["image_size"])}
    recipe = load(TASKS[task], FOLDER / task, folder / "recipe.toml", {**start, **size}, environment={}, strict=False)
    model = recipe.model.model_copy(update={"heads": None, "normalise": None})
    built, _ = build_model(recipe.model_copy(update={"model": model}), content["facts"])
    load_weights(folder / "model.safetensors", built)
    return built.eval(), content


def _plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


__all__ = ["export_model", "load_export"]
