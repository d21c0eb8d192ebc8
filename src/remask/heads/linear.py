"""One linear layer as a head."""

from jaxtyping import Float
from torch import Tensor, nn

from remask.heads.rows import cell_rows, rows_of
from remask.types import Features, Grid
from remask.views import Views


class Linear(nn.Module):
    """One linear layer on each token of a region (SimMIM, MaskFeat, BEiT). `cells_per_token` as in `TokenDecoder`."""

    def __init__(self, width_in: int, width_out: int, region: str = "masked", cells_per_token: Grid = (1, 1)) -> None:
        super().__init__()
        self.region, self.cells_per_token = region, cells_per_token
        self.predict = nn.Linear(width_in, width_out * cells_per_token[0] * cells_per_token[1])

    def forward(self, features: Features, views: Views) -> Float[Tensor, "VB R P"]:
        if self.cells_per_token == (1, 1):
            return self.predict(rows_of(features, views, self.region))
        return cell_rows(self.predict(features.tokens), views, self.region, self.cells_per_token)

    def describe(self) -> str:
        return "linear"
