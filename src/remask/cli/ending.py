"""How a process ends: what went wrong is said once, and the processes of a run end with one code."""

import sys
from typing import NoReturn

from remask.cli.hints import explained
from remask.errors import UserError
from remask.training import launcher


def end(code: int) -> NoReturn:
    """Exit, and where other processes were joined without waiting for the threads that served them."""
    if "remask.training.distributed" in sys.modules:
        from remask.training.distributed import leave

        leave(code)
    sys.exit(code)


def of_all(error: Exception) -> int:
    """Say what went wrong; of the many processes of a run one says it, and all end with its code. Returns the code."""
    line, code = explained(error)
    try:
        together = bool({"pretrain", "resume"} & {*sys.argv})  # the other commands know no processes beside them
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
