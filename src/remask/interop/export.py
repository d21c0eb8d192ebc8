"""The export of a run: a backbone that its `create_…` function rebuilds and loads strictly, and an example script.

A timm backbone needs timm alone; ConvViT and CMT, which timm does not have, need remask.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save_file

from remask.backbones import Backbone, class_tokens
from remask.backbones.cmt_network import Cmt
from remask.backbones.convvit_network import ConvViTNetwork
from remask.files.manifest import NAME as MANIFEST
from remask.files.manifest import write_manifest
from remask.files.replacing import replaced_folder
from remask.images.levels import rule_of
from remask.images.transforms import CROP
from remask.interop.reader import NAME, reader_text
from remask.types import Size

EXAMPLE = '''"""Load this backbone with timm alone: python load_example.py [PICTURE]"""

import json
import sys
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file

here = Path(__file__).parent
sys.path.insert(0, str(here))
from read_pixels import ends_in_one_line, normalised, read_picture

config = json.loads((here / "config.json").read_text(encoding="utf-8"))
model = timm.create_model(config["model"], **config["arguments"]).eval()
model.load_state_dict(load_file(here / "backbone.safetensors"), strict=True)

size = config["image_size"]
if len(sys.argv) > 1:
    with ends_in_one_line(sys.argv[1], config):
        images = read_picture(sys.argv[1], config)
else:
    images = normalised(torch.randint(0, 256, (1, len(config["mean"]), *size), dtype=torch.uint8), config)

with torch.inference_mode():
    tokens = model.forward_features(images)
if tokens.ndim == 4 and tokens.shape[1] == model.num_features:
    tokens = tokens.movedim(1, -1)
prefix = getattr(model, "num_prefix_tokens", 0)
features = tokens.flatten(1, -2)[:, prefix:].mean(1)  # one vector per picture, as the probes use it
print(f"{config['model']}: tokens {tuple(tokens.shape)}, features {tuple(features.shape)}")
'''

FILES = frozenset(
    (
        "backbone.safetensors", "model.safetensors", "config.json", "model.json", "recipe.toml", "load_example.py",
        "load_backbone.py", NAME, MANIFEST, "__pycache__",
    )
)  # fmt: skip
"""What an export may hold, of a backbone or of a downstream model; Python adds the last."""

# Replacements in the script of a network that timm does not have.
OURS = {
    "with timm alone": "with remask",
    "import timm\nimport torch\n": "import torch\n",
    "import load_file\n": "import load_file\nfrom remask.backbones.{module} import create_{module}\n",
    'model = timm.create_model(config["model"], **config["arguments"]).eval()\n': (
        'sizes = config["model"], tuple(config["image_size"]), config["mean"], config["std"]\n'
        'model = create_{module}(*sizes, overrides=config["arguments"]).network.eval()\n'
    ),
}


def export_backbone(backbone: Backbone, folder: Path, size: Size, mean: Sequence[float], std: Sequence[float]) -> None:
    """Write backbone.safetensors, config.json, and load_example.py with its reader of images, at once.

    Nothing of pre-training is in them. Raises ValueError for a backbone that no `create_…` function made.
    """
    with replaced_folder(folder, FILES) as tmp:
        write_backbone(backbone, tmp, size, mean, std)
        write_manifest(tmp)


def write_backbone(backbone: Backbone, folder: Path, size: Size, mean: Sequence[float], std: Sequence[float]) -> None:
    """Write the files of `export_backbone` into a folder that is there."""
    origin = getattr(backbone, "origin", None)
    if origin is None:
        raise ValueError("only a backbone made by a create_… function knows how it is rebuilt")
    model, arguments = origin
    config = {"model": model, "arguments": arguments, "image_size": size, "mean": mean, "std": std}
    config |= {"class_tokens": class_tokens(backbone)} if class_tokens(backbone) > 1 else {}
    config |= {"range": rule_of(backbone.normalise.levels), "crop_pct": CROP}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "load_example.py").write_text(example(backbone), encoding="utf-8")
    (folder / NAME).write_text(reader_text(), encoding="utf-8")
    state = {name: value.detach().cpu().contiguous() for name, value in backbone.network.state_dict().items()}
    save_file(state, folder / "backbone.safetensors", metadata={"format": "pt"})


def example(backbone: Backbone) -> str:
    """The script that loads an export of this kind."""
    script, network = EXAMPLE, backbone.network
    module = "convvit" if isinstance(network, ConvViTNetwork) else "hierarchical" if isinstance(network, Cmt) else None
    for theirs, ours in OURS.items() if module else ():
        script = script.replace(theirs, ours.replace("{module}", str(module)))
    return script
