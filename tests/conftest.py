"""What every test shares: shapes checked on every call, few threads, no network, the reference data beside the repo."""

import gc
import os
import signal
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from jaxtyping import install_import_hook

import tests.shapes  # the hook looks its checker up by name

# Before `remask` is first imported: its annotated shapes and types are then checked on every call in this process.
install_import_hook("remask", f"{tests.shapes.__name__}.check")

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch is loaded
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    # a shell has what it runs in the background ignore Ctrl-C, and all that tests start would; they send it
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]


LONG = (
    "tests/e2e/test_machine_faults.py", "tests/faults/test_not_finite.py", "tests/e2e/test_pretrain.py",
    "tests/e2e/test_processes.py", "tests/faults/test_soak.py", "tests/fuzz/test_fuzz.py",
    "tests/unit/test_benchmarks.py", "tests/unit/training/test_compile.py", "tests/e2e/test_demo.py",
    "tests/architecture/test_readme.py", "tests/faults/", "tests/e2e/", "tests/contract/", "tests/golden/",
    "tests/unit/planning/", "tests/unit/training/",
)  # fmt: skip
"""Files and folders whose tests take longest, in the order in which they begin: none of them is left for the end, where
one worker would run it and the others wait."""


def rank(test: str) -> int:
    """The place of a test's file in LONG; behind it all others."""
    return next((number for number, begin in enumerate(LONG) if test.startswith(begin)), len(LONG))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; what is in a file keeps its order."""
    items.sort(key=lambda item: rank(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Files go to the workers whole and in their order, golden tests all to one: the last counts the others."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False  # which would leave files of few tests, however long, for the end

    class Files(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            folder = "tests/golden/"
            return folder if nodeid.startswith(folder) else super()._split_scope(nodeid)

    return Files(config, log)


@pytest.fixture(scope="session", autouse=True)
def few_threads() -> Iterator[None]:
    """One thread: sums come out alike on every machine, and small tensors are faster."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def nothing_drawn_without_memory() -> Iterator[None]:
    """First weights on "meta" are no numbers: torch takes longer to work out their shapes than to draw real ones."""
    import timm.layers.weight_init
    import torch

    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((timm.layers.weight_init, "_trunc_normal_"), (torch.nn.init, "_no_grad_trunc_normal_")):
            patch.setattr(module, name, partial(_drawn, getattr(module, name)))
        yield


def _drawn(draw: Any, tensor: Any, *given: Any, **named: Any) -> Any:
    return tensor if tensor.is_meta else draw(tensor, *given, **named)


@pytest.fixture(scope="session", autouse=True)
def frozen_modules() -> Iterator[None]:
    """What the imports of the tests left, close to a million objects, is not looked through by each collection."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()  # else extension modules report at exit that their objects were leaked


@pytest.fixture(scope="session")
def repo() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The reference data beside the repository; a test that needs it is skipped where it is absent."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip("../shared is absent")
    return path
