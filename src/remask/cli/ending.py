"""How a process ends: one line says what went wrong, and all processes of a run end with one exit code."""

import sys
from typing import NoReturn

from remask.cli.hints import explain
from remask.errors import UserError
from remask.training import launcher
from remask.training.stopping import TRY_AGAIN, TerminatedError, TimeLimitError, interrupted_line

SEVERAL = {"detect", "embed", "finetune", "pretrain", "probe", "refine", "resume", "segment"}
"""Commands that run in several processes. The others know no processes beside them."""


def end(code: int) -> NoReturn:
    """Exit with a code; in one of several processes of a run, without waiting for the threads that connect them."""
    if "remask.training.distributed" in sys.modules:
        from remask.training.distributed import leave

        leave(code)
    sys.exit(code)


def report_error(error: Exception) -> int:
    """The exit code of an error, after a line about it on stderr.

    One of a run's processes prints the line, and all of them get its code.
    """
    line, code = explain(error)
    try:
        together = bool(SEVERAL & {*sys.argv})
        speaks = not together or launcher.place().rank == 0
        # where they have not joined, each finds the same
        if together and "remask.training.distributed" in sys.modules:
            from remask.training.distributed import ended

            speaks, code = ended(code)
    except UserError:  # of the variables themselves
        speaks = True
    if speaks:
        print(line, file=sys.stderr)
    return code


def report_interrupt(error: KeyboardInterrupt) -> int:
    """The exit code of an interrupted command, after a line on stderr.

    130, or 143 for SIGTERM outside a training, or 75 for the warning of a time limit, which asks for another start.
    """
    if launcher.place().rank == 0:
        print(f"remask: {interrupted_line(error)}", file=sys.stderr)
    if isinstance(error, TimeLimitError):
        return TRY_AGAIN
    return 143 if isinstance(error, TerminatedError) else 130
