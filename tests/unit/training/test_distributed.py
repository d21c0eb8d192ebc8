"""processes.py: who is who, shares, and one process as the special case. What several exchange is in tests/e2e."""

import signal
import subprocess
import sys

import pytest
import torch

from remask.cli import main as cli
from remask.errors import UserError
from remask.training import distributed as processes
from remask.training import pulse
from remask.training.distributed import World, ended, joined, leave
from remask.training.launcher import may_restart, restarted

TORCHRUN = {
    "RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500",
}  # fmt: skip


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As if torchrun had started this process, the fourth of eight."""
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_the_environment_says_who_is_who(launched: pytest.MonkeyPatch) -> None:
    assert World.here() == World(3, 8, 1, 2)
    assert (World.here().alone, World.here().main) == (False, False)
    launched.delenv("RANK")
    assert World.here() == World()
    assert (World().alone, World().main) == (True, True)


@pytest.mark.parametrize("total", [0, 1, 5, 7, 8, 64])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_shares_are_cut_as_tensors_are(total: int, size: int) -> None:
    things = torch.arange(total)
    shares = [things[World(rank, size).share(total)] for rank in range(size)]
    assert all(torch.equal(a, b) for a, b in zip(shares, things.tensor_split(size), strict=True))


def test_one_process_gets_back_what_it_gives() -> None:
    with joined("cpu") as world:
        assert world == World()
        assert world.first(lambda: 3) == 3
        assert world.any(True, False) == [True, False]
        assert world.sums({"a": 0.1, "b": 2.0}) == {"a": 0.1, "b": 2.0}
        assert world.highest(0.5) == 0.5
        assert world.gathered("x") == ["x"]
        with world.in_turn():
            world.wait()
        with pytest.raises(UserError, match="no"):
            world.first(lambda: (_ for _ in ()).throw(UserError("no")))


def test_restarts_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    assert (restarted(), may_restart()) == (False, False)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "2")
    assert (restarted(), may_restart()) == (True, True)


def test_before_they_join_the_first_speaks(launched: pytest.MonkeyPatch) -> None:
    assert ended(2) == (False, 2)
    launched.setenv("RANK", "0")
    launched.setenv("LOCAL_RANK", "0")
    assert ended(2) == (True, 2)


def test_after_that_the_first_to_fail_speaks_and_all_end_with_its_code(launched: pytest.MonkeyPatch) -> None:
    store = torch.distributed.HashStore()
    launched.setattr(torch.distributed, "is_initialized", lambda: True)
    launched.setattr(torch.distributed.distributed_c10d, "_get_default_store", lambda: store)
    launched.setattr(processes.time, "sleep", lambda seconds: None)
    handlers = dict[int, object]()
    launched.setattr(pulse.signal, "signal", handlers.__setitem__)  # of a process that ends, not of this one
    assert ended(2) == (True, 2)
    assert handlers == {signal.SIGTERM: signal.SIG_IGN}
    launched.setenv("RANK", "0")
    launched.setenv("LOCAL_RANK", "0")
    assert ended(1) == (False, 2)


def test_one_of_many_ends_without_waiting_for_threads_that_the_others_may_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The interpreter's own way out frees gloo's threads while they run: seen to abort, three times in some hundred."""

    def at_once(code: int) -> None:
        raise KeyboardInterrupt(code)

    monkeypatch.setattr(processes.os, "_exit", at_once)
    with pytest.raises(SystemExit, match="2"):
        leave(2)
    monkeypatch.setattr(processes, "_JOINED", [World(1, 2)])
    with pytest.raises(KeyboardInterrupt, match="2"):
        leave(2)


def test_an_interrupted_one_leaves_in_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    def at_once(code: int) -> None:
        raise RuntimeError(f"left at once with {code}")

    monkeypatch.setattr(cli, "app", interrupted)
    monkeypatch.setattr(processes.os, "_exit", at_once)
    monkeypatch.setattr(processes, "_JOINED", [World(1, 2)])
    with pytest.raises(RuntimeError, match="left at once with 130"):
        cli.main()


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("3", 0)])
def test_a_mistake_is_said_by_one(
    launched: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: str, lines: int
) -> None:
    launched.setenv("RANK", rank)
    launched.setattr(sys, "argv", ["remask", "pretrain", "--set", "optim.epoch=1"])
    with pytest.raises(SystemExit) as ending:
        cli.main()
    assert ending.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == lines


def test_the_module_is_a_command() -> None:
    done = subprocess.run([sys.executable, "-m", "remask", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "0.1.0")
