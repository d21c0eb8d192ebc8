"""Which process of a run died or is stuck, by the signs of life in a store that they share."""

import subprocess
import sys
import threading
import time

import pytest
import torch.distributed as dist

from remask.training import pulse
from remask.training.pulse import Pulse, from_exchange


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "BEAT", 0.05)


def test_the_silent_one_is_named_with_its_last_step() -> None:
    store = dist.HashStore()
    one, two, three = (Pulse(store, rank, 3) for rank in range(3))
    one.step = 7
    time.sleep(0.2)
    assert one.silent(0.3) == []
    two.end()
    time.sleep(0.1)
    assert one.silent(0.3) == three.silent(0.3) == [1]
    error = RuntimeError("[pair.cc:544] gloo: Connection closed by peer [127.0.0.1]:4444")
    error.add_note("go on with: remask resume RUN")
    line = one.lost(error)
    assert str(line).startswith("rank 1 of 3 processes died or stopped after step 7: ")
    assert line.__notes__ == ["go on with: remask resume RUN"]
    one.end(), three.end()


def test_where_all_live_the_line_blames_none() -> None:
    store = dist.HashStore()
    pulses = [Pulse(store, rank, 2) for rank in range(2)]
    pulses[0].step = 4
    assert "another process of the run ended or did not answer after step 4" in str(pulses[0].lost(RuntimeError("")))
    for one in pulses:
        one.end()


def test_a_dead_store_is_a_line() -> None:
    class Dead:
        alive = True

        def set(self, key: str, value: str) -> None:
            if not self.alive:
                raise dist.DistNetworkError("gone")

        def check(self, keys: list[str]) -> bool:
            raise dist.DistNetworkError("gone")

    store = Dead()
    one = Pulse(store, 1, 2)
    store.alive = False
    assert "hosts the run's store" in str(one.lost(RuntimeError("gloo")))
    time.sleep(0.2)
    assert "remask-pulse" not in [thread.name for thread in threading.enumerate()]


def test_where_collectives_cannot_raise_the_process_ends() -> None:
    code = (
        "import time, torch.distributed as dist\n"
        "from remask.training import pulse\n"
        "pulse.BEAT = .02\n"
        "store = dist.HashStore()\n"
        "one, two = pulse.Pulse(store, 0, 2, patience=.6), pulse.Pulse(store, 1, 2)\n"
        "one.step = 3\n"
        "time.sleep(2)\n"
        "print('both live', flush=True)\n"
        "two.end()\n"
        "time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2
    assert done.stdout == "both live\n"
    assert done.stderr.startswith("remask: rank 1 of 2 processes died or stopped after step 3: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (RuntimeError("[../gloo/transport/tcp/pair.cc:544] Connection closed by peer [::1]:4"), True),
        (RuntimeError("[../gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 5000ms for recv"), True),
        (dist.DistBackendError("NCCL error in: remote process exited"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("gloo"), False),
    ],
)
def test_errors_of_an_exchange(error: Exception, is_one: bool) -> None:
    assert from_exchange(error) == is_one
