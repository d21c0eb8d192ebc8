"""The attentive probe's head: one learned query that attends to frozen tokens (CAE, 2202.03026), and a linear layer."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from remask.errors import UserError


class AttentiveHead(nn.Module):
    """One cross-attention with a learned query, without output projection, then BatchNorm without affine and linear.

    The computation is reordered: the query is multiplied by the keys' matrix once, and the attended mean by the values'
    matrix once, instead of every token by both. The result equals that of multi-head attention.
    """

    def __init__(self, width: int, classes: int, heads: int) -> None:
        super().__init__()
        inner = width // heads
        self.query = nn.Parameter(0.02 * torch.randn(heads, inner))
        self.key, self.value = (nn.Parameter(torch.empty(heads, inner, width)) for _ in range(2))
        self.value_bias = nn.Parameter(torch.zeros(width))
        for matrix in (self.key, self.value):
            nn.init.xavier_uniform_(matrix.data.view(width, width))
        self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        self.linear = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B classes"]:
        return self.linear(self.norm(self.pool(tokens)))

    def pool(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B D"]:
        queries = torch.einsum("hd,hdD->hD", self.query, self.key) / math.sqrt(self.query.shape[1])
        weights = (tokens @ queries.T).softmax(1)  # softmax cancels a bias of the keys
        attended = weights.transpose(1, 2) @ tokens
        return torch.einsum("bhD,hdD->bhd", attended, self.value).flatten(1) + self.value_bias


def heads_of(width: int, heads: int | None = None) -> int:
    """Number of heads; None: the largest up to max(4, width / 64) that divides the width.

    Raises UserError for a number that does not divide the width.
    """
    if heads is None:
        return next(count for count in range(max(4, width // 64), 0, -1) if width % count == 0)
    if heads < 1 or width % heads:
        raise UserError(f"{heads} heads do not divide the width {width} of the tokens; choose another number")
    return heads


__all__ = ["AttentiveHead", "heads_of"]
