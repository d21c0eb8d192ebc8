"""DALL-E's dVAE encoder against mmpretrain's, on small random weights in the published layout."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from remask.targets.dalle import map_pixels
from remask.targets.tokens import Dalle, load_dalle
from tests.golden.vectors import File, activations, some

SYSTEM = "beit"
FILES = {"weights": "dalle*_state_dict.safetensors"}


def io_of(weights: File) -> dict[str, torch.Tensor]:
    """What went in and came out of the network of this file."""
    return weights.folder.tensors(weights.name.replace("_state_dict", "_io"))


def test_sizes_are_those_of_the_config(weights: File) -> None:
    encoder, sizes = load_dalle(weights.folder.path / weights.name), weights.folder.config.part("dalle")
    assert encoder.vocabulary == sizes["vocabulary"]
    assert encoder.blocks["input"].w.shape[0] == sizes["hidden"]
    assert set(encoder.state_dict()) == set(weights.tensors)


def test_pixels_are_mapped_away_from_the_ends(weights: File) -> None:
    stored = io_of(weights)
    torch.testing.assert_close(map_pixels(stored["images_01"]), stored["mapped"])


def test_logits(weights: File) -> None:
    stored, encoder = io_of(weights), load_dalle(weights.folder.path / weights.name)
    activations(encoder(stored["mapped"]), stored["logits"])


def test_token_ids(weights: File) -> None:
    """As a target on images of eight pixels a token, where there is nothing to resize; normalised, as stored."""
    stored = io_of(weights)
    images, ids, logits = stored["images_01"], stored["token_ids"], stored["logits"]
    channels = images.shape[1]
    target = Dalle(load_dalle(weights.folder.path / weights.name), (8, 8), [0.5] * channels, [0.5] * channels)
    ours = target((images - 0.5) / 0.5).view(ids.shape)
    best = logits.topk(2, dim=1).values
    clear = best[:, 0] - best[:, 1] > 1e-4
    assert some(clear.flatten().nonzero(), "position with a clear winner")
    assert torch.equal(ours[clear], ids[clear])


def test_the_same_from_a_pickled_state_dict(weights: File, tmp_path: Path) -> None:
    torch.save(dict(weights.tensors), tmp_path / "encoder.pkl")
    save_file(dict(weights.tensors), tmp_path / "encoder.safetensors")
    one, other = (load_dalle(tmp_path / f"encoder.{suffix}").state_dict() for suffix in ("pkl", "safetensors"))
    assert all(torch.equal(one[name], other[name]) for name in weights.tensors)
