"""evaluation/features.py: what is pooled, what is left as it was, what pixels become."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from remask.backbones.vit import ViT, create_vit
from remask.errors import UserError
from remask.evaluation.probing.features import extract, pixels


class Some(NamedTuple):
    images: Tensor
    labels: Tensor | None


def network(name: str = "vit_micro", drop_path: float = 0.0) -> ViT:
    torch.manual_seed(0)
    sizes = {"embed_dim": 16, "depth": 2, "num_heads": 2}
    return create_vit(name, (16, 16), [0.5] * 3, [0.25] * 3, overrides=sizes, drop_path=drop_path)


def batches(count: int = 3, size: int = 16, labelled: bool = True) -> list[Some]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, 4, 3, size, size), generator=generator, dtype=torch.uint8)
    return [Some(part, torch.arange(4) % 2 if labelled else None) for part in images]


def test_mean_excludes_the_prefix_and_keeps_order() -> None:
    backbone, given = network(), batches()
    x, y = extract(backbone, given)
    backbone.eval()
    with torch.no_grad():
        direct = torch.cat([backbone(batch.images).tokens.mean(1) for batch in given])
    assert x.shape == (12, 16)
    torch.testing.assert_close(x, direct)
    assert y is not None
    assert y.tolist() == [0, 1, 0, 1] * 3


def test_class_token_and_layer() -> None:
    backbone, given = network().eval(), batches(1)
    with torch.no_grad():
        at_block = backbone.encode(backbone.embed(given[0].images), layers=(0,))[0]
    x, _ = extract(backbone, given, pool="cls", layer=0)
    torch.testing.assert_close(x, at_block.prefix[:, 0])


def test_class_token_that_is_not_there() -> None:
    backbone = network()
    backbone.prefix = 0
    with pytest.raises(UserError, match='pool "mean"'):
        extract(backbone, batches(1), pool="cls")


def test_evaluation_mode_is_certain_and_every_mode_restored() -> None:
    """Drop path would make two passes differ; a part frozen in evaluation mode stays there."""
    backbone = network(drop_path=0.5).train()
    backbone.network.blocks[0].eval()
    modes = [module.training for module in backbone.modules()]
    first, _ = extract(backbone, batches())
    second, _ = extract(backbone, batches())
    assert torch.equal(first, second)
    assert [module.training for module in backbone.modules()] == modes
    assert any(modes)
    assert not all(modes)


def test_modes_are_restored_after_an_error() -> None:
    backbone = network().train()
    with pytest.raises(UserError):
        extract(backbone, batches(size=15))
    assert backbone.training


def test_features_can_be_learned_from() -> None:
    """Tensors of inference mode could not."""
    x, _ = extract(network(), batches(1))
    nn.Linear(16, 2)(x).sum().backward()


def test_no_labels_and_no_images() -> None:
    assert extract(network(), batches(labelled=False))[1] is None
    with pytest.raises(UserError, match="no image"):
        extract(network(), [])


def test_pixels_of_a_small_image_are_itself() -> None:
    given = batches(1)
    x, _ = pixels(given)
    torch.testing.assert_close(x, given[0].images.flatten(1) / 255)


@pytest.mark.parametrize(
    ("shape", "side", "width"),
    [((3, 32, 32), None, 3072), ((3, 64, 64), None, 3072), ((1, 96, 160), None, 42 * 71), ((3, 32, 32), 8, 192)],
)
def test_pixels_are_averaged_down(shape: tuple[int, int, int], side: int | None, width: int) -> None:
    image = torch.randint(0, 256, (2, *shape), dtype=torch.uint8)
    x, _ = pixels([Some(image, None)], side)
    assert x.shape == (2, width)
    torch.testing.assert_close(x.mean(), image.float().mean() / 255, atol=0.02, rtol=0)


def test_of_several_class_tokens_the_mean_is_read() -> None:
    """Of registers that are none, the first token alone."""
    sizes = {"embed_dim": 16, "depth": 2, "num_heads": 2, "reg_tokens": 2}
    given = batches(1)
    for count in (None, 3):
        torch.manual_seed(0)
        backbone = create_vit("vit_micro", (16, 16), [0.5] * 3, [0.25] * 3, overrides=sizes, class_tokens=count)
        torch.nn.init.normal_(backbone.network.reg_token)
        with torch.no_grad():
            prefix = backbone.eval()(given[0].images).prefix
        x, _ = extract(backbone, given, pool="cls")
        assert prefix.shape[1] == 3
        torch.testing.assert_close(x, prefix.mean(1) if count else prefix[:, 0])
    assert not torch.allclose(prefix.mean(1), prefix[:, 0], atol=1e-3)
