"""evaluation/attentive.py: the attention is multi-head attention, the test chooses nothing, budgets are kept to."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from remask.backbones.vit import ViT, create_vit
from remask.errors import UserError
from remask.evaluation.probing import attentive
from remask.evaluation.probing.attentive import (
    AttentiveHead,
    Settings,
    Tokens,
    attentive_probe,
    cache,
    fit,
    heads_of,
    score,
)

SMALL = Settings(epochs=6, batch=16, rates=(1e-2,), decays=(1e-2,))
CPU = torch.device("cpu")


class Some(NamedTuple):
    images: Tensor
    labels: Tensor | None


def backbone() -> ViT:
    torch.manual_seed(1)
    sizes = {"embed_dim": 16, "depth": 1, "num_heads": 2}
    return create_vit("vit_micro", (8, 8), [0.5], [0.25], overrides=sizes)


def corners(n: int, seed: int, labels: tuple[int, ...] = (3, 7)) -> list[Some]:
    """A chess board in one of four corners, or none: the mean over tokens says less than one token."""
    generator = torch.Generator().manual_seed(seed)
    images, y = torch.randint(0, 60, (n, 1, 8, 8), generator=generator), torch.arange(n) % len(labels)
    board = (torch.arange(4)[:, None] + torch.arange(4)) % 2 * 180
    where = torch.randint(0, 2, (n, 2), generator=generator).tolist()
    for image, (row, column), label in zip(images, where, y.tolist(), strict=True):
        image[0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += board if label else 90
    known = torch.tensor(labels)[y]
    return [Some(a.to(torch.uint8), b) for a, b in zip(images.split(32), known.split(32), strict=True)]


def run(train: list[Some], val: list[Some], settings: Settings = SMALL, **keys: Any) -> dict[str, Any]:
    counts = sum(len(part.images) for part in train), sum(len(part.images) for part in val)
    return attentive_probe({"top1": backbone()}, lambda: train, lambda: val, counts, settings, **keys)


def test_attention_is_multi_head_attention() -> None:
    """torch's own, given the same matrices, a query and an output projection that change nothing."""
    torch.manual_seed(0)
    head, x = AttentiveHead(24, 5, 3), torch.randn(4, 7, 24)
    nn.init.normal_(head.query)
    nn.init.normal_(head.value_bias)
    theirs = nn.MultiheadAttention(24, 3, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([torch.eye(24), head.key.reshape(24, 24), head.value.reshape(24, 24)]))
        theirs.in_proj_bias.copy_(torch.cat([torch.zeros(24), torch.randn(24), head.value_bias]))
        theirs.out_proj.weight.copy_(torch.eye(24))
        query = head.query.reshape(1, 1, 24).expand(4, -1, -1)
        torch.testing.assert_close(head.pool(x), theirs(query, x, x)[0][:, 0], atol=1e-5, rtol=1e-5)


def test_finds_the_one_token_that_tells() -> None:
    result = run(corners(240, 0), corners(60, 1))
    assert result["top1"] > 85
    chosen = result["protocol"]["chosen"]["top1"]
    assert (chosen["lr"], chosen["weight_decay"], chosen["held_out"], chosen["tokens"]) == (1e-2, 1e-2, 48, [4, 16])
    assert result["protocol"]["images"] == {"train": 240, "val": 60}


def test_same_numbers_twice_and_test_labels_choose_nothing() -> None:
    settings = Settings(epochs=2, rates=(1e-4, 1e-2), decays=(1e-2,))
    first = run(corners(60, 0), corners(20, 1), settings)
    assert run(corners(60, 0), corners(20, 1), settings) == first
    flipped = [Some(part.images, None if part.labels is None else 10 - part.labels) for part in corners(20, 1)]
    other = run(corners(60, 0), flipped, settings)
    assert other["top1"] == pytest.approx(100 - first["top1"], abs=0.02)
    assert other["protocol"]["chosen"] == first["protocol"]["chosen"]


def test_the_better_rate_is_chosen() -> None:
    result = run(corners(120, 0), corners(40, 1), Settings(epochs=6, batch=16, rates=(1e-9, 1e-2), decays=(1e-2,)))
    chosen = result["protocol"]["chosen"]["top1"]
    assert chosen["lr"] == 1e-2
    low, high = chosen["held_out_accuracy"].values()
    assert high > low + 20


def test_tokens_are_the_normed_patch_tokens() -> None:
    network, given = backbone().eval(), corners(40, 0)
    found = cache(network, given, 40, SMALL, Path("unused"))
    with torch.no_grad():
        tokens = torch.cat([network(part.images).tokens for part in given])
    expected = torch.nn.functional.layer_norm(tokens, (16,))
    assert found.x.dtype == torch.float16
    torch.testing.assert_close(found.x.float(), expected, atol=2e-3, rtol=2e-3)
    assert found.y is not None
    assert found.y.tolist() == [3, 7] * 20


def test_memory_then_disk_then_nowhere(tmp_path: Path) -> None:
    size = 40 * 4 * 16 * 2 / 1e9
    given, kept = corners(40, 0), cache(backbone(), corners(40, 0), 40, SMALL, tmp_path / "a")
    mapped = cache(backbone(), given, 40, Settings(ram_gb=size / 2, disk_gb=size), tmp_path / "b")
    assert not (tmp_path / "a").exists()
    assert (tmp_path / "b").stat().st_size == 40 * 4 * 16 * 2
    assert torch.equal(kept.x, mapped.x)
    with pytest.raises(UserError, match="the 4 tokens of 40 images take"):
        cache(backbone(), given, 40, Settings(ram_gb=0, disk_gb=size / 2), tmp_path / "c")


def test_files_of_tokens_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Path] = []
    real = attentive.cache

    def watched(*given: Any) -> Tokens:
        found = real(*given)
        seen.extend(tmp_path.rglob("*"))
        return found

    monkeypatch.setattr(attentive, "cache", watched)
    run(corners(40, 0), corners(20, 1), Settings(epochs=1, ram_gb=0, folder=tmp_path))
    assert any(path.name == "train" for path in seen)
    assert not list(tmp_path.iterdir())


def test_fewer_usable_images_than_announced() -> None:
    assert cache(backbone(), corners(40, 0), 99, SMALL, Path("unused")).x.shape == (40, 4, 16)


def test_one_image_a_class_is_enough() -> None:
    assert 0 <= run(corners(2, 0), corners(10, 1), Settings(epochs=1))["top1"] <= 100


def test_batch_norm_evaluates_with_running_statistics() -> None:
    tokens = Tokens(torch.randn(64, 4, 8, generator=torch.Generator().manual_seed(0)).half(), torch.arange(64) % 2)
    head = fit(tokens, torch.arange(64), 1e-2, 0.0, SMALL, CPU)
    whole, _ = score(head, tokens, torch.arange(64))
    single = [score(head, tokens, torch.tensor([i]))[0] for i in range(64)]
    assert whole == pytest.approx(sum(single) / 64)


@pytest.mark.parametrize(("width", "heads"), [(128, 4), (192, 4), (768, 12), (1024, 16), (10, 2), (7, 1)])
def test_heads(width: int, heads: int) -> None:
    assert heads_of(width) == heads


def test_heads_that_do_not_divide() -> None:
    with pytest.raises(UserError, match="5 heads do not divide the width 16"):
        heads_of(16, 5)


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        ([Some(part.images, None) for part in corners(20, 0)], corners(10, 1), "training images have no labels"),
        (corners(20, 0), [Some(part.images, None) for part in corners(10, 1)], "validation images have no labels"),
        (corners(20, 0, (3,)), corners(10, 1, (3,)), "of one class"),
        (corners(20, 0), corners(10, 1, (3, 9)), "class 9 "),
        ([], corners(10, 1), "no image"),
    ],
)
def test_mistakes_are_one_line(train: list[Some], val: list[Some], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        run(train, val)
    assert "\n" not in str(caught.value)
