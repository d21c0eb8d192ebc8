"""trainer.py: a run that was killed or stopped continues bit by bit, from wherever its last checkpoint is."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from remask.training.run_folder import find
from tests.toy import PER_EPOCH, Killed, Toy, kill, losses, train, trainer, weights


@pytest.mark.parametrize("log_every", [1, 3])
@pytest.mark.parametrize("dies_in", [1, 4, 6, 9, 14])
def test_a_killed_run_continues_bit_by_bit(tmp_path: Path, dies_in: int, log_every: int) -> None:
    """Saved after every step, killed inside one: in mid-epoch, in mid-window, on either side of an epoch's end."""
    whole = trainer(tmp_path / "whole", log_every=log_every)
    expected = losses(train(whole))
    killed = trainer(tmp_path / "killed", Toy(at={dies_in: kill}), log_every=log_every, save_minutes=0.0)
    with pytest.raises(Killed):
        train(killed)
    resumed = trainer(tmp_path / "killed", make=False, log_every=log_every)
    resumed.model.body[0].weight.data.zero_()  # whatever it starts from, the checkpoint decides
    resumed.resume()
    assert resumed.global_step == dies_in - 1
    assert losses(train(resumed)) == expected
    assert all(torch.equal(a, b) for a, b in zip(weights(resumed), weights(whole), strict=True))
    assert resumed.batches.asked[0] == divmod(dies_in - 1, PER_EPOCH)  # type: ignore[attr-defined]
    assert resumed.run.read("cost.json")["images"] == 120


def test_metrics_beyond_the_checkpoint_are_not_kept_twice(tmp_path: Path) -> None:
    expected = losses(train(trainer(tmp_path / "whole")))
    killed = trainer(tmp_path / "killed", Toy(at={9: kill}))  # saved at the end of the epoch, step 5; logged up to 8
    with pytest.raises(Killed):
        train(killed)
    assert killed.run.metrics()[-1]["step"] == 8
    resumed = trainer(tmp_path / "killed", make=False)
    resumed.resume()
    assert resumed.global_step == 5
    assert [line["step"] for line in resumed.run.metrics()] == [1, 2, 3, 4, 5]
    assert losses(train(resumed)) == expected


def test_a_run_may_be_killed_again_and_again(tmp_path: Path) -> None:
    expected = losses(train(trainer(tmp_path / "whole")))
    made = trainer(tmp_path / "run", Toy(at={2: kill}), save_minutes=0.0)
    while True:
        try:
            metrics = train(made)
            break
        except Killed:
            made = trainer(tmp_path / "run", Toy(at={3: kill}), make=False, save_minutes=0.0)
            made.resume()
    assert losses(metrics) == expected


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path) -> None:
    first = trainer(tmp_path / "run")
    before = losses(train(first))
    again = trainer(tmp_path / "run", make=False)
    again.resume()
    assert losses(train(again)) == before
    assert again.model.calls == 0
    assert again.run.read("status.json")["state"] == "finished"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_request_ends_the_step_and_saves(tmp_path: Path, number: signal.Signals) -> None:
    expected = losses(train(trainer(tmp_path / "whole")))
    made = trainer(tmp_path / "run", Toy(at={7: lambda: os.kill(os.getpid(), number)}))
    with pytest.raises(KeyboardInterrupt):
        train(made)
    status = made.run.read("status.json")
    assert (status["state"], status["step"]) == ("interrupted", 7)
    resumed = trainer(tmp_path / "run", make=False)
    resumed.resume()
    assert resumed.global_step == 7
    assert losses(train(resumed)) == expected


def test_kept_checkpoints_are_named_by_epoch(tmp_path: Path) -> None:
    made = trainer(tmp_path / "run", keep_every_epochs=2, epochs=5, warmup_epochs=0.0)
    train(made)
    assert sorted(path.name for path in (made.run.path / "checkpoints").iterdir()) == [
        "epoch-0002",
        "epoch-0004",
        "last",
    ]
    assert json.loads((find(made.run, "epoch-0002") / "state.json").read_text())["step"] == 10
