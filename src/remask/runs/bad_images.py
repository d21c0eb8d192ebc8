"""Reports each unusable image once, over all sessions and processes of a run."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from remask.files.escaping import on_one_line, printable

PRINTED = 3
"""Maximum number of images beyond data.range that are printed."""


class BadImages:
    """Reports every unusable image once, printed and in RUN/bad_images.txt, also over several sessions.

    writes   whether this process reports; False in all processes but the main one, which gets their images
    """

    def __init__(self, path: Path, say: Callable[[str], None], writes: bool = True) -> None:
        self.path, self.say, self.writes = path / "bad_images.txt", say, writes
        self.known = set(_lines(self.path))

    def __call__(self, line: str) -> None:
        if self.writes and (line := on_one_line(line)) not in self.known:
            self.say(f"skipped {line}")
            self.keep([line])

    def keep(self, lines: Iterable[str]) -> None:
        """Write new lines into the file without printing them."""
        new = [line for line in dict.fromkeys(map(on_one_line, lines)) if line not in self.known]
        self.known.update(new)
        if new and self.writes:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write("".join(line + "\n" for line in new))

    def beyond(self, line: str) -> None:
        """Report an image with values outside data.range, which is used unchanged, in RUN/beyond_range.txt."""
        file = self.path.with_name("beyond_range.txt")
        known, line = _lines(file), on_one_line(line)
        if not self.writes or line in known:
            return
        if len(known) < PRINTED:
            self.say(f"{line}; it is used as it is")
        elif len(known) == PRINTED:
            self.say(f"more pictures reach beyond data.range: {printable(file)} names them all")
        with open(file, "a", encoding="utf-8") as out:
            out.write(line + "\n")

    def write(self, bad: Mapping[str, str]) -> None:
        """Report the images that end the run, {name: reason}, from whichever process found them."""
        self.writes = True
        self.known.update(_lines(self.path))  # the main process may have said some since
        for where, reason in bad.items():
            self(f"{where}: {reason}")


def _lines(file: Path) -> list[str]:
    """Lines of a list, [] if there is none; a damaged one is read as far as it goes."""
    return file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []


__all__ = ["BadImages"]
