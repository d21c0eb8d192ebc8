"""The export of a run: a backbone that its maker rebuilds and loads strictly, and a script that shows it.

A timm backbone needs timm alone; ConvViT and CMT, which timm does not have, need remask.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save_file

from remask.backbones import Backbone
from remask.backbones.cmt_network import Cmt
from remask.backbones.convvit_network import ConvViTNetwork
from remask.types import Size

EXAMPLE = '''"""Load this backbone with timm alone: python load_example.py [PICTURE]"""

import json
import sys
from pathlib import Path

import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision.transforms import v2

here = Path(__file__).parent
config = json.loads((here / "config.json").read_text())
model = timm.create_model(config["model"], **config["arguments"]).eval()
model.load_state_dict(load_file(here / "backbone.safetensors"), strict=True)

size = config["image_size"]
if len(sys.argv) > 1:
    mode = "RGB" if len(config["mean"]) == 3 else "L"
    picture = v2.functional.pil_to_tensor(Image.open(sys.argv[1]).convert(mode).resize(size[::-1]))
else:
    picture = torch.randint(0, 256, (len(config["mean"]), *size), dtype=torch.uint8)
mean, std = (torch.tensor(config[key]).view(-1, 1, 1) for key in ("mean", "std"))

with torch.inference_mode():
    tokens = model.forward_features(((picture / 255 - mean) / std)[None])
if tokens.ndim == 4 and tokens.shape[1] == model.num_features:
    tokens = tokens.movedim(1, -1)
prefix = getattr(model, "num_prefix_tokens", 0)
features = tokens.flatten(1, -2)[:, prefix:].mean(1)  # one vector per picture, as the probes use it
print(f"{config['model']}: tokens {tuple(tokens.shape)}, features {tuple(features.shape)}")
'''

# What the script of a network that timm does not have says in the place of timm's.
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
    """Write backbone.safetensors, config.json and load_example.py. Nothing of pre-training is in them."""
    origin = getattr(backbone, "origin", None)
    if origin is None:
        raise ValueError("only a backbone made by a create_… function knows how it is rebuilt")
    folder.mkdir(parents=True, exist_ok=True)
    model, arguments = origin
    config = {"model": model, "arguments": arguments, "image_size": size, "mean": mean, "std": std}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "load_example.py").write_text(example(backbone))
    state = {name: value.detach().cpu().contiguous() for name, value in backbone.network.state_dict().items()}
    save_file(state, folder / "backbone.safetensors", metadata={"format": "pt"})


def example(backbone: Backbone) -> str:
    """The script that loads an export of this kind."""
    script, network = EXAMPLE, backbone.network
    module = "convvit" if isinstance(network, ConvViTNetwork) else "hierarchical" if isinstance(network, Cmt) else None
    for theirs, ours in OURS.items() if module else ():
        script = script.replace(theirs, ours.replace("{module}", str(module)))
    return script
