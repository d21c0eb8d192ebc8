"""Names of devices are refused early exactly where torch refuses them."""

import pytest

from remask.errors import UserError
from remask.training.devices import KINDS, check_device
from remask.training.runtime import resolve


@pytest.mark.parametrize("name", [None, "auto", "cuda:3", "mps", "cpu:0", *KINDS])
def test_what_torch_may_know_is_not_refused(name: str | None) -> None:
    check_device(name)


@pytest.mark.parametrize("name", ["gpu", "tpu", "", "cuda3", "CPU"])
def test_what_torch_does_not_know_is_refused_in_the_same_words(name: str) -> None:
    lines = []
    for refuse in (check_device, lambda name: resolve(name, "fp32")):
        with pytest.raises(UserError) as caught:
            refuse(name)
        lines.append(str(caught.value))
    assert lines[0] == lines[1] == f"there is no device {name!r}; choose auto, cpu, cuda, cuda:N or mps"
