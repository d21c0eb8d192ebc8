"""SLURM as a job's script sees it: `srun` and `scontrol` on a PATH, which start tasks here and take notes.

`srun` starts SLURM_NTASKS tasks, writes their numbers into $SLURM_FAKE/tasks, and ends with the highest code of them.
"""

import os
import subprocess
import sys
from pathlib import Path

SRUN = """\
#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
pids=()
for ((rank = 0; rank < SLURM_NTASKS; rank++)); do
  SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" 2>"$SLURM_FAKE/errors$rank" &
  pids+=($!)
done
printf '%s\\n' "${pids[@]}" >"$SLURM_FAKE/started" && mv "$SLURM_FAKE/started" "$SLURM_FAKE/tasks"
highest=0
for pid in "${pids[@]}"; do
  code=0
  wait "$pid" || code=$?
  ((code > highest)) && highest=$code
done
exit "$highest"
"""
SCONTROL = """\
#!/usr/bin/env bash
case $1 in
  show) echo 127.0.0.1 ;;
  requeue) echo "$2" >>"$SLURM_FAKE/requeued" ;;
esac
"""


class Slurm:
    """A queue of one job of `tasks` tasks on one machine. folder: new, for its programs and notes."""

    def __init__(self, folder: Path, tasks: int, job: int) -> None:
        self.folder, self.tasks, self.job = folder, tasks, job
        (folder / "bin").mkdir(parents=True)
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
            program = folder / "bin" / name
            program.write_text(text)
            program.chmod(0o755)

    def start(self, script: Path, **variables: str) -> subprocess.Popen[str]:
        """Start the job's script, as a start of the queue does."""
        (self.folder / "tasks").unlink(missing_ok=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
        path = f"{self.folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment |= {
            "PATH": path, "SLURM_FAKE": str(self.folder), "SLURM_JOB_ID": str(self.job), "SLURM_JOB_NODELIST": "here",
            "SLURM_NTASKS": str(self.tasks), "SLURM_NTASKS_PER_NODE": str(self.tasks), **variables,
        }  # fmt: skip
        return subprocess.Popen(
            ["bash", str(script)], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def signal(self, number: int) -> None:
        """Send a signal to every task, as `--signal` and `scancel --signal` do, and not to the script."""
        for pid in (self.folder / "tasks").read_text().split():
            os.kill(int(pid), number)

    @property
    def requeued(self) -> list[str]:
        """The jobs that were queued again, in their order."""
        note = self.folder / "requeued"
        return note.read_text().split() if note.is_file() else []

    def errors(self, rank: int) -> str:
        """What a task wrote on stderr."""
        return (self.folder / f"errors{rank}").read_text()
