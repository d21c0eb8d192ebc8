"""What rounding decides in a trained network, and what it does not: for tests that compare two trainings."""

from collections.abc import Mapping

from torch import Tensor, nn

BIAS, KEY, CROSS = "qkv.bias", "attn.k.bias", "attn.kv.bias"


def determined(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights that the loss decides: all but the key's part of attention's biases, which is left out.

    A number that is added to all the scores of a query changes no softmax, so a key's bias changes no output and its
    gradient is zero but for rounding. AdamW divides a gradient by its own size: it moves such a number by up to the
    rate in each step, wherever rounding points, and that is another way on another processor.
    """
    decided = {name: value for name, value in weights.items() if not name.endswith(KEY)}
    decided |= {name: value.chunk(2)[1] for name, value in decided.items() if name.endswith(CROSS)}
    return {name: query_and_value(value) if name.endswith(BIAS) else value for name, value in decided.items()}


def query_and_value(bias: Tensor) -> Tensor:
    """The thirds of an attention's bias [3·D] that are not the key's: [2, D]."""
    return bias.unflatten(0, (3, -1))[[0, 2]]


def keys(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `determined` leaves out, [D] for each attention."""
    thirds = {name: value.unflatten(0, (3, -1))[1] for name, value in weights.items() if name.endswith(BIAS)}
    halves = {name: value.chunk(2)[0] for name, value in weights.items() if name.endswith(CROSS)}
    return {**thirds, **halves, **{name: value for name, value in weights.items() if name.endswith(KEY)}}


def reached(model: nn.Module) -> set[str]:
    """Names of the parameters with a gradient that is not zero; of a key's bias, with one at all."""
    given = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name for name, gradient in given.items() if name.endswith(KEY) or bool(gradient.any())}
