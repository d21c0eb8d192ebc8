"""What a backbone sees of masked views, and who owns the mask token; losses by hand are in unit/test_method.py."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Generator

from remask.backbones.makers import create_backbone
from remask.backbones.masked_input import Dropped, PixelsReplaced, TokensReplaced
from remask.method import Method
from remask.methods import dm, fastmim, mae, simmim
from remask.training.checkpoint import load_weights


@pytest.mark.parametrize(("make", "name"), [(simmim, "mask_token"), (fastmim, "mask_pixel")])
def test_a_mask_token_is_made_once_and_shared_by_plug_ins(make: object, name: str) -> None:
    method: Method = make(create_backbone("vit_micro", 32))  # type: ignore[operator]
    token = getattr(method.sees, name)
    method.sees.prepare(method.backbone)
    assert getattr(dm(method).sees, name) is token
    assert next(key for key, _ in method.named_parameters()) == f"sees.{name}", (
        "first, as optimizers of older runs have it"
    )
    assert not any(name in key for key in method.backbone.network.state_dict())


def test_tokens_are_left_out_or_replaced() -> None:
    backbone = create_backbone("vit_micro", 32)
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    views = mae(backbone, 0.75).draw(images, Generator().manual_seed(0))
    shapes = {}
    for sees in (Dropped(), TokensReplaced(), PixelsReplaced()):
        sees.prepare(backbone)
        shapes[type(sees)] = sees.encode(backbone, images, views)[-1].tokens.shape[1]
    assert shapes == {Dropped: 16, TokensReplaced: 64, PixelsReplaced: 64}


@pytest.mark.parametrize("make", [simmim, fastmim])
def test_checkpoints_that_called_it_fill_load(make: object, tmp_path: Path) -> None:
    method, other = (make(create_backbone("vit_micro", 32)) for _ in range(2))  # type: ignore[operator]
    ((former, now),) = method.former_names.items()
    assert former == "fill"
    state = {former if key == now else key: value for key, value in method.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    load_weights(tmp_path / "model.safetensors", other)
    assert all(
        torch.equal(a, b) for a, b in zip(method.state_dict().values(), other.state_dict().values(), strict=True)
    )
