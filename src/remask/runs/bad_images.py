"""Unusable images, named once over the sessions and processes of a run."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from remask.files.escaping import on_one_line, printable
from remask.images.loading.loader import Loader
from remask.training.distributed import World
from remask.training.trainer import Hook

SAID = 3
"""Pictures beyond data.range that are named on the screen."""


class BadImages:
    """Names every unusable picture once, on the screen and in RUN/bad_images.txt, also over several sessions.

    writes   False in all processes of a run but one: that one is told of their pictures
    """

    def __init__(self, path: Path, say: Callable[[str], None], writes: bool = True) -> None:
        self.path, self.say, self.writes = path / "bad_images.txt", say, writes
        self.known = set(self.path.read_text(encoding="utf-8").splitlines()) if self.path.is_file() else set[str]()

    def __call__(self, line: str) -> None:
        if self.writes and (line := on_one_line(line)) not in self.known:
            self.say(f"skipped {line}")
            self.keep([line])

    def keep(self, lines: Iterable[str]) -> None:
        """Write them into the file alone."""
        fresh = [line for line in dict.fromkeys(map(on_one_line, lines)) if line not in self.known]
        self.known.update(fresh)
        if fresh and self.writes:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write("".join(line + "\n" for line in fresh))

    def beyond(self, line: str) -> None:
        """A picture with values outside data.range, which is used as it is: named in RUN/beyond_range.txt."""
        file = self.path.with_name("beyond_range.txt")
        known, line = file.read_text(encoding="utf-8").splitlines() if file.is_file() else [], on_one_line(line)
        if not self.writes or line in known:
            return
        if len(known) < SAID:
            self.say(f"{line}; it is used as it is")
        elif len(known) == SAID:
            self.say(f"more pictures reach beyond data.range: {printable(file)} names them all")
        with open(file, "a", encoding="utf-8") as out:
            out.write(line + "\n")

    def write(self, bad: Mapping[str, str]) -> None:
        """What ends the run is named by the process that met it."""
        self.writes = True
        for where, reason in bad.items():
            self(f"{where}: {reason}")


def bad_of_all(loader: Loader, world: World) -> Hook:
    """After an epoch every process knows what any of them could not use, and all stop where it is too much."""

    def hook(epoch: int) -> dict[str, float]:
        for bad in world.gathered(loader.unusable):
            loader.learn(bad)
        return {}

    return hook


__all__ = ["BadImages", "bad_of_all"]
