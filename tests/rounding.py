"""What rounding decides in a trained network, and what it does not: for tests that compare two trainings."""

from collections.abc import Mapping

from torch import Tensor

BIAS = "qkv.bias"


def determined(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights that the loss decides: all but the key third of attention's biases, which is left out.

    A number that is added to all the scores of a query changes no softmax, so a key's bias changes no output and its
    gradient is zero but for rounding. AdamW divides a gradient by its own size: it moves such a number by up to the
    rate in each step, wherever rounding points, and that is another way on another processor.
    """
    return {name: query_and_value(value) if name.endswith(BIAS) else value for name, value in weights.items()}


def query_and_value(bias: Tensor) -> Tensor:
    """The thirds of an attention's bias [3·D] that are not the key's: [2, D]."""
    return bias.unflatten(0, (3, -1))[[0, 2]]


def keys(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `determined` leaves out, [D] for each attention."""
    return {name: value.unflatten(0, (3, -1))[1] for name, value in weights.items() if name.endswith(BIAS)}
