"""Load this backbone with timm alone: python load_example.py [PICTURE]"""

import json
import sys
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file

here = Path(__file__).parent
sys.path.insert(0, str(here))
from read_pixels import normalised, read_picture

config = json.loads((here / "config.json").read_text(encoding="utf-8"))
model = timm.create_model(config["model"], **config["arguments"]).eval()
model.load_state_dict(load_file(here / "backbone.safetensors"), strict=True)

size = config["image_size"]
if len(sys.argv) > 1:
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
