"""methods/fastmim.py: as published: a colour for masked pixels, a small decoder over all tokens, HOG, squared."""

import pytest
import torch
from torch import Tensor, nn

from remask.backbones import Backbone
from remask.backbones.hierarchical import create_hierarchical
from remask.backbones.masked_input import PixelsReplaced
from remask.backbones.vit import create_vit
from remask.build.pretraining import build_backbone
from remask.distances import squared
from remask.errors import UserError
from remask.heads import TokenDecoder
from remask.masking import Masking
from remask.methods import fastmim
from remask.recipe import load_recipe
from remask.targets import Hog, Pixels

MEAN, STD = [0.5] * 3, [0.25] * 3


def backbone(name: str = "vit_micro") -> Backbone:
    if name != "vit_micro":
        return create_hierarchical(name, (64, 96), MEAN, STD)
    return create_vit(name, (16, 24), MEAN, STD, overrides={"embed_dim": 32, "depth": 1, "num_heads": 2})


def pictures(size: tuple[int, int]) -> Tensor:
    return torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_as_published() -> None:
    method = fastmim(backbone(), Masking(0.75), Hog((4, 4), MEAN, STD, cell=2, norm="l2"))
    (branch,) = method.branches
    assert (type(method.sees), method.mask_unit, branch.region, branch.weight) == (
        PixelsReplaced,
        (4, 4),
        "masked",
        1.0,
    )
    assert branch.distance is squared
    head = branch.head
    assert isinstance(head, TokenDecoder)
    assert (head.width, len(head.blocks), head.cells_per_token, head.region) == (256, 1, (1, 1), "masked")
    assert (head.blocks[0].attn.num_heads, head.blocks[0].mlp.fc1.out_features) == (8, 1024)


def test_the_decoder_takes_every_number() -> None:
    (branch,) = fastmim(backbone(), Masking(0.75), Pixels((4, 4), MEAN, STD), None, 24, 2, 3, 2.0).branches
    head = branch.head
    assert isinstance(head, TokenDecoder)
    assert (head.width, len(head.blocks)) == (24, 2)
    assert (head.blocks[0].attn.num_heads, head.blocks[0].mlp.fc1.out_features) == (3, 48)


@pytest.mark.parametrize(("name", "eps"), [("vit_micro", 1e-6), ("pvt_v2_b0", 1e-5), ("cmt_micro", 1e-5)])
def test_norms_of_the_decoder_follow_the_network(name: str, eps: float) -> None:
    net = backbone(name)
    (branch,) = fastmim(net, Masking(0.5), Pixels(net.patch, MEAN, STD), None, 16, 2, 2).branches
    found = [m.eps for m in branch.head.modules() if isinstance(m, nn.LayerNorm)]  # type: ignore[attr-defined]
    assert found == [eps] * 5


def test_weights_at_the_start() -> None:
    """Linear layers Xavier-uniform with zero biases; the colour and the class token small."""
    torch.manual_seed(0)
    method = fastmim(backbone(), Masking(0.75), Pixels((4, 4), MEAN, STD), None, 64, 1, 2)
    for name, module in method.named_modules():
        if isinstance(module, nn.Linear):
            bound = (6 / (module.in_features + module.out_features)) ** 0.5
            assert 0.95 * bound < float(module.weight.detach().abs().max()) <= bound, name
            assert not module.bias.any(), name
    assert method.sees.mask_pixel is not None
    assert 0 < float(method.sees.mask_pixel.detach().abs().max()) < 0.1
    token = method.backbone.network.cls_token
    assert isinstance(token, Tensor)
    assert float(token.detach().std()) == pytest.approx(0.02, rel=0.5)


@pytest.mark.parametrize("unit", [None, (16, 16), (8, 32)])
def test_masks_finer_than_tokens(unit: tuple[int, int] | None) -> None:
    """A token of 32 px predicts each of its parts; the mean of squares, by a loop."""
    torch.manual_seed(0)
    net, images = backbone("cmt_micro"), pictures((64, 96))
    cut = unit or (32, 32)
    method = fastmim(net, Masking(0.5), Pixels(cut, MEAN, STD), unit, 16, 1, 2)
    views = method.draw(images, torch.Generator().manual_seed(0))
    assert views.grid == (64 // cut[0], 96 // cut[1])
    loss = method(images, views)["total"]
    head, features = method.branches[0].head, method.encode(images, views)[-1]
    assert isinstance(head, TokenDecoder)
    long = head.predict(head.norm(head.blocks[0](head.embed(features.tokens))))
    (down, right), columns, errors = (32 // cut[0], 32 // cut[1]), views.grid[1], []
    assert long.shape == (2, 6, down * right * cut[0] * cut[1] * 3)
    wanted = method.branches[0].target(images, views)
    for b in range(2):
        for i in views.mask[0, b].nonzero().flatten().tolist():
            row, column = divmod(i, columns)
            parts = long[b, row // down * 3 + column // right].unflatten(0, (down * right, -1))
            errors.append((parts[row % down * right + column % right] - wanted[b, i]).square().mean())
    assert loss.item() == pytest.approx(torch.stack(errors).mean().item(), rel=1e-4)


@pytest.mark.parametrize(
    ("method", "line"),
    [
        ("fastmim", r"resnet18 has its own sizes: leave out backbone.width and .*depth and"),
        ("mae", "method.name mae drops or replaces masked tokens, and resnet18 can do neither; choose method fastmim"),
    ],
)
def test_a_network_that_only_fastmim_trains(method: str, line: str) -> None:
    keys = {"backbone.name": "resnet18", "backbone.patch_size": "off", "method.name": method}
    recipe = load_recipe("fastmim-vit-micro", {**keys, "method.target": "hog-l2"}, environment={})
    with pytest.raises(UserError, match=line):
        build_backbone(recipe)
