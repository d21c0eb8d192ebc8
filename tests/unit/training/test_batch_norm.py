"""Batch norm over all processes: torch's numbers in one, forward, backward and running statistics."""

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from remask.training.batch_norm import GlobalBatchNorm, synchronised


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (nn.BatchNorm1d, (6, 5)),
        (nn.BatchNorm1d, (6, 5, 7)),
        (nn.BatchNorm2d, (6, 5, 3, 4)),
        (BatchNormAct2d, (6, 5, 3, 4)),
    ],
)
def test_it_is_torchs_norm(make: type[nn.Module], shape: tuple[int, ...], momentum: float | None) -> None:
    torch.manual_seed(0)
    layers = [nn.Sequential(make(5)), synchronised(nn.Sequential(make(5)))]
    assert type(layers[1][0]) is not make
    assert isinstance(layers[1][0], GlobalBatchNorm if make is not BatchNormAct2d else BatchNormAct2d)
    for layer in layers:
        layer[0].momentum = momentum
    found = []
    for layer in layers:
        torch.manual_seed(1)
        for p in layer.parameters():
            nn.init.normal_(p)
        for _ in range(3):
            x = (3 + torch.randn(shape)).requires_grad_()
            y = layer(x)
            layer.zero_grad()
            (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
        found.append([y, x.grad, *(p.grad for p in layer.parameters()), *layer.buffers(), layer.eval()(x)])
    for own, other in zip(*found, strict=True):
        assert torch.allclose(own, other, atol=1e-5), make.__name__


def test_a_model_without_batch_norm_stays() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    assert synchronised(model) is model
