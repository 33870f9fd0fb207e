"""One attempt in a child process, and what can become of the process under it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from qnb.models import Outcome, Report
from qnb.running.attempt import Attempt, Run
from qnb.running.capture import Feed

__all__ = ["Body", "News", "SlotDied", "SlotLost", "Suspects", "Tell", "Unbegun"]

#: a report of progress, or a piece of captured output
News = Report | str

#: Called on the executor's loop while a body runs. Cheap, and never raises.
Tell = Callable[[News], None]

#: jobs that are remembered to have been in a process that died
SUSPECTS = 10_000


class SlotDied(Exception):
    """The process that ran a body has ended under it. ``str()`` says how, and its last output;
    ``starts`` is how many starts of that body have ended so, as is known only now."""

    def __init__(self, how: str, starts: int = 1) -> None:
        super().__init__(how)
        self.starts = starts


class SlotLost(Exception):
    """The process that ran a body has ended, and that is not known to be this body's fault."""


class Unbegun(SlotLost):
    """A body that has found no place to run in for a while: somebody else may have one."""


class Suspects:
    """The ids of jobs that were in a process when it died. The next time each runs alone, where
    the one that kills is told from the others."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}

    def update(self, ids: Iterable[str], *, shared: bool = True) -> None:
        """A process has died in which they were; ``shared``: it is not known whose fault it was."""
        for task_id in ids:
            self._ids[task_id] = self._ids.get(task_id, 0) + shared
        while len(self._ids) > SUSPECTS:
            del self._ids[next(iter(self._ids))]

    def discard(self, task_id: str) -> int:
        """It runs alone now; how many deaths it has shared."""
        return self._ids.pop(task_id, 0)

    def __contains__(self, task_id: str) -> bool:
        return task_id in self._ids


class Body:
    """One attempt in a child, or on its way to one."""

    __slots__ = (
        "_feed", "_told", "alone", "attempt", "brief", "has_begun", "run", "seq", "shared",
        "start", "stopped", "verdict",
    )  # fmt: skip

    def __init__(self, attempt: Attempt, run: Run, *, alone: bool, brief: bool) -> None:
        self.attempt = attempt
        self.run = run
        self.alone = alone
        self.brief = brief  #: it may wait in a child until those before it have ended
        self.has_begun = False
        self.seq = 0  #: its number in its child
        self.start = 0
        self.shared = 0  #: deaths of other processes that it was in, with others
        self.stopped = False  #: by who began it: whatever it makes of that is not told
        self.verdict: Outcome | None = None  #: how it ends, decided by us: its child is killed
        self._told = False
        self._feed: Feed | None = None

    def begin(self) -> None:
        """It runs from now on."""
        self.has_begun = True
        self.run.begun()

    def hear(self, output: bytes) -> None:
        """Take what it has put out."""
        if self._feed is None:  # most bodies are silent
            self._feed = Feed(asyncio.get_running_loop(), self.run.hear)
        self._feed.put(output)

    def end(self, end: Outcome | Exception) -> None:
        """Tell how it has ended; the first word counts."""
        if self._told:
            return
        self._told = True
        if self._feed is not None:
            self._feed.close()
        self.run.ended(None if self.stopped else end)
