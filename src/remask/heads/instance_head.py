"""The head of instance discrimination: one vector an image, projected and predicted (MIM-Refiner, 2402.10093)."""

from jaxtyping import Float
from torch import Tensor, nn

from remask.tokens import Pool, pooled
from remask.types import Features
from remask.views import Views


class InstanceHead(nn.Module):
    """LayerNorm and MLP to `width_out` (the projector), then another MLP of the same form (the predictor).

    hidden         widths between the layers of projector and predictor
    class_tokens   how many there are, of which the mean is taken
    # official: batch norm in both; here LayerNorm, so that what an image gives does not depend on the batch.
    """

    region = "pooled"

    def __init__(
        self,
        width_in: int,
        width_out: int = 256,
        hidden: tuple[int, int] = (2048, 4096),
        pool: Pool = "class",
        class_tokens: int = 1,
    ) -> None:
        super().__init__()
        self.width, self.pool, self.class_tokens = width_out, pool, class_tokens
        self.project = nn.Sequential(nn.LayerNorm(width_in, eps=1e-6), *_mlp(width_in, hidden[0], width_out))
        self.predict = nn.Sequential(*_mlp(width_out, hidden[1], width_out))

    def forward(self, features: Features, views: Views) -> Float[Tensor, "VB 1 P"]:
        return self.predict(self.project(pooled(features, self.pool, self.class_tokens)))

    def describe(self) -> str:
        of = "class token" if self.pool == "class" else "mean"
        return f"projector and predictor on the {of}, width {self.width}"


def _mlp(width_in: int, hidden: int, width_out: int) -> tuple[nn.Module, ...]:
    return nn.Linear(width_in, hidden), nn.LayerNorm(hidden, eps=1e-6), nn.GELU(), nn.Linear(hidden, width_out)


__all__ = ["InstanceHead"]
