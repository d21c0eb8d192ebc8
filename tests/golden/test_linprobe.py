"""The linear probe as we run it, against the official code: test_mae_transfer.py has its parts, here is the whole."""

import pytest
import torch
import torch.nn.functional as F

from remask.backbones.vit import ViT
from remask.evaluation.probing.features import evaluating
from remask.evaluation.probing.mae_probe import LinearProbe as Probe
from remask.evaluation.probing.mae_probe import Settings, describer
from remask.interop import mae as interop
from remask.training.optim import Schedule
from tests.golden.test_mae_transfer import kind_of, trained_classifier
from tests.golden.vectors import File, Folder, some, trajectory

SYSTEM = "mae"
FILES = {"probe": "linprobe_*.safetensors"}


def test_trajectory(probe: File) -> None:
    """Features by our reader in evaluation mode, our head, our steps; logits with the running statistics after them."""
    stored, official = probe.tensors, probe.folder.config.part("linprobe")
    network, kind = trained_classifier(probe.folder, kind_of(probe)).train(), kind_of(probe)
    backbone = ViT(network, interop.MEAN, interop.STD)
    with evaluating([backbone]), torch.no_grad():
        if kind == "cls":
            features = describer(backbone, Settings(pool="cls"))(stored["imgs"])
        else:  # whose fresh norm was given random weights here
            tokens = backbone.encode(backbone.embed(stored["imgs"]), layers=(backbone.depth - 1,))[backbone.depth - 1]
            features = network.fc_norm(tokens.tokens.mean(1))
    steps = len(stored["train_losses"])
    constant = Schedule(1, steps, float(official["lr"]), drops=(2.0,))
    ours = Probe(features.shape[1], len(network.head.bias), constant)
    ours.head[1].load_state_dict(network.head.state_dict())
    for group in ours.optimizer.param_groups:  # MAE's, unless the vectors were made with others
        group.update({key: float(official[key]) for key in ("weight_decay", "momentum", "trust")})
    found = torch.stack([ours.step(features, stored["labels"]) for _ in range(steps)])
    trajectory(found, stored["train_losses"])
    for name, value in stored.below(f"after{steps}.head.").items():
        trajectory(ours.head.state_dict()[name], value)
    score = ours.score(features, stored["labels"])
    expected = stored[f"eval_logits_after{steps}"]
    trajectory(ours.head(features), expected)
    assert score["loss"] == pytest.approx(float(F.cross_entropy(expected, stored["labels"])), abs=1e-4)
    assert score["top1"] == pytest.approx(
        100 * float((expected.argmax(1) == stored["labels"]).float().mean()), abs=0.01
    )


def test_schedule(folder: Folder) -> None:
    tables = folder.json("lr_schedule.json").items()
    for table in some((t for name, t in tables if "linprobe" in name), "linear probes"):
        batch, base = 256, float(table["lr"])  # the rate that any batch and base rate come to
        steps = 10**9  # of an epoch, so that any part of one is a whole number of them
        settings = Settings(epochs=table["epochs"], base_lr=base, batch=batch, warmup=table["warmup_epochs"])
        schedule = settings.schedule(steps * batch)
        for row in table["table"]:
            assert schedule.lr_at(round(steps * row["epoch"])) == pytest.approx(row["lr"], rel=1e-6, abs=1e-12), row
