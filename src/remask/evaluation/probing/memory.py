"""A cache of scores, with which an evaluation of many fits resumes after it was killed."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from remask.evaluation.sharing import in_one


@dataclass(frozen=True)
class Memory:
    """Cache {fit name: scores}, with a callback `told` on every new entry."""

    scores: dict[str, list[float]]
    told: Callable[[dict[str, list[float]]], None] = lambda scores: None
    prefix: str = ""

    def of(self, name: str) -> "Memory":
        """The same cache with names prefixed by that of a network."""
        return replace(self, prefix=f"{self.prefix}{name}: ")

    def recall(self, name: str, find: Callable[[], tuple[float, float]]) -> tuple[float, float]:
        """The cached scores of a fit, computed by `find` if missing: (accuracy in percent, second score)."""
        key = self.prefix + name
        if key not in self.scores:
            self.scores[key] = [*in_one(find)]
            self.told(self.scores)
        accuracy, other = self.scores[key]
        return accuracy, other


__all__ = ["Memory"]
