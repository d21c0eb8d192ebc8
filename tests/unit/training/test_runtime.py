"""runtime.py: seeds are pure functions, devices are found or refused, a stop request ends a step."""

import os
import signal
import threading

import pytest
import torch
from timm.models.vision_transformer import Attention
from torch import nn

from remask.errors import UserError
from remask.seeds import derive, generator, seeded
from remask.training import runtime
from remask.training.distributed import World
from remask.training.runtime import Runtime, resolve
from remask.training.stopping import StopRequest


def test_derived_seeds_are_pure_and_distinct() -> None:
    paths = [(0,), (1,), (0, 1), (0, "1"), (0, "draw", 1), (0, "draw", 2), (0, "step", 1), (1, "draw", 1)]
    seeds = [derive(*path) for path in paths]
    assert seeds == [derive(*path) for path in paths]
    assert len(set(seeds)) == len(paths)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_generator_repeats_its_path() -> None:
    draws = [torch.rand(4, generator=generator(7, "draw", step)) for step in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_seeded_restores_the_global_state() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with seeded(5, "weights"):
        inside = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with seeded(5, "weights"):
        assert torch.equal(torch.rand(3), inside)


def test_seeded_restores_after_an_error() -> None:
    state = torch.random.get_rng_state()

    def fail() -> None:
        with seeded(5):
            torch.rand(1)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_interrupts(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_a_stop_request_outside_the_main_thread_leaves_signals_alone() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def enter() -> None:
        with StopRequest() as stop:
            seen.append((stop.requested, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [(False, before)]


def test_auto_finds_a_device_that_is_there() -> None:
    found = resolve("auto", "fp32")
    assert torch.ones(1, device=found.device).sum() == 1
    assert found.dtype == torch.float32


@pytest.mark.parametrize(("cuda", "mps", "wanted"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")])
def test_auto_prefers_the_fastest(monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, wanted: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert resolve("auto", "fp32").device.type == wanted


def test_precision_and_compilation() -> None:
    assert resolve("cpu", "bf16").dtype == torch.bfloat16
    assert resolve("cpu", "auto").dtype in (torch.float32, torch.bfloat16)
    assert not resolve("cpu", "fp32", "auto").compiled
    assert resolve("cpu", "fp32", compile=True).compiled
    with pytest.raises(UserError, match=r"CUDA graphs are for one process on a GPU, not for cpu: set runtime\.compile"):
        resolve("cpu", "fp32", "graphs")


def test_cuda_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked of the compiler; gradients that wait for another part are copied, for a graph writes over its own."""
    asked = dict[str, object]()
    monkeypatch.setattr(torch, "compile", lambda forward, mode: asked.update(mode=mode) or forward)
    model, cpu = torch.nn.Linear(2, 1), torch.device("cpu")
    for graphs, mode in ((False, None), (True, "reduce-overhead")):
        here = Runtime(cpu, compiled=True, graphs=graphs)
        here.prepare(model)
        assert asked["mode"] == mode
        model.weight.grad = written = torch.ones(1, 2)
        here.keep_gradients(model)
        written.zero_()
        assert model.weight.grad.sum() == (2 if graphs else 0)
        assert model.bias.grad is None
    assert here.describe().endswith("float32, compiled into CUDA graphs")


def test_auto_precision_follows_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(runtime, "_cpu_multiplies_bf16", lambda there=there: there)
        assert resolve("cpu", "auto").dtype == dtype


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("gpu", "there is no device 'gpu'; choose"),
        ("cuda", "device cuda is not there: torch sees cpu"),
        ("mps", "device mps is not there"),
        ("meta", "device meta is not there"),
    ],
)
def test_a_device_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch, name: str, line: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match=line) as caught:
        resolve(name, "fp32")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("hidden", ["", "foo", "7"])
def test_gpus_that_a_variable_hides_are_one_line(monkeypatch: pytest.MonkeyPatch, hidden: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=rf"torch sees cpu.* \(CUDA_VISIBLE_DEVICES is '{hidden}'\); use --device auto"):
        resolve("cuda", "fp32")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=rf"numbered from 0 \(CUDA_VISIBLE_DEVICES is '{hidden}'\)"):
        resolve("cuda:1", "fp32")


def test_a_cuda_number_beyond_the_last_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve("cuda:1", "fp32").device.index == 1
    with pytest.raises(UserError, match="device cuda:2 is not there: torch sees 2 CUDA"):
        resolve("cuda:2", "fp32")


def test_threads_are_set() -> None:
    before = torch.get_num_threads()
    try:
        resolve("cpu", "fp32", threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("dtype", "fused"), [(torch.float32, True), (torch.bfloat16, False)])
def test_prepare_chooses_the_attention_kernel(dtype: torch.dtype, fused: bool) -> None:
    attention = Attention(8, 2)
    attention.fused_attn = not fused
    model = Runtime(torch.device("cpu"), dtype).prepare(nn.Sequential(attention))
    assert model[0].fused_attn is fused  # type: ignore[index]


def test_autocast_lowers_matrix_products_only_when_asked() -> None:
    x = torch.randn(2, 2)
    for dtype in (torch.float32, torch.bfloat16):
        with Runtime(torch.device("cpu"), dtype).autocast():
            assert (x @ x).dtype == dtype


def test_peak_memory_only_grows() -> None:
    here = Runtime(torch.device("cpu"))
    before = here.peak_memory_mb()
    held = torch.ones(40 * 2**18)  # 40 MB, written
    after = here.peak_memory_mb()
    assert 10 < before <= after < 10**6
    assert held.sum() > 0


def test_words() -> None:
    words = Runtime(torch.device("cpu"), torch.bfloat16, compiled=True).describe()
    assert words == f"cpu ({torch.get_num_threads()} threads), bfloat16, compiled"


# ------------------------------------------------------------------------------------------------- many processes


def test_each_process_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    here = resolve("auto", "fp32", world=World(5, 8, 1, 2))
    assert (str(here.device), here.gpus) == ("cuda:1", 8)
    with pytest.raises(UserError, match=r"4 processes were started here, and torch sees 2 .* --nproc-per-node 2"):
        resolve("cuda", "fp32", world=World(5, 8, 1, 4))
    with pytest.raises(UserError, match="device cuda:0 is one, and there are 8 processes"):
        resolve("cuda:0", "fp32", world=World(5, 8, 1, 2))


def test_processes_share_a_cpu() -> None:
    here = resolve("cpu", "fp32", world=World(1, 2, 1, 2), parallel="fsdp")
    assert (here.gpus, here.describe().split(" (")[0]) == (0, "2 processes")


def test_what_one_process_does_is_not_done_by_many(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="this command runs in a single process"):
        resolve("cpu", "fp32")
