"""Processes that end: kills at a moment or an operation, and signals."""

import signal
import time

from tests.faults.injecting import Injection, Result, at, begun, described, gone_on, sending
from tests.faults.launching import Prepare

INTERRUPTED = (130, 143)


def kill_at_a_moment(injection: Injection) -> Result:
    """SIGKILL from outside, at a random moment of the time that an undisturbed run takes."""
    reference = injection.references["pretrain"]
    command = begun(reference.subject, injection.run)
    delay = injection.random.uniform(0, reference.seconds)
    time.sleep(delay)
    command.kill()
    ended = command.wait()
    return injection.after(reference, f"after {delay:.2f} s", ended, -9, 0)


def kill_at_an_operation(injection: Injection) -> Result:
    """SIGKILL before an operation, or in the middle of a write."""
    return _killed(injection, "pretrain")


def kill_of_finetuning(injection: Injection) -> Result:
    """The same of a fine-tuning."""
    return _killed(injection, "finetune")


def kill_beside_the_steps(injection: Injection) -> Result:
    """The same where checkpoints are written in a thread, as those of large networks are."""
    return _killed(injection, "pretrain", in_a_thread)


def kill_of_a_resume(injection: Injection) -> Result:
    """The same of a process that goes on with an interrupted run."""
    reference = injection.references["pretrain"]
    injection.midway(reference)
    number = injection.number * len(reference.operations) // 2 // injection.count
    places = list[str]()
    kill = at(number, sending(signal.SIGKILL), injection.run)
    ended = gone_on(reference.subject, injection.run, kill).wait()
    return injection.after(reference, f"operation {number} of a resume{''.join(places)}", ended, -9, 0)


def in_a_thread() -> None:
    """Let every checkpoint be written in a thread."""
    from remask.training.saving import Saver

    Saver.__init__.__defaults__ = (0,)  # type: ignore[misc]


def _killed(injection: Injection, subject: str, first: Prepare = lambda: None) -> Result:
    reference = injection.references[subject]
    operation = injection.operation(reference)
    kill = at(operation.number, sending(signal.SIGKILL), injection.run)

    def prepare() -> None:
        first()
        kill()

    ended = begun(reference.subject, injection.run, prepare).wait()
    return injection.after(reference, described(operation), ended, -9, *([0] if first is in_a_thread else []))


def interrupt(injection: Injection) -> Result:
    """SIGINT at an operation."""
    return _signalled(injection, signal.SIGINT)


def terminate(injection: Injection) -> Result:
    """SIGTERM at an operation."""
    return _signalled(injection, signal.SIGTERM)


def interrupt_twice(injection: Injection) -> Result:
    """Two SIGINT at an operation, of which the second ends at once."""
    return _signalled(injection, signal.SIGINT, 2)


def _signalled(injection: Injection, number: int, times: int = 1) -> Result:
    reference = injection.references["pretrain"]
    operation = injection.operation(reference)
    act = at(operation.number, sending(number, times), injection.run)
    ended = begun(reference.subject, injection.run, act).wait()
    late = [0] if operation.stage == "the last word" else []
    return injection.after(reference, described(operation), ended, *INTERRUPTED, *late)


__all__ = [
    "interrupt", "interrupt_twice", "kill_at_a_moment", "kill_at_an_operation", "kill_beside_the_steps",
    "kill_of_a_resume", "kill_of_finetuning", "terminate",
]  # fmt: skip
