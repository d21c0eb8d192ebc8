"""BEiT against numbers that transformers computed on weights in unilm's layout: hidden states, logits, loss, masks."""

import torch
import torch.nn.functional as F
from torch import Tensor

from remask.distances import cross_entropy
from remask.interop import beit as interop
from remask.method import Method
from tests.golden.replacing import Stored, block_cases, check_block_masks, encoded, loss_of, smallest_of, with_eps
from tests.golden.vectors import Entries, Folder, activations, gradients, losses, size_of, size_unless_square, some

SYSTEM = "beit"
SMALLEST = 16  # patches of the official generator's smallest block, where config.json does not state another
NAMES = {
    "beit.embeddings.cls_token": "backbone.network.cls_token",
    "beit.embeddings.mask_token": "sees.mask_token",
    "beit.embeddings.patch_embeddings.projection.": "backbone.network.patch_embed.proj.",
    "beit.shared_position_bias.": "backbone.network.rel_pos_bias.",
    "layernorm.": "backbone.network.norm.",
    "lm_head.": "branches.0.head.predict.",
}


def state_of(folder: Folder) -> Entries:
    return folder.tensors("state_dict_unilm_format.safetensors")


def method_of(folder: Folder) -> Method:
    config = folder.config.part("vit")
    words = Stored(torch.zeros(1, 1, 1, dtype=torch.int64), config["vocabulary"])
    method = interop.load(state_of(folder), words, size=size_unless_square(config["image_size"])).eval()
    return with_eps(method, config["norm_eps"])


def logits_of(method: Method, stored: Entries) -> Tensor:
    return method.branches[0].head.predict(encoded(method, stored["images"], stored["mask"])[-1].tokens)


def test_sizes_are_read_from_the_weights(folder: Folder) -> None:
    backbone, config = method_of(folder).backbone, folder.config.part("vit")
    assert (backbone.width, backbone.depth, backbone.patch[0]) == (config["dim"], config["depth"], config["patch_size"])
    sides = tuple(count * side for count, side in zip(backbone.built_for, backbone.patch, strict=True))
    assert sides == size_of(config["image_size"])
    assert backbone.network.blocks[0].attn.num_heads == config["heads"]


def test_hidden_states(folder: Folder) -> None:
    method, stored = method_of(folder), folder.tensors("io.safetensors")
    backbone, mask = method.backbone, stored["mask"].bool()
    embedded = torch.where(mask.unsqueeze(-1), method.sees.mask_token, backbone.embed(stored["images"]).tokens)
    first = torch.cat([backbone.network.cls_token.expand(len(mask), -1, -1), embedded], dim=1)
    activations(first, stored["hidden.0"])
    features = encoded(method, stored["images"], stored["mask"], tuple(range(backbone.depth)))
    numbers = some((int(key) for key in stored.below("hidden.") if int(key) > 0), "hidden states")
    for number in numbers:
        activations(torch.cat(features[number - 1], dim=1), stored[f"hidden.{number}"])


def test_logits(folder: Folder) -> None:
    stored = folder.tensors("io.safetensors")
    logits = logits_of(method_of(folder), stored)
    activations(logits, stored["logits"])
    masked = stored["mask"].bool()
    right = (logits.argmax(-1) == stored["token_ids"])[masked]
    torch.testing.assert_close(right.float().mean(), stored["acc"])


def test_loss(folder: Folder) -> None:
    method, stored = method_of(folder), folder.tensors("io.safetensors")
    loss = loss_of(method, stored["images"], stored["mask"], stored["token_ids"].unsqueeze(-1))
    losses(loss, stored["loss"])
    losses(loss, stored["loss_from_hf"])


def test_loss_of_stored_logits(folder: Folder) -> None:
    stored = folder.tensors("io.safetensors")
    masked, ids = stored["mask"].bool(), stored["token_ids"]
    losses(cross_entropy(stored["logits"], ids.unsqueeze(-1))[masked].mean(), stored["loss"])
    losses(F.cross_entropy(stored["logits"][masked], ids[masked]), stored["loss"])


def test_named_gradients(folder: Folder) -> None:
    method, stored = method_of(folder), folder.tensors("io.safetensors")
    loss_of(method, stored["images"], stored["mask"], stored["token_ids"].unsqueeze(-1)).backward()
    actual = dict(method.named_parameters())
    for name, gradient in stored.below("grad.").items():
        ours = interop.counterpart(name, NAMES, "transformers")
        assert actual[ours].grad is not None
        gradients(actual[ours].grad.view(gradient.shape), gradient)


def test_the_way_back_is_bit_equal(folder: Folder) -> None:
    stored, back = state_of(folder), interop.to_official(method_of(folder))
    assert back.keys() == stored.keys()
    assert all(torch.equal(back[key], stored[key]) for key in stored)


def test_encoder_alone(folder: Folder) -> None:
    stored = {key: value for key, value in state_of(folder).items() if not key.endswith(interop.BUFFERS)}
    size = size_unless_square(folder.config.part("vit")["image_size"])
    network = interop.load_backbone(stored, size=size).network
    assert all(torch.equal(value, stored[key]) for key, value in network.state_dict().items())
    assert set(stored) - set(network.state_dict()) == {"mask_token", "lm_head.weight", "lm_head.bias"}


def test_block_masks(folder: Folder) -> None:
    settings = folder.config.part("masks")
    for case in block_cases(folder):
        assert settings[case.name.split(".")[1]]["patches"] == case.wanted
        check_block_masks(case, smallest_of(folder, case, SMALLEST))
