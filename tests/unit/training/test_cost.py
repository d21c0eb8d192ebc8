"""ledger.py: what is booked, what is not, and the flop counter against a count by hand."""

import time

import pytest
import torch
from torch import nn

from remask.training import cost as module
from remask.training.cost import Ledger, forward_gflops


class Clock:
    """Wall and CPU seconds that a test turns by hand."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    def work(self, wall: float, cpu: float) -> None:
        self.wall, self.cpu = self.wall + wall, self.cpu + cpu


def started(dataset: int, views: int, devices: int) -> Ledger:
    ledger = Ledger(dataset, views, devices, gflops_forward_per_image=1.5)
    ledger.resume()  # as the trainer does before its first step
    return ledger


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module.time, "perf_counter", lambda: made.wall)
    monkeypatch.setattr(module, "_cpu_seconds", lambda: made.cpu)
    return made


def test_ete_is_views_times_epochs(clock: Clock) -> None:
    ledger = started(dataset=100, views=2, devices=0)
    for _ in range(15):
        ledger.add(20, 0.0)
    cost = ledger.cost(512.04)
    assert (cost["images"], cost["views"]) == (300, 600)
    assert cost["ete"] == 2 * 3
    assert cost["gflops_forward_per_image"] == 1.5
    assert cost["peak_memory_mb"] == 512.0


def test_hours_and_waiting_are_booked_per_step(clock: Clock) -> None:
    ledger = started(100, 2, 2)
    for _ in range(10):
        clock.work(wall=36, cpu=72)
        ledger.add(10, 9.0)
    cost = ledger.cost(0)
    assert cost["wall_hours"] == pytest.approx(0.1)
    assert cost["gpu_hours"] == pytest.approx(0.2), "two devices"
    assert cost["cpu_hours"] == pytest.approx(0.2)
    assert cost["data_wait_share"] == pytest.approx(0.25)


def test_a_cpu_has_no_gpu_hours(clock: Clock) -> None:
    ledger = started(100, 1, 0)
    clock.work(3600, 3600)
    ledger.add(1, 0.0)
    assert (ledger.cost(0)["gpu_hours"], ledger.cost(0)["wall_hours"]) == (0, 1)


def test_what_happens_in_a_pause_is_not_training(clock: Clock) -> None:
    ledger = started(100, 1, 1)
    clock.work(3600, 1800)
    ledger.pause()
    clock.work(7200, 7200)
    ledger.resume()
    clock.work(3600, 1800)
    ledger.add(1, 0.0)
    assert ledger.cost(0)["wall_hours"] == 2
    assert ledger.cost(0)["cpu_hours"] == 1


def test_sessions_add_up(clock: Clock) -> None:
    first = started(100, 2, 1)
    clock.work(3600, 1800)
    first.add(50, 360.0)
    second = started(100, 2, 1)
    second.load(first.state())
    clock.work(100, 100)  # loading, compiling: before training begins
    second.resume()
    clock.work(3600, 1800)
    second.add(50, 360.0)
    cost = second.cost(0)
    assert (cost["images"], cost["ete"], cost["gpu_hours"], cost["cpu_hours"]) == (100, 2, 2, 1)
    assert cost["data_wait_share"] == 0.1
    assert set(first.state()) == {"images", "hours", "cpu_hours", "wait_hours"}


def test_nothing_done_is_no_division_by_zero() -> None:
    cost = Ledger(0, 1, 0, 0.0).cost(0)
    assert (cost["ete"], cost["data_wait_share"]) == (0, 0)


def test_cpu_seconds_are_those_of_this_process() -> None:
    before, until = module._cpu_seconds(), time.process_time() + 0.1
    while time.process_time() < until:
        pass
    assert 0.09 < module._cpu_seconds() - before < 5


def test_flops_of_a_call() -> None:
    model, x = nn.Linear(64, 32, bias=False), torch.zeros(1000, 64)
    assert forward_gflops(lambda: model(x)) == pytest.approx(2 * 1000 * 64 * 32 / 1e9, abs=1e-4)
    assert forward_gflops(lambda: None) == 0
