"""How long the bodies of each task take: a running mean, in which the latest count most."""

from __future__ import annotations

__all__ = ["Pace"]

#: weight of the newest duration
NEWEST = 0.1

#: tasks that are remembered
TASKS = 1000


class Pace:
    """Means by the names of tasks."""

    def __init__(self) -> None:
        self._means: dict[str, float] = {}

    def took(self, name: str, milliseconds: int) -> None:
        """A body has taken so long."""
        mean = self._means.get(name)
        if mean is None:
            mean = milliseconds
            if len(self._means) >= TASKS:
                del self._means[next(iter(self._means))]
        self._means[name] = mean + NEWEST * (milliseconds - mean)

    def within(self, name: str, milliseconds: float) -> bool:
        """Do bodies of this task take less, as far as is known?"""
        return self._means.get(name, milliseconds) < milliseconds
