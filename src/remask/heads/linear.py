"""One linear layer as a head."""

from jaxtyping import Float
from torch import Tensor, nn

from remask.heads.rows import finer_rows, rows_of
from remask.types import Features, Grid
from remask.views import Views


class Linear(nn.Module):
    """One linear layer on each token of a region (SimMIM, MaskFeat, BEiT). `fine` as in `TokenDecoder`."""

    def __init__(self, width_in: int, width_out: int, region: str = "masked", fine: Grid = (1, 1)) -> None:
        super().__init__()
        self.region, self.fine = region, fine
        self.predict = nn.Linear(width_in, width_out * fine[0] * fine[1])

    def forward(self, features: Features, views: Views) -> Float[Tensor, "VB R P"]:
        if self.fine == (1, 1):
            return self.predict(rows_of(features, views, self.region))
        return finer_rows(self.predict(features.tokens), views, self.region, self.fine)

    def describe(self) -> str:
        return "linear"
