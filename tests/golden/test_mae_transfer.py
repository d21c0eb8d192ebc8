"""What follows MAE's pre-training, against the official code: classifiers, linear probe, LARS, layer decay, schedules.

timm's own VisionTransformer serves as the classifier, read through our backbone.
"""

import math
import re
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from remask.backbones.vit import ViT
from remask.interop import mae as interop
from remask.training.optim import Lars, cosine, learning_rate, parameter_groups, set_lr
from tests.golden.vectors import Entries, File, Folder, activations, gradients, losses, norms, some, trajectory

SYSTEM = "mae"
FILES = {"vit": "vit_*_forward.safetensors", "probe": "linprobe_*.safetensors"}


def test_position_table_resize(folder: Folder) -> None:
    stored = folder.tensors("pos_embed_interp.safetensors")
    for name in some((key.removesuffix(".in") for key in stored if key.endswith(".in")), "resizes"):
        new, extra = map(int, re.search(r"to(\d+)_extra(\d+)", name).groups())
        resized = interop.resize_positions(stored[f"{name}.in"], (new, new), prefix=extra)
        activations(resized, stored[f"{name}.out"])


def classifier_like(folder: Folder, state: Entries, drop_path: float = 0.0) -> VisionTransformer:
    """timm's own ViT as the classifier: the mean of the patch tokens through fc_norm, or the class token."""
    encoder = folder.config.part("encoder")
    return VisionTransformer(
        img_size=encoder["image_size"],
        patch_size=encoder["patch_size"],
        embed_dim=encoder["dim"],
        depth=encoder["depth"],
        num_heads=encoder["heads"],
        mlp_ratio=encoder["mlp_ratio"],
        num_classes=folder.config["classes"],
        global_pool="avg" if "fc_norm.weight" in state else "token",
        norm_layer=partial(nn.LayerNorm, eps=folder.config["norm_eps"]),
        drop_path_rate=drop_path,
    )


def trained_classifier(folder: Folder, kind: str) -> VisionTransformer:
    state = folder.tensors(f"vit_{kind}_state_dict.safetensors")
    network = classifier_like(folder, state)
    network.load_state_dict(state)
    return network


def pooled(network: VisionTransformer, images: Tensor) -> Tensor:
    """The features of a classifier, by way of our backbone: what probes and fine-tuning read."""
    features = ViT(network, interop.MEAN, interop.STD)(images)
    average = isinstance(network.norm, nn.Identity)
    return network.fc_norm(features.tokens.mean(1) if average else features.prefix[:, 0])


def kind_of(file: File) -> str:
    return next(kind for kind in ("gap", "cls") if kind in file.stem)


def test_classifier_features(vit: File) -> None:
    network = trained_classifier(vit.folder, kind_of(vit))
    activations(pooled(network, vit.tensors["imgs"]), vit.tensors["features"])


def test_classifier_logits(vit: File) -> None:
    network, stored = trained_classifier(vit.folder, kind_of(vit)), vit.tensors
    activations(network(stored["imgs"]), stored["logits"])
    activations(network.head(pooled(network, stored["imgs"])), stored["logits"])


def test_classifier_loss_and_gradients(vit: File) -> None:
    network, stored = trained_classifier(vit.folder, kind_of(vit)), vit.tensors
    loss = F.cross_entropy(network.head(pooled(network, stored["imgs"])), stored["labels"])
    loss.backward()
    losses(loss, stored["ce_loss"])
    actual = dict(network.named_parameters())
    for name, gradient in stored.below("grad.").items():
        gradients(actual[name].grad, gradient)


def test_classifier_gradient_norms(vit: File) -> None:
    expected = vit.folder.json(vit.stem.replace("forward", "gradnorms") + ".json")
    network, stored = trained_classifier(vit.folder, kind_of(vit)), vit.tensors
    F.cross_entropy(network(stored["imgs"]), stored["labels"]).backward()
    norms({name: float(p.grad.norm()) for name, p in network.named_parameters()}, dict(expected))


def test_linear_probe(probe: File) -> None:
    stored, settings = probe.tensors, probe.folder.config.part("linprobe")
    network = trained_classifier(probe.folder, kind_of(probe))
    with torch.no_grad():
        features = pooled(network, stored["imgs"])
    norm = nn.BatchNorm1d(features.shape[1], affine=False, eps=1e-6)
    head = nn.Sequential(norm, network.head)
    rate = {key: float(settings[key]) for key in ("lr", "weight_decay", "momentum", "trust")}
    optimizer, logits, found = Lars(head.parameters(), **rate), [], []
    for _ in stored["train_losses"]:
        logits.append(head(features))
        loss = F.cross_entropy(logits[-1], stored["labels"])
        found.append(loss.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    trajectory(torch.stack(found), stored["train_losses"])
    trajectory(torch.stack(logits), stored["train_logits_step"])
    steps = len(found)
    for name, value in stored.below(f"after{steps}.head.").items():
        trajectory(head.state_dict()[name], value)
    trajectory(head.eval()(features), stored[f"eval_logits_after{steps}"])


def test_lars(folder: Folder) -> None:
    stored, settings = folder.tensors("lars.safetensors"), folder.config.part("lars")
    parameters = {key: nn.Parameter(stored[key][0].clone()) for key in ("w", "b")}
    rate = {key: float(settings[key]) for key in ("lr", "weight_decay", "momentum", "trust")}
    optimizer = Lars(parameters.values(), **rate)
    for step in range(len(stored["w"]) - 1):
        for key, parameter in parameters.items():
            parameter.grad = stored[f"grad_{key}"][step]
        optimizer.step()
        for key, parameter in parameters.items():
            activations(parameter, stored[key][step + 1])


def test_layer_decay(folder: Folder) -> None:
    for name, stored in some(folder.json("lr_decay_groups.json").items(), "layer decay"):
        expected = stored["params"]
        network = network_of_shapes({key: value["shape"] for key, value in expected.items()})
        backbone = ViT(network, interop.MEAN, interop.STD)
        groups = parameter_groups(
            network.named_parameters(),
            float(stored["weight_decay"]),
            no_decay=("pos_embed", "cls_token"),
            depth_of=backbone.param_depth,
            depth=backbone.depth,
            layer_decay=float(stored["layer_decay"]),
        )
        actual = {key: (group["lr_scale"], group["weight_decay"]) for group in groups for key in group["names"]}
        assert len(groups) == stored["n_groups"], name
        assert actual.keys() == expected.keys(), name
        for key, value in expected.items():
            assert actual[key] == pytest.approx((value["lr_scale"], value["weight_decay"]), rel=1e-9), (name, key)


def network_of_shapes(shapes: dict[str, list[int]]) -> VisionTransformer:
    """A timm classifier whose parameters have these names and shapes, without memory. Heads do not matter here."""
    patch, tokens = shapes["patch_embed.proj.weight"][-1], shapes["pos_embed"][1] - 1
    with torch.device("meta"):
        network = VisionTransformer(
            img_size=math.isqrt(tokens) * patch,
            patch_size=patch,
            embed_dim=shapes["cls_token"][-1],
            depth=len({key.split(".")[1] for key in shapes if key.startswith("blocks.")}),
            num_heads=1,
            mlp_ratio=shapes["blocks.0.mlp.fc1.weight"][0] / shapes["blocks.0.mlp.fc1.weight"][1],
            num_classes=shapes["head.weight"][0],
            global_pool="avg" if "fc_norm.weight" in shapes else "token",
        )
    assert {name: [*p.shape] for name, p in network.named_parameters()} == shapes
    return network


def test_schedule(folder: Folder) -> None:
    for name, setting in some(folder.json("lr_schedule.json").items(), "schedules"):
        weights = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
        for row in setting["table"]:
            (scaled,) = (key for key in row if key.startswith("group_with_lr_scale_"))
            scale = float(scaled.rsplit("_", 1)[1])
            optimizer = torch.optim.SGD([{"params": weights[:1]}, {"params": weights[1:], "lr_scale": scale}], lr=1)
            shape = (float(setting[key]) for key in ("lr", "warmup_epochs", "epochs", "min_lr"))
            set_lr(optimizer, cosine(float(row["epoch"]), *shape))
            expected = row["lr"], row[scaled]
            actual = tuple(group["lr"] for group in optimizer.param_groups)
            assert actual == pytest.approx(expected, rel=1e-9, abs=1e-15), (name, row)


def test_peak_learning_rate(folder: Folder) -> None:
    """Eq. (4) of DMJD is MAE's rule where there is one view; with two the gain is 1 / m_corr, as published."""
    tables = some(folder.json("lr_schedule.json").items(), "schedules")
    for name, setting, stated in some(((n, s, r) for n, s in tables if (r := rates_of(n, s))), "stated rates"):
        batch, base, ratio = stated
        gain = 1 / ratio if ratio else 1.0
        assert learning_rate(base, batch, gain) == pytest.approx(setting["lr"], rel=1e-9), name


def rates_of(name: str, setting: dict) -> tuple[int, float, float | None] | None:
    """Batch, rate per 256 images and mask ratio of a schedule: its entries, or else its name where that says them."""
    keys = (("batch", "batch_size"), ("base_lr", "blr"), ("mask_ratio",))
    batch, base, ratio = (next((setting[key] for key in names if key in setting), None) for names in keys)
    told = re.fullmatch(r".*_(?:bs|uniq)(\d+)_blr([\d.]+(?:e-?\d+)?)(?:_mask([\d.]+))?(?:_.*)?", name)
    if told and batch is None and base is None:
        batch, base, ratio = told.groups()
    return None if batch is None or base is None else (int(batch), float(base), float(ratio) if ratio else None)


@pytest.mark.parametrize("kind", ["gap", "cls"])
def test_what_fine_tuning_loads(folder: Folder, kind: str) -> None:
    stored = folder.json("finetune_load_msgs.json").part(kind)
    state = folder.tensors("state_dict.safetensors")
    fresh = {"fc_norm.weight": 0} if kind == "gap" else {}
    network = classifier_like(folder, Entries(fresh, kind), drop_path=folder.config["drop_path_rate"])
    whole = network.load_state_dict(state, strict=False)
    assert sorted(whole.missing_keys) == sorted(stored["missing_keys"])
    assert sorted(whole.unexpected_keys) == sorted(stored["unexpected_keys"])
    ours = network.load_state_dict(interop.classifier_state(state, network), strict=False)
    assert sorted(ours.missing_keys) == sorted(stored["missing_keys"])
    assert not ours.unexpected_keys
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in network.blocks]
    assert rates == pytest.approx(stored["drop_path_rates"], abs=1e-7)
