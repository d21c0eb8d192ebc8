"""LocalMIM's decoders (arXiv 2303.05251): MAE's behind a norm of its own, for cells finer or coarser than tokens."""

from jaxtyping import Float
from torch import Tensor, nn

from remask.heads.decoder import Decoder
from remask.tokens import coarse_ids, take
from remask.types import Features, Grid
from remask.views import Views


class LocalDecoder(nn.Module):
    """A decoder that reads one layer of the backbone.

    norm     of the layer's features, for a layer before the backbone's own final norm; None behind it
    pooled   rows and columns of tokens whose mean predicts the larger patch they form; each of its masked tokens then
             has that prediction
    """

    def __init__(self, norm: nn.LayerNorm | None, decoder: Decoder, pooled: Grid = (1, 1)) -> None:
        super().__init__()
        self.norm, self.decoder, self.pooled, self.region = norm, decoder, pooled, decoder.region

    def forward(self, features: Features, views: Views) -> Float[Tensor, "VB M P"]:
        if self.norm is not None:
            features = Features(self.norm(features.prefix), self.norm(features.tokens))
        if self.pooled == (1, 1):
            return self.decoder(features, views)
        (rows, columns), (tall, wide) = views.grid, self.pooled
        patches = coarse_ids(views.grid, self.pooled, features.tokens.device)
        tokens = self.decoder.grid_tokens(features, views)
        mean = tokens.unflatten(1, (rows // tall, tall, columns // wide, wide)).mean((2, 4)).flatten(1, 2)
        return take(self.decoder.predict(mean), patches[views.masked])

    def describe(self) -> str:
        pooled = "" if self.pooled == (1, 1) else ", means of {}×{} tokens".format(*self.pooled)
        return f"{self.decoder.describe()}{pooled}"


class CellLayer(nn.Module):
    """From a token to the values of its 2ⁿ × 2ⁿ cells: n steps, each from a square to four of half the width.

    A step is LocalMIM's transposed convolution of side and stride 2, as a linear layer; LayerNorm and GELU stand
    between two of them, and one linear layer behind the last is the same for all cells.
    values_first   a token's vector runs value, cell row, cell column; otherwise cell row, cell column, value
    """

    def __init__(self, width: int, steps: int, values: int, values_first: bool) -> None:
        super().__init__()
        widths = [width >> i for i in range(steps + 1)]
        self.steps = nn.ModuleList(nn.Linear(widths[i], 4 * widths[i + 1]) for i in range(steps))
        self.norms = nn.ModuleList(nn.LayerNorm(inner, eps=1e-6) for inner in widths[1:steps])
        self.values, self.values_first = nn.Linear(widths[-1], values), values_first

    def forward(self, tokens: Float[Tensor, "R K d"]) -> Float[Tensor, "R K P"]:
        x = tokens[:, :, None, None]
        for i, step in enumerate(self.steps):
            x = nn.functional.gelu(self.norms[i - 1](x)) if i else x
            x = step(x).unflatten(-1, (2, 2, -1)).transpose(3, 4).flatten(4, 5).flatten(2, 3)
        x = self.values(x)
        return (x.movedim(-1, 2) if self.values_first else x).flatten(2)


__all__ = ["CellLayer", "LocalDecoder"]
