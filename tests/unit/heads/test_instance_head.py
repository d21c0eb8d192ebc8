"""heads/instance_head.py: what is pooled, and that an image's row does not depend on the batch."""

import torch
from torch import Generator

from remask.heads import InstanceHead
from remask.types import Features
from remask.views import Views

VIEWS = Views(torch.zeros(1, 3, 4, dtype=torch.bool), (2, 2), 0)


def features() -> Features:
    random = Generator().manual_seed(0)
    return Features(torch.randn(3, 2, 6, generator=random), torch.randn(3, 4, 6, generator=random))


def test_the_class_token_or_the_mean_is_projected_and_predicted() -> None:
    torch.manual_seed(0)
    x = features()
    for pool, row in (("class", x.prefix[:, 0]), ("mean", x.tokens.mean(1))):
        head = InstanceHead(6, 5, (8, 9), pool)  # type: ignore[arg-type]
        found = head(x, VIEWS)
        assert found.shape == (3, 1, 5)
        assert torch.allclose(found[:, 0], head.predict(head.project(row)))


def test_rows_do_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    head, x = InstanceHead(6, 5, (8, 9)).train(), features()
    alone = head(Features(x.prefix[1:2], x.tokens[1:2]), VIEWS)
    assert torch.allclose(head(x, VIEWS)[1:2], alone, atol=1e-6)


def test_widths() -> None:
    head = InstanceHead(6, 5, (8, 9))
    assert [(m.in_features, m.out_features) for m in head.modules() if isinstance(m, torch.nn.Linear)] == [
        (6, 8), (8, 5), (5, 9), (9, 5)
    ]  # fmt: skip
    assert head.describe() == "projector and predictor on the class token, width 5"
