"""evaluation/linprobe.py: MAE's numbers, a frozen backbone in evaluation mode, crops, a probe that can be resumed."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from remask.backbones.convvit import create_convvit
from remask.backbones.vit import ViT, create_vit
from remask.errors import UserError
from remask.evaluation.probing.fast_probe import draw_fraction, probe
from remask.evaluation.probing.mae_probe import MAE, LinearProbe, Settings, describer, joined, linprobe
from remask.images.transforms import ProbeCrop
from remask.training.optim import Lars, Schedule


class Some(NamedTuple):
    images: Tensor
    labels: Tensor | None


def backbone(drop_path: float = 0.0) -> ViT:
    torch.manual_seed(1)
    sizes = {"embed_dim": 16, "depth": 2, "num_heads": 2}
    return create_vit("vit_micro", (8, 8), [0.5], [0.25], overrides=sizes, drop_path=drop_path)


def boards(n: int, seed: int, labels: tuple[int, int] = (3, 7)) -> Some:
    """Noise, and noise under a chess board: two classes, numbered with gaps."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    noise = torch.randint(0, 60, (n, 1, 8, 8), generator=generator)
    board = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * 180
    images = noise + board * y[:, None, None, None] + 90 * (1 - y[:, None, None, None])
    return Some(images.to(torch.uint8), torch.tensor(labels)[y])


class Training:
    """Batches of an epoch, other noise in each; remembers the epochs that were asked for."""

    def __init__(self, n: int = 96) -> None:
        self.n, self.asked = n, list[int]()

    def __call__(self, epoch: int) -> Iterator[Some]:
        self.asked.append(epoch)
        whole = boards(self.n, 100 + epoch)
        assert whole.labels is not None
        yield from (Some(x, y) for x, y in zip(whole.images.split(20), whole.labels.split(20), strict=True))


def labels(n: int = 96) -> Tensor:
    found = boards(n, 0).labels
    assert found is not None
    return found


def run(train: Training | None = None, network: ViT | None = None, **keys: Any) -> dict[str, Any]:
    """A short probe; keys that are no settings go to linprobe."""
    extra = {key: keys.pop(key) for key in ("state", "keep", "progress") if key in keys}
    settings = Settings(**{"epochs": 4, "base_lr": 80.0, "batch": 32, **keys})
    train = train or Training()
    return linprobe(network or backbone(), train, lambda: [boards(40, 1)], labels(train.n), settings, **extra)


def test_numbers_of_table_10() -> None:
    schedule = MAE.schedule(1_281_167)
    assert (MAE.epochs, MAE.batch_of(1_281_167), schedule.steps_per_epoch) == (90, 16384, 78)
    assert (schedule.lr, schedule.warmup_epochs, schedule.min_lr) == (pytest.approx(6.4), 10, 0)
    rates = [schedule.lr_at(78 * epoch) for epoch in (0, 5, 10, 50, 90)]
    assert rates == pytest.approx([0, 3.2, 6.4, 3.2, 0])


@pytest.mark.parametrize(("images", "batch"), [(50_000, 2048), (9_469, 256), (100, 16), (10, 10)])
def test_fewer_images_leave_steps_and_rate(images: int, batch: int) -> None:
    assert MAE.batch_of(images) == batch
    assert MAE.schedule(images).lr == pytest.approx(6.4)
    assert Settings(batch=8).batch_of(images) == 8
    assert Settings(batch=8).schedule(images).lr == pytest.approx(0.1 * 8 / 256)


def test_small_set_is_learned() -> None:
    """With the linear rule at a small batch the head would stay where it starts."""
    from sklearn.datasets import load_digits

    x, y = (torch.from_numpy(part) for part in load_digits(return_X_y=True))
    x, test = x.float(), torch.arange(len(y)) % 3 == 0
    known, labels = x[~test], y[~test].long()
    settings = Settings(epochs=12)
    size, schedule = settings.batch_of(len(known)), settings.schedule(len(known))
    probe, generator = LinearProbe(64, 10, schedule), torch.Generator().manual_seed(0)
    for _ in range(12):
        for part in torch.randperm(len(known), generator=generator).split(size)[: schedule.steps_per_epoch]:
            probe.step(known[part], labels[part])
    assert probe.score(x[test], y[test].long())["top1"] > 92


def test_head_and_optimizer() -> None:
    probe = LinearProbe(512, 100, Schedule(1, 1, 1.0))
    norm, linear = probe.head
    assert isinstance(norm, nn.BatchNorm1d)
    assert (norm.affine, norm.eps) == (False, 1e-6)
    assert float(linear.weight.detach().std()) == pytest.approx(0.01, rel=0.05)
    assert not linear.bias.any()
    assert isinstance(probe.optimizer, Lars)
    group = probe.optimizer.param_groups[0]
    assert (group["weight_decay"], group["momentum"], group["trust"]) == (0, 0.9, 1e-3)
    same = LinearProbe(512, 100, Schedule(1, 1, 1.0))
    assert torch.equal(same.head[1].weight, linear.weight)


@pytest.mark.parametrize("cached", [False, True])
def test_boards_are_told_from_noise(cached: bool) -> None:
    train, settings = Training(), {"cached": cached, "epochs": 12, "batch": 16, "base_lr": 160.0}
    result = run(train, **settings)
    assert result["top1"] > 90
    assert result["top5"] == 100
    assert [line["epoch"] for line in result["history"]] == list(range(1, 13))
    assert result["history"][-1]["loss"] < result["history"][0]["loss"]
    assert train.asked == ([0] if cached else list(range(12)))
    assert ("centre" in result["protocol"]["crops"]) == cached
    assert result["protocol"]["images"] == {"train": 96, "val": 40}
    assert (result["protocol"]["batch"], result["protocol"]["lr"]) == (16, 160 * 16 / 256)
    assert run(Training(), **settings) == result


def test_backbone_is_frozen_and_in_evaluation_mode_while_the_head_trains() -> None:
    """With drop path in training mode two passes would differ; the head's statistics do move."""
    network = backbone(drop_path=0.5).train()
    network.network.norm = nn.Sequential(nn.BatchNorm1d(5), network.network.norm)  # 4 patches and the class token
    before = {key: value.clone() for key, value in network.state_dict().items()}
    modes, heads = list[bool](), list[Tensor]()
    network.network.blocks[1].register_forward_hook(lambda module, given, out: modes.append(module.training))
    network.network.norm[0].register_forward_hook(lambda module, given, out: modes.append(module.training))
    result = run(network=network, keep=lambda state: heads.append(state["head"]["0.running_mean"]))
    assert modes
    assert not any(modes)
    assert not torch.equal(heads[0], heads[1])
    assert all(module.training for module in network.modules())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert run(network=network) == result


@pytest.mark.parametrize("cached", [False, True])
def test_resumed_probe_ends_as_the_whole_one(cached: bool) -> None:
    states: list[dict[str, Any]] = []
    whole = run(cached=cached, keep=states.append)
    assert [len(state["history"]) for state in states] == [1, 2, 3, 4]
    again: list[dict[str, Any]] = []
    assert run(cached=cached, state=states[1], keep=again.append) == whole
    assert len(again) == 2
    assert torch.equal(again[-1]["head"]["1.weight"], states[-1]["head"]["1.weight"])


def test_progress_counts_steps() -> None:
    told: list[tuple[int, int]] = []
    run(progress=lambda done, total, words: told.append((done, total)))
    assert told == [(step, 12) for step in range(1, 13)]


def test_steps_are_joined_from_batches_of_any_size() -> None:
    x, y = torch.arange(23.0)[:, None], torch.tensor([2, 5, 9])[torch.arange(23) % 3]
    parts = [(x[:3], y[:3]), (x[3:16], y[3:16]), (x[16:], y[16:])]
    found = list(joined(iter(parts), 5, torch.tensor([2, 5, 9])))
    assert [len(labels) for _, labels in found] == [5] * 4
    assert torch.cat([part for part, _ in found])[:, 0].tolist() == list(range(20))
    assert torch.cat([labels for _, labels in found]).tolist() == [i % 3 for i in range(20)]
    assert [len(labels) for _, labels in joined(iter(parts), 50, torch.tensor([2, 5, 9]))] == [23]


def test_pools() -> None:
    network, images = backbone().eval(), boards(4, 0).images
    with torch.no_grad():
        features = network.encode(network.embed(images), layers=(1, -1))
    expected = {
        "cls": features[-1].prefix[:, 0],
        "mean": features[-1].tokens.mean(1),
        "gap": F.layer_norm(features[1].tokens.mean(1), (16,), eps=1e-6),
        None: features[-1].prefix[:, 0],
    }
    for pool, value in expected.items():
        torch.testing.assert_close(describer(network, Settings(pool=pool))(images), value)


def test_without_a_class_token() -> None:
    network = create_convvit("convvit_micro", (16, 16), [0.5], [0.25], overrides={"width": 32, "num_heads": 2})
    assert Settings().pool_of(network) == "gap"
    assert describer(network, Settings())(torch.zeros(2, 1, 16, 16, dtype=torch.uint8)).shape == (2, 32)
    with pytest.raises(UserError, match='use pool "mean"'):
        describer(network, Settings(pool="cls"))


@pytest.mark.parametrize("shape", [(3, 40, 40), (1, 17, 90), (3, 1, 1), (3, 300, 8)])
def test_crop_has_its_size_and_is_the_same_for_the_same_generator(shape: tuple[int, int, int]) -> None:
    image = torch.randint(0, 256, shape, dtype=torch.uint8)
    crop = ProbeCrop((12, 16))
    first, again = (crop(image, torch.Generator().manual_seed(5)) for _ in range(2))
    assert first.shape == (shape[0], 12, 16)
    assert torch.equal(first, again)


def test_crop_covers_8_to_100_percent_and_flips_half() -> None:
    """A ramp over the columns shows where a crop begins and ends."""
    ramp = torch.linspace(0, 255, 64).round().to(torch.uint8).expand(1, 64, 64).contiguous()
    generator, widths, flipped = torch.Generator().manual_seed(0), list[int](), 0
    for _ in range(400):
        row = ProbeCrop((32, 32))(ramp, generator)[0, 16].int()
        widths.append(abs(int(row[-1] - row[0])))
        flipped += int(row[0] > row[-1])
    assert min(widths) < 100
    assert max(widths) > 235
    assert 150 < flipped < 250


@pytest.mark.parametrize(
    ("found", "val", "message"),
    [
        (None, [boards(8, 1)], "training images have no labels"),
        (torch.full((96,), 3), [boards(8, 1)], "of one class"),
        (labels(), [Some(boards(8, 1).images, None)], "validation images have no labels"),
        (labels(), [boards(8, 1, (3, 9))], "class 9 "),
        (labels(), [], "no image"),
    ],
)
def test_mistakes_are_one_line(found: Tensor | None, val: list[Some], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        linprobe(backbone(), Training(), lambda: val, found, Settings(epochs=1))
    assert "\n" not in str(caught.value)


def test_impossible_settings() -> None:
    with pytest.raises(UserError, match="at least 1 and 2"):
        Settings(batch=1)
    with pytest.raises(UserError, match="no batch"):
        linprobe(backbone(), lambda epoch: [], lambda: [boards(8, 1)], labels(), Settings(epochs=1))


def test_fractions_of_the_labels_beside_few_a_class() -> None:
    """probe.py: every kind of features sees the same draws, of the size asked for."""
    found = probe(
        {"top1": backbone()}, lambda: [boards(100, 0)], lambda: [boards(40, 1)], few=3, k=5, fractions=(0.04, 0.2)
    )
    assert set(found["fractions"]) == {"0.04", "0.2"}
    for name, images in (("0.04", 4), ("0.2", 20)):
        table = found["fractions"][name]
        assert set(table) == {"top1", "pixels", "knn", "protocol"}
        assert table["protocol"]["images_per_draw"] == images
        assert 40 <= table["top1"] <= 100
    assert found["fractions"]["0.04"]["protocol"]["k"] == 4


def test_draws_of_a_fraction() -> None:
    y = torch.tensor([0] * 200 + [1] * 30 + [2] * 3)
    ids = draw_fraction(y, 0.1, seed=0)
    assert y[ids].bincount().tolist() == [20, 3, 1]
    assert len(ids.unique()) == len(ids)
    assert set(ids.tolist()) <= set(draw_fraction(y, 0.5, seed=0).tolist())
    assert not torch.equal(ids, draw_fraction(y, 0.1, seed=1))
    assert len(draw_fraction(y, 1.0, seed=0)) == 233
    for wrong in (0.0, 1.5, -0.1):
        with pytest.raises(UserError, match="at most 1"):
            draw_fraction(y, wrong, seed=0)
