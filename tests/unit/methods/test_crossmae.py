"""methods/crossmae.py and the decoders of MAE, ConvMAE and DMAE: what they read, predict and cost."""

import pytest
import torch
from torch import Generator, Tensor

from remask.backbones.convvit import create_convvit
from remask.backbones.vit import ViT, create_vit
from remask.distances import squared
from remask.errors import UserError, in_recipe
from remask.heads import CrossDecoder, Decoder, FusedDecoder
from remask.masking import Masking
from remask.method import Method
from remask.methods import convmae, crossmae, dm, jd, mae
from remask.methods.decoders import every_layer
from remask.tokens import patchify, sincos_positions
from remask.training.cost import forward_gflops
from remask.types import END, INPUT, Features
from tests.unit.heads.test_cross_decoder import textbook

MEAN, STD = [0.5] * 3, [0.25] * 3


def vit() -> ViT:
    torch.manual_seed(0)
    overrides = {"embed_dim": 12, "depth": 3, "num_heads": 2, "patch_size": 4}
    return create_vit("vit_micro", (16, 24), MEAN, STD, overrides=overrides)


def images(count: int = 3) -> Tensor:
    return torch.randint(0, 256, (count, 3, 16, 24), dtype=torch.uint8, generator=Generator().manual_seed(1))


def test_it_is_its_row_of_the_table() -> None:
    method = crossmae(vit(), 0.75, width=16, heads=4)
    (branch,) = method.branches
    assert (branch.name, branch.region, branch.distance) == ("masked", "masked", squared)
    assert branch.layer == branch.layers == (INPUT, 0, 1, 2)
    assert isinstance(branch.head, CrossDecoder)
    assert (branch.head.width, len(branch.head.blocks)) == (16, 12)
    assert "cross decoder of 12 blocks, width 16 of 4 layers ; pixels, normalised per patch" in str(method)
    assert crossmae(vit(), Masking(0.75, predicted=0.25), width=16, heads=4).branches[0].region == "predicted"


def test_the_loss_is_the_papers_by_a_plain_forward() -> None:
    """γ = p with all maps: timm's blocks on the visible tokens, Eq. 1 and the blocks written out, normalised pixels."""
    method = crossmae(vit(), 0.6, width=16, depth=2, heads=4)
    batch = images()
    views = method.draw(batch, Generator().manual_seed(2))
    network, head = method.backbone.network, method.branches[0].head
    x = (batch / 255 - 0.5) / 0.25
    tokens = network.patch_embed(x) + sincos_positions((4, 6), 12)
    visible = torch.stack([tokens[b][~views.mask[0, b]] for b in range(3)])
    x = torch.cat([network.cls_token.expand(3, 1, 12), visible], dim=1)
    features: list[Tensor] = []
    for block in [None, *network.blocks]:
        x = x if block is None else block(x)
        features.append(x)
    predicted = textbook(head, [Features(f[:, :1], f[:, 1:]) for f in features], views.masked)  # type: ignore[arg-type]
    pixels = patchify(batch, (4, 4)).double() / 255
    wanted = (pixels - pixels.mean(-1, keepdim=True)) / (pixels.var(-1, keepdim=True) / 0.25**2 + 1e-6).sqrt() / 0.25
    wanted = torch.stack([wanted[b][views.mask[0, b]] for b in range(3)])
    expected = ((predicted - wanted) ** 2).mean()
    assert method(batch, views)["total"].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("predicted", ["all", "once", 0.25])
def test_disjoint_views_and_joint_distillation_plug_in(predicted: str | float) -> None:
    base = crossmae(vit(), Masking(0.5, predicted=predicted), width=16, depth=1, heads=4)  # type: ignore[arg-type]
    method = jd(dm(base), width=8)
    views = method.draw(images(), Generator().manual_seed(0))
    assert views.predictions == {"all": 12, "once": 12, 0.25: 6}[predicted]
    losses = method(images(), views)
    assert [*losses] == ["masked", "visible", "total"]
    losses["total"].backward()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad), "JD reads the end, with its norm"


def test_once_under_dm_the_two_views_predict_every_token_in_half_the_rows() -> None:
    method = dm(crossmae(vit(), Masking(0.75, predicted="once"), width=16, depth=1, heads=4))
    views = method.draw(images(), Generator().manual_seed(0))
    assert views.predict is not None
    assert (views.predict.sum(0) == 1).all()
    assert (views.hidden, views.predictions, views.prediction_rate) == (18, 12, 1.0)
    prediction, wanted = method.pairs(images(), views)["masked"]
    assert prediction.shape[:2] == wanted.shape[:2] == (6, 12)


def test_layers_may_be_chosen_and_mae_may_fuse_them() -> None:
    one = crossmae(vit(), 0.75, width=16, heads=4, depth=1, layers=[1])
    assert one.branches[0].layer == 1
    fused = mae(vit(), 0.75, width=16, heads=4, depth=1, layers=[0, 2])
    assert isinstance(fused.branches[0].head, FusedDecoder)
    assert fused.branches[0].layers == (0, 2)
    assert isinstance(mae(vit(), 0.75, width=16, heads=4, depth=1).branches[0].head, Decoder)
    for method in (one, fused):
        assert torch.isfinite(method(images(), generator=Generator().manual_seed(0))["total"])


def test_input_alone_runs_no_block() -> None:
    backbone = vit()
    ran: list[int] = []
    for i, block in enumerate(backbone.network.blocks):
        block.register_forward_pre_hook(lambda *_, i=i: ran.append(i))
    out = backbone.encode(backbone.embed(images()), layers=(INPUT,))
    assert list(out) == [INPUT]
    assert not ran
    assert list(backbone.encode(backbone.embed(images()), layers=(INPUT, 1))) == [INPUT, 1]
    assert ran == [0, 1]


@pytest.mark.parametrize("layers", [[3], [-3], [0, 0], []])
def test_layers_that_do_not_exist_are_refused(layers: list[int]) -> None:
    for method in (mae, crossmae):
        with pytest.raises(UserError, match=r"^layers: .*blocks 0 to 2, -2, the input, before them"):
            method(vit(), 0.75, width=16, heads=4, depth=1, layers=layers)
    with in_recipe(), pytest.raises(UserError, match=r"^method.decoder_layers: .*blocks 0 to 2, input before them"):
        crossmae(vit(), 0.75, width=16, heads=4, depth=1, layers=layers)


def test_a_convvit_reads_its_fusion_in_place_of_the_last_block() -> None:
    torch.manual_seed(0)
    overrides = {"dims": (16, 24, 32), "depths": (1, 1, 2), "num_heads": 2}
    backbone = create_convvit("convvit_micro", (16, 24), MEAN, STD, overrides=overrides)
    method = convmae(backbone, 0.5, width=16, depth=2, heads=4, decoder="cross")
    assert every_layer(backbone) == method.branches[0].layers == (INPUT, 0, END)
    method(images(), generator=Generator().manual_seed(0))["total"].backward()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)
    with pytest.raises(UserError, match="use convmae"):
        crossmae(backbone, 0.5)


def base(**settings: object) -> Method:
    backbone = create_vit("vit_base_patch16_224", (224, 224), MEAN, STD)
    return mae(backbone, settings.pop("masking", 0.75), **settings)  # type: ignore[arg-type]


def test_forward_flops_of_vit_b() -> None:
    """The bars of the issue: at γ .75 and 8 blocks .83, at γ .25 and 8 blocks .61, at γ .75 and 1 block .52."""
    with torch.device("meta"):
        image = torch.zeros(1, 3, 224, 224, dtype=torch.uint8)

        def cost(**settings: object) -> float:
            method = base(**settings)
            return forward_gflops(lambda: method(image))

        plain, quarter = cost(), Masking(0.75, predicted=0.25)
        assert cost(decoder="cross") / plain <= 0.83
        assert cost(decoder="cross", masking=quarter) / plain <= 0.61
        assert cost(decoder="cross", depth=1) / plain <= 0.52
