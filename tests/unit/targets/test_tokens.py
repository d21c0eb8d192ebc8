"""targets/tokens.py and targets/dalle.py: nearest centres, a fitted codebook and its file, stored ids, the dVAE."""

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from remask.errors import UserError
from remask.targets import Hog, Pixels
from remask.targets.tokens import (
    Codebook,
    Dalle,
    DalleEncoder,
    StoredIds,
    content_key,
    fit_codebook,
    load_dalle,
    nearest,
    read_codebook,
    save_codebook,
    save_ids,
)

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def pictures(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def normalised(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (MEAN, STD))
    return (images / 255 - mean) / std


def rows(n: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def tiny_dalle(seed: int = 0, channels: int = 3) -> DalleEncoder:
    torch.manual_seed(seed)
    return DalleEncoder(hidden=4, blocks_per_group=1, vocabulary=16, channels=channels)


# codebook


def test_nearest_is_the_smallest_squared_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, centres = rows(50, 6), rows(7, 6, seed=1)
    by_hand = [
        min(range(7), key=lambda v: sum((a - b) ** 2 for a, b in zip(x, centres[v].tolist(), strict=True)))
        for x in vectors.tolist()
    ]
    assert nearest(vectors, centres).tolist() == by_hand
    monkeypatch.setattr("remask.targets.tokens.CHUNK", 21)  # three rows at once
    assert nearest(vectors, centres).tolist() == by_hand


def test_codebook_gives_ids_of_any_vector_target() -> None:
    images, features = pictures(2, 3, 16, 24), Pixels((8, 8), MEAN, STD)
    vectors = features(images)
    target = Codebook(features, vectors[0, [3, 1]])
    ids = target(images)
    assert ids.shape == (2, 6, 1)
    assert ids.dtype == torch.int64
    assert target.width == 2
    assert ids[0, 3].item() == 0
    assert ids[0, 1].item() == 1
    assert target.state_dict() == {}
    assert target.describe() == "2 k-means codes of pixels, normalised per patch"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(target(images), ids)


def test_codebook_of_another_width_is_refused() -> None:
    with pytest.raises(UserError, match=r"vectors of 5 numbers, but HOG central 8 px, LayerNorm gives 108"):
        Codebook(Hog((16, 16), MEAN, STD), torch.zeros(4, 5))


def test_fit_finds_clusters_and_is_a_function_of_its_seed() -> None:
    middle = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    vectors = (middle[:, None] + 0.1 * rows(200, 2).view(4, 50, 2)).flatten(0, 1)
    centres = fit_codebook(vectors, 4, seed=3)
    assert centres.dtype == torch.float32
    assert torch.cdist(middle, centres).min(1).values.max() < 0.2
    assert torch.equal(centres, fit_codebook(vectors, 4, seed=3))


@pytest.mark.parametrize("size", [12, 30])
def test_every_centre_is_nearest_to_some_row(size: int) -> None:
    """Thirty distinct vectors, most of them rare: k-means alone leaves centres empty or twice."""
    distinct = rows(30, 4)
    vectors = torch.cat([distinct, distinct[:2].repeat(500, 1)])
    centres = fit_codebook(vectors, size, seed=0)
    assert len(nearest(vectors, centres).unique()) == size
    assert len(centres.unique(dim=0)) == size


def test_more_centres_than_distinct_rows_are_refused() -> None:
    with pytest.raises(UserError, match="6 centres need as many distinct vectors, and there are 5"):
        fit_codebook(rows(5, 3).repeat(10, 1), 6, seed=0)


def test_codebook_file(tmp_path: Path) -> None:
    about: dict[str, Any] = {"kind": "hog", "norm": "layer", "flavour": "central", "cell": 8, "bins": 9}
    centres, path = rows(5, 4), tmp_path / "codes.safetensors"
    save_codebook(path, centres, about)
    read, told = read_codebook(path)
    assert torch.equal(read, centres)
    assert told == about
    (tmp_path / "other.safetensors").write_bytes(b"no")
    save_file({"weights": centres}, tmp_path / "weights.safetensors")
    for name, complaint in (("other", "is no codebook"), ("weights", "is no codebook"), ("absent", "cannot be read")):
        with pytest.raises(UserError, match=complaint) as caught:
            read_codebook(tmp_path / f"{name}.safetensors")
        assert "\n" not in str(caught.value)


# stored ids


def test_key_is_a_sum_modulo_2_64_of_the_pixels_alone() -> None:
    images = pictures(20, 3, 8, 6)
    keys = content_key(images)
    assert keys.shape == (20,)
    assert len(keys.unique()) == 20
    assert torch.equal(content_key(images[[7, 18]]), keys[[7, 18]])
    assert torch.equal(content_key(images.contiguous(memory_format=torch.channels_last)), keys)
    black, dot = torch.zeros(1, 1, 4, 4, dtype=torch.uint8), torch.zeros(16, 1, 4, 4, dtype=torch.uint8)
    dot.flatten(1).fill_diagonal_(1)
    weights = [int(w) for w in content_key(dot)]
    assert content_key(black).tolist() == [0]
    assert len(set(weights)) == 16
    some = pictures(1, 1, 4, 4)
    total = sum(p * w for p, w in zip(some.flatten().tolist(), weights, strict=True)) % 2**64
    assert content_key(some).item() % 2**64 == total


def test_key_knows_mirrored_rolled_and_reshaped_pictures() -> None:
    image = pictures(1, 3, 8, 8)
    others = [image, image.flip(-1), image.roll(1, -1), image.flip(1), image.view(1, 3, 4, 16), image.view(1, 3, 16, 4)]
    assert len({int(content_key(other)) for other in others}) == 6


def test_key_stays_what_it_was() -> None:
    """Files of ids outlive versions: this number may never change."""
    image = torch.arange(48, dtype=torch.uint8).view(1, 3, 4, 4)
    assert content_key(image).item() == sum(
        p * (splitmix((4 * 65536 + 4 << 24) + p + 1) | 1) for p in range(48)
    ) % 2**64 - 2**64 * (content_key(image).item() < 0)


def splitmix(state: int) -> int:
    """The published finaliser, in Python's integers, of `state` steps of its increment."""
    x = state * 0x9E3779B97F4A7C15 % 2**64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def test_stored_ids_come_back_in_any_order(tmp_path: Path) -> None:
    images, path = pictures(9, 3, 16, 24), tmp_path / "ids.safetensors"
    ids = torch.randint(0, 50, (9, 6), generator=torch.Generator().manual_seed(1))
    twice = torch.cat([images, images[:2]])
    save_ids(path, content_key(twice), torch.cat([ids, ids[:2]]), 50)
    target = StoredIds(path, (8, 8), 50)
    order = torch.tensor([8, 0, 3, 3])
    assert torch.equal(target(images[order]), ids[order].unsqueeze(-1))
    assert target.width == 50
    assert target.state_dict() == {}
    assert target.describe() == "50 stored codes"
    with torch.device("meta"):
        assert StoredIds(path, (8, 8), 50)(torch.zeros(2, 3, 16, 24, dtype=torch.uint8)).shape == (2, 6, 1)


def test_stored_ids_say_what_is_wrong(tmp_path: Path) -> None:
    images, path = pictures(3, 3, 16, 16), tmp_path / "ids.safetensors"
    save_ids(path, content_key(images), torch.arange(12).view(3, 4), 12)
    target = StoredIds(path, (8, 8), 12)
    with pytest.raises(UserError, match=r"no ids for some of these crops.*data\.crop_scale = \[1, 1\]"):
        target(torch.cat([images[:1], images[:1].flip(-1)]))
    with pytest.raises(UserError, match="8-bit pixels"):
        target(images.float())
    with pytest.raises(UserError, match="holds 4 ids an image, the grid has 4×4 tokens"):
        StoredIds(path, (4, 4), 12)(images)
    with pytest.raises(UserError, match=r"holds ids 0\.\.11, a vocabulary of 11 does not"):
        StoredIds(path, (8, 8), 11)
    save_codebook(tmp_path / "codes.safetensors", rows(3, 4), {})
    with pytest.raises(UserError, match="is no file of stored ids"):
        StoredIds(tmp_path / "codes.safetensors", (8, 8), 12)


# dVAE


def test_dalle_sees_eight_pixels_a_token_between_a_tenth_and_nine() -> None:
    """A token of 16 pixels is halved in a second view, one of 8 is seen as it is."""
    encoder, images, seen = tiny_dalle(), pictures(2, 3, 32, 48), []
    encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    ids = Dalle(encoder, (16, 16), MEAN, STD)(images)
    assert ids.shape == (2, 2 * 3, 1)
    assert seen[0].shape == (2, 3, 16, 24)
    assert float(seen[0].min()) >= 0.1
    assert float(seen[0].max()) <= 0.9
    small = Dalle(encoder, (8, 8), MEAN, STD)(images)
    assert torch.allclose(seen[1], 0.8 * images / 255 + 0.1)
    logits = encoder(0.8 * images / 255 + 0.1)
    assert logits.shape == (2, 16, 4, 6)
    assert torch.equal(small[..., 0], logits.argmax(1).flatten(1))
    assert len(small.unique()) > 1


def test_dalle_from_floats_gray_pictures_and_under_autocast() -> None:
    target, images = Dalle(tiny_dalle(), (8, 8), MEAN, STD), pictures(1, 3, 32, 32)
    ids = target(images)
    assert torch.equal(target(normalised(images)), ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(target(images), ids)
    gray = Dalle(tiny_dalle(), (8, 8), [0.5], [0.5])
    assert torch.equal(gray(images[:, :1]), target(images[:, :1].repeat(1, 3, 1, 1)))
    with pytest.raises(UserError, match="sees 3 channels, not 2"):
        Dalle(tiny_dalle(), (8, 8), [0.5] * 2, [0.5] * 2)


def test_dalle_is_no_part_of_what_is_trained() -> None:
    target = Dalle(tiny_dalle(), (8, 8), MEAN, STD)
    assert target.state_dict() == {}
    assert list(target.parameters()) == []
    assert target.describe() == "16 dVAE codes"


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "pkl"])
def test_load_dalle_reads_sizes_from_the_tensors(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(0)
    encoder, path = DalleEncoder(hidden=8, blocks_per_group=2, vocabulary=11, channels=1), tmp_path / f"dvae.{suffix}"
    save_file(encoder.state_dict(), path) if suffix == "safetensors" else torch.save(encoder.state_dict(), path)
    loaded = load_dalle(path)
    x = torch.rand(1, 1, 16, 16)
    assert torch.equal(loaded(x), encoder(x))
    assert (loaded.vocabulary, loaded.channels) == (11, 1)
    with torch.device("meta"):
        assert load_dalle(path)(torch.zeros(1, 1, 16, 16)).is_meta


def test_load_dalle_refuses_in_one_line(tmp_path: Path) -> None:
    state, path = tiny_dalle().state_dict(), tmp_path / "dvae.pt"
    cases: list[tuple[Any, str]] = [
        (tiny_dalle(), "holds a pickled module.*state_dict"),
        ({**state, "extra.w": torch.zeros(1)}, "unknown: extra.w"),
        ({k: v for k, v in state.items() if not k.endswith("conv_2.b")}, "missing: blocks.group_1.*conv_2.b"),
        ({**state, "blocks.group_2.block_1.id_path.b": torch.zeros(3)}, "of another shape: blocks.group_2.block_1.id"),
        ({"weight": torch.zeros(1)}, "no DALL-E encoder: it has no blocks.input.w"),
        ({"a": 1}, "holds no weights"),
    ]
    for content, complaint in cases:
        torch.save(content, path)
        with pytest.raises(UserError, match=complaint) as caught:
            load_dalle(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="cannot be read"):
        load_dalle(tmp_path / "absent.pt")


def test_new_dalle_has_the_published_number_of_weights() -> None:
    with torch.device("meta"):
        count = sum(p.numel() for p in DalleEncoder().parameters())
    assert math.isclose(count, 53.8e6, rel_tol=0.01)


def test_a_flipped_bit_of_a_codebook_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "codebook.safetensors"
    save_codebook(path, torch.arange(12.0).reshape(4, 3), {"target": "hog"})
    content = path.read_bytes()
    assert read_codebook(path)[1] == {"target": "hog"}
    for place in range(0, len(content), 3):
        flipped = bytearray(content)
        flipped[place] ^= 2
        path.write_bytes(flipped)
        with suppress(UserError):  # else it was the digest's key: as an earlier version's file, it has none
            assert torch.equal(read_codebook(path)[0], torch.arange(12.0).reshape(4, 3)), place
