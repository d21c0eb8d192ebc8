"""The shapes in the signatures are true: in these tests a call that breaks one is an error."""

import importlib

import pytest
import torch
from jaxtyping import TypeCheckError

from tests.architecture.source import modules


def test_modules_import_under_the_checker() -> None:
    names = [module.name for module in modules()]
    assert [importlib.import_module(name).__name__ for name in names] == names


def test_a_wrong_shape_is_an_error() -> None:
    from remask.tokens import take

    tokens, ids = torch.zeros(2, 3, 4), torch.zeros(2, 1, dtype=torch.int64)
    assert take(tokens, ids).shape == (2, 1, 4)
    with pytest.raises(TypeCheckError):
        take(tokens, ids.new_zeros(3, 1))
    with pytest.raises(TypeCheckError):
        take(tokens, ids.float())


def test_a_wrong_field_is_an_error() -> None:
    from remask.masking import Masking

    with pytest.raises(TypeCheckError):
        Masking("0.75")  # type: ignore[arg-type]
