"""`evaluation.Classifier` against the official fine-tuning networks of MAE, ConvMAE, DMJD and SimMIM's ViT.

Features, logits, losses and gradients of the stored weights, read as a user fine-tunes: our backbone, pooling and head.
"""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from remask.backbones import Backbone
from remask.backbones.beit import create_beit
from remask.backbones.convvit import create_convvit
from remask.backbones.vit import create_vit
from remask.downstream.finetune.classifier import Classifier, MixedLabels
from remask.interop import simmim
from remask.interop.mae import MEAN, STD
from tests.golden.convvit import image_size, sizes_of, with_epsilons_of
from tests.golden.replacing import with_eps
from tests.golden.test_convmae import images_in
from tests.golden.vectors import Entries, File, Folder, activations, gradients, losses, norms, roots


def found(system: str, pattern: str) -> list:
    """The files of a system in every root, as parameters; one that is skipped where there are none."""
    files = [
        pytest.param(File(Folder(root / system), path.name), id=f"{system}-{name}-{path.stem}")
        for name, root in roots().items()
        for path in sorted((root / system).glob(pattern))
    ]
    return files or [pytest.param(None, id=system, marks=pytest.mark.skip(f"no {pattern} of {system}"))]


STORED = [
    *found("mae", "vit_*_forward.safetensors"),
    *found("convmae", "convvit_*.safetensors"),
    *found("dmjd", "convit_*.safetensors"),
]
SIMMIM = found("simmim", "vit_finetune_io.safetensors")


class Case(NamedTuple):
    classifier: Classifier
    images: Tensor
    stored: Entries


def case_of(file: File) -> Case:
    if file.folder.path.name == "mae":
        state = file.folder.tensors(file.name.replace("forward", "state_dict"))
        backbone, images = vit_of(file.folder), file.tensors["imgs"]
    else:
        state, backbone, images = file.tensors.below("sd."), convvit_of(file.folder), images_of(file.folder)
    pool = "mean" if "fc_norm.weight" in state else "cls"
    classifier = Classifier(backbone, len(state["head.weight"]), pool=pool, smoothing=0.0).eval()
    load(classifier, state)
    if file.folder.path.name == "mae":
        with_eps(classifier, file.folder.config["norm_eps"])
    else:
        with_epsilons_of(file.folder, classifier)
    return Case(classifier, images, file.tensors)


def vit_of(folder: Folder) -> Backbone:
    encoder = folder.config.part("encoder")
    overrides = {
        "patch_size": encoder["patch_size"],
        "embed_dim": encoder["dim"],
        "depth": encoder["depth"],
        "num_heads": encoder["heads"],
        "mlp_ratio": encoder["mlp_ratio"],
    }
    return create_vit("vit_base_patch16_224", (encoder["image_size"],) * 2, MEAN, STD, overrides=overrides)


def convvit_of(folder: Folder) -> Backbone:
    return create_convvit("convvit_base", image_size(folder), MEAN, STD, overrides=sizes_of(folder)._asdict())


def images_of(folder: Folder) -> Tensor:
    """ConvMAE stores them with the forward pass, DMJD apart."""
    for path in sorted(Path(folder.path).glob("*.safetensors")):
        if path.name.startswith(("forward", "inputs")):
            stored = folder.tensors(path.name)
            return stored["imgs_norm"] if "imgs_norm" in stored else images_in(stored)
    pytest.skip(f"no images in {folder.path}")


def load(classifier: Classifier, state: dict[str, Tensor]) -> None:
    """An official classifier's tensors, all of them, into ours; only a final norm that is not used may be left."""
    named = {key if key.startswith(("head.", "fc_norm.")) else f"backbone.network.{key}": state[key] for key in state}
    left = classifier.load_state_dict(named, strict=False)
    assert not left.unexpected_keys
    trained = {name for name, parameter in classifier.named_parameters() if parameter.requires_grad}
    assert not trained & set(left.missing_keys)
    assert trained == set(named)


@pytest.mark.parametrize("stored_file", STORED)
def test_features_and_logits(stored_file: File) -> None:
    classifier, images, stored = case_of(stored_file)
    activations(classifier.features(images), stored["features"])
    activations(classifier.logits(images), stored["logits"])


@pytest.mark.parametrize("stored_file", STORED)
def test_loss_and_gradients(stored_file: File) -> None:
    classifier, images, stored = case_of(stored_file)
    loss = classifier(images, MixedLabels(stored["labels"]))["total"]
    loss.backward()
    losses(loss, stored["ce_loss"])
    actual = named_as_theirs(classifier)
    for name, gradient in stored.below("grad.").items():
        gradients(actual[name].grad, gradient)


@pytest.mark.parametrize("stored_file", STORED)
def test_every_gradient_norm(stored_file: File) -> None:
    name = f"{stored_file.stem.removesuffix('_forward')}_gradnorms.json"
    expected = stored_file.folder.json(name)
    classifier, images, stored = case_of(stored_file)
    classifier(images, MixedLabels(stored["labels"]))["total"].backward()
    norms({key: float(p.grad.norm()) for key, p in named_as_theirs(classifier).items()}, dict(expected))


def named_as_theirs(classifier: Classifier) -> dict[str, nn.Parameter]:
    trained = ((name, p) for name, p in classifier.named_parameters() if p.requires_grad)
    return {name.removeprefix("backbone.network."): parameter for name, parameter in trained}


@pytest.mark.parametrize("stored_file", SIMMIM)
def test_simmims_vit(stored_file: File) -> None:
    """The stored fine-tuning weights, with a table in every block."""
    folder, stored = stored_file.folder, stored_file.tensors
    state, config = folder.tensors("vit_finetune_state_dict.safetensors"), folder.config.part("vit")
    overrides = {
        "patch_size": config["patch_size"],
        "embed_dim": config["dim"],
        "depth": config["depth"],
        "num_heads": config["heads"],
        "mlp_ratio": config["mlp_ratio"],
        "use_rel_pos_bias": True,
        "use_shared_rel_pos_bias": False,
    }
    size = (config["image_size"],) * 2
    backbone = create_beit("beit_base_patch16_224", size, simmim.MEAN, simmim.STD, overrides=overrides)
    classifier = with_eps(Classifier(backbone, len(state["head.weight"])).eval(), config["norm_eps"])
    load(classifier, {key: value for key, value in state.items() if not key.endswith(simmim.BUFFERS)})
    activations(classifier.features(stored["images"]), stored["pooled"])
    activations(classifier.logits(stored["images"]), stored["logits"])


@pytest.mark.parametrize("stored_file", SIMMIM)
def test_simmims_vit_from_its_pretraining(stored_file: File) -> None:
    """The official remap is what `Classifier` makes of a pre-trained backbone: the shared table in every block."""
    folder, stored = stored_file.folder, stored_file.tensors
    state, config = folder.tensors("vit_finetune_state_dict.safetensors"), folder.config.part("vit")
    pretrained = folder.tensors("vit_state_dict.safetensors")
    heads, size = config["heads"], (config["image_size"],) * 2
    backbone = simmim.load_backbone(dict(pretrained), heads=heads, size=size)
    classifier = Classifier(backbone, len(state["head.weight"])).eval()
    ours = classifier.state_dict()
    official = {key: value for key, value in state.items() if not key.endswith(simmim.BUFFERS)}
    new = {key: value for key, value in official.items() if key.startswith(("fc_norm.", "head."))}
    for key in official.keys() - new.keys():
        assert torch.equal(ours[f"backbone.network.{key}"], official[key]), key
    classifier.load_state_dict({**ours, **new})
    with_eps(classifier, config["norm_eps"])
    activations(classifier.features(stored["images"]), stored["pooled"])
    activations(classifier.logits(stored["images"]), stored["logits"])
