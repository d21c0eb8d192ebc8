"""methods/umae.py: a branch without a target on any method, over pairs of pictures in each view."""

import pytest
import torch
from torch import Generator, Tensor

from remask.backbones.swin import create_swin
from remask.backbones.vit import ViT, create_vit
from remask.errors import UserError
from remask.methods import dm, jd, mae, simmim, umae

MEAN, STD = [0.5] * 3, [0.25] * 3


def vit(**overrides: object) -> ViT:
    torch.manual_seed(0)
    sizes = {"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 4, **overrides}
    return create_vit("vit_micro", (16, 16), MEAN, STD, overrides=sizes)  # type: ignore[arg-type]


def images(count: int = 4) -> Tensor:
    return torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=Generator().manual_seed(1))


@pytest.mark.parametrize("of", ["mean", "class"])
def test_the_term_by_double_loops(of: str) -> None:
    """Of each pair of different pictures in the same view; the others' losses stay as they were."""
    plain = dm(mae(vit(), 0.5, width=16, heads=2), 2)
    method = umae(plain, 0.3, of)  # type: ignore[arg-type]
    views = method.draw(images(), Generator().manual_seed(0))
    losses, before = method(images(), views), plain(images(), views)
    features = method.encode(images(), views)[-1]
    rows = features.tokens.mean(1) if of == "mean" else features.prefix[:, 0]
    squares = []
    for v in range(2):
        for i in range(4):
            for j in range(4):
                a, b = rows[v * 4 + i], rows[v * 4 + j]
                squares += [(a @ b / (a.norm() * b.norm())).item() ** 2] if i != j else []
    assert losses["uniformity"].item() == pytest.approx(sum(squares) / 24, rel=1e-5)
    assert torch.equal(losses["masked"], before["masked"])
    assert losses["total"].item() == pytest.approx(before["total"].item() + 0.3 * losses["uniformity"].item())


def test_it_is_printed_and_says_that_batches_are_not_cut() -> None:
    method = umae(dm(mae(vit(), 0.5), 2))
    line = "0.01 · mean over 2 views, all pairs of pictures each, of uniformity( mean )"
    assert line in str(method)
    assert (method.across_batch, mae(vit(), 0.5).across_batch) == (True, False)
    assert "uniformity( class token )" in str(umae(mae(vit(), 0.5), of="class"))


@pytest.mark.parametrize("plug", [jd, lambda method: dm(method, 2)])
def test_other_plug_ins_go_on_top(plug: object) -> None:
    method = plug(umae(simmim(vit(), 0.5)))  # type: ignore[operator]
    assert "uniformity" in method(images(), generator=Generator().manual_seed(0))


def test_it_makes_features_of_pictures_less_alike() -> None:
    method = umae(mae(vit(), 0.5, width=16, heads=2), 1.0)
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], 1e-2)
    views = method.draw(images(), Generator().manual_seed(0))
    first = method(images(), views)["uniformity"].item()
    for _ in range(20):
        method(images(), views)["total"].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert method(images(), views)["uniformity"].item() < 0.8 * first


def test_a_class_token_must_be_there() -> None:
    torch.manual_seed(0)
    swin = create_swin("swin_micro", (32, 32), MEAN, STD)
    with pytest.raises(UserError, match=r'no class token whose uniformity could be asked for: give of="mean"'):
        umae(simmim(swin, 0.5), of="class")
    assert umae(simmim(swin, 0.5)).branches[-1].name == "uniformity"


def test_it_is_a_plug_in_once() -> None:
    with pytest.raises(UserError, match="the method has this term already"):
        umae(umae(mae(vit(), width=16, heads=2)))
