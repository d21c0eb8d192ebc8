"""Scores that need not be computed twice: what lets an evaluation of many fits go on where it was killed."""

from collections.abc import Callable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Memory:
    """Scores by name of a fit, and who is told when there is another one."""

    scores: dict[str, list[float]]
    told: Callable[[dict[str, list[float]]], None] = lambda scores: None
    prefix: str = ""

    def of(self, name: str) -> "Memory":
        """The part of one network."""
        return replace(self, prefix=f"{self.prefix}{name}: ")

    def recall(self, name: str, find: Callable[[], tuple[float, float]]) -> tuple[float, float]:
        """What a fit scored, once."""
        key = self.prefix + name
        if key not in self.scores:
            self.scores[key] = [*find()]
            self.told(self.scores)
        accuracy, other = self.scores[key]
        return accuracy, other


__all__ = ["Memory"]
