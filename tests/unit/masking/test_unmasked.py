"""masking/unmasked.py: nothing is hidden, and the numbers of it."""

import pytest
import torch
from torch import Generator

from remask.errors import UserError
from remask.masking.unmasked import Unmasked


def test_nothing_is_hidden_and_nothing_drawn() -> None:
    random = Generator().manual_seed(0)
    before = random.get_state()
    views = Unmasked()(6, (2, 3), random, slice(1, 4))
    assert views.mask.shape == (1, 3, 6)
    assert not views.mask.any()
    assert views.ids("visible").tolist() == [list(range(6))] * 3
    assert torch.equal(random.get_state(), before)


def test_counts_and_words() -> None:
    counts = Unmasked().counts((2, 3))
    assert (counts.hidden, counts.predicted, counts.tokens, counts.per_view, counts.gain) == (0, 0, 6, 0, 1.0)
    assert Unmasked().describe((2, 3)) == "nothing hidden"


@pytest.mark.parametrize("wrong", [{"ratio": 0.5}, {"views": 2}])
def test_there_is_one_view_that_hides_nothing(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match="whole images have one view that hides nothing"):
        Unmasked(**wrong)  # type: ignore[arg-type]
