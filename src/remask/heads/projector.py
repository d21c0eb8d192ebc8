"""Heads on single tokens: DMJD's projector and predictor, and the projection of a student's tokens to a teacher's."""

from typing import Literal

from jaxtyping import Float
from timm.layers import Mlp
from torch import Tensor, nn

from remask.heads.rows import cell_rows, rows_of
from remask.types import Features, Grid
from remask.views import Views


class Projector(nn.Module):
    """DMJD's visible distillation branch (2301.00230, section III-C): a projector and a one-layer predictor.

    Three Linear + LayerNorm with GELU between them, the last norm without affine, then one Linear. Token by token:
    each visible token predicts its own target (Eq. 5). `layers` is 1 for the linear projector of Table V.
    `cells_per_token` as in `TokenDecoder`.
    # official: predictions in shuffled order meet targets in raster order; here aligned, see docs/decisions/0001.
    """

    def __init__(
        self,
        width_in: int,
        width_out: int,
        width: int = 512,
        region: str = "visible",
        layers: int = 3,
        cells_per_token: Grid = (1, 1),
    ) -> None:
        super().__init__()
        self.region, self.width, self.layers, self.cells_per_token = region, width, layers, cells_per_token
        modules: list[nn.Module] = []
        for i in range(layers - 1):
            modules += [nn.Linear(width if i else width_in, width), nn.LayerNorm(width, eps=1e-6), nn.GELU()]
        last = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.project = nn.Sequential(*modules, nn.Linear(width if layers > 1 else width_in, width), last)
        self.predict = nn.Linear(width, width_out * cells_per_token[0] * cells_per_token[1])

    def forward(self, features: Features, views: Views) -> Float[Tensor, "VB R P"]:
        if self.cells_per_token == (1, 1):
            return self.predict(self.project(rows_of(features, views, self.region)))
        return cell_rows(self.predict(self.project(features.tokens)), views, self.region, self.cells_per_token)

    def describe(self) -> str:
        return f"projector of {self.layers} layer{'s' * (self.layers > 1)}, width {self.width}, and predictor"


class ProjectionHead(nn.Module):
    """A projection of a student's tokens, one by one, to a teacher's width (DMAE 2208.12256, MOMA 2302.02089).

    kind    "linear": one layer · "mlp": two of the teacher's width with GELU between them
    region  "encoded": prefix tokens, then the visible ones
    """

    def __init__(
        self, width_in: int, width_out: int, kind: Literal["linear", "mlp"] = "linear", region: str = "encoded"
    ) -> None:
        super().__init__()
        self.kind, self.region = kind, region
        linear = kind == "linear"
        self.project = nn.Linear(width_in, width_out) if linear else Mlp(width_in, width_out, width_out)

    def forward(self, features: Features, views: Views) -> Float[Tensor, "VB R P"]:
        return self.project(rows_of(features, views, self.region))

    def describe(self) -> str:
        return "linear" if self.kind == "linear" else "MLP of 2 layers"
