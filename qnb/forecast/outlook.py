"""In how many ways the rest of a sweep may go, and when it then ends. Pure.

The jobs that run and those yet to come are given durations, in each path other ones, and laid out
over the slots there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np

from qnb.forecast.durations import PATHS, Durations, Effects, Floats, Places, Spread, fortunes
from qnb.forecast.history import History
from qnb.forecast.makespan import LAST, makespan, stride

__all__ = ["Columns", "Outlook"]

#: the values of each parameter for the points from one number up to another
Columns: TypeAlias = Callable[[int, int], Mapping[str, Sequence[Any]]]

_SAMPLE: Final = 200  # jobs that stand for many yet to come
_LATE: Final = 512
_MORE: Final = 1.1  # so many times as many durations are worth another fit
_GOLDEN: Final = 2654435761  # times a number, modulo 2**32: evenly spread, whatever the numbers


class Outlook:
    """What a sweep's history says of its rest."""

    def __init__(self, history: History, columns: Columns | None) -> None:
        self._history = history
        self._points = _Points(columns)
        self._described = 0  # so many points
        self._fitted = 0  # to so many ends
        self._slots: int | None = None
        self._since = -np.inf  # have there been so many
        self._overhead = 0.0

    def quantiles(self, now: float, slots: int, chances: Sequence[float]) -> list[float]:
        """Seconds until all has ended: with each of these chances it is less."""
        self._watch(now, slots)
        slots = max(slots, len(self._history.running))
        queue = self._queue(slots)
        if self._history.ends >= self._fitted * _MORE:
            self._fit(queue[0], now)
        found: list[float] = np.quantile(self._ends(now, slots, *queue), chances).tolist()
        return found

    def _watch(self, now: float, slots: int) -> None:
        """Measure how long a slot stays empty between two jobs, while jobs wait."""
        if slots != self._slots:
            if self._slots is not None:
                self._since = now
            self._slots = slots
        history = self._history
        start, finish = np.array(history.recent).T
        starts = np.sort(np.concatenate([start, list(history.running.values())]))[slots:]
        finishes = np.sort(finish)
        paired = min(len(starts), len(finishes))
        if not slots or not paired:
            return
        # whichever job follows which: in sum it is the same
        gaps = starts[:paired] - finishes[:paired]
        # a pause, or a machine that slept, is no part of every job
        most = 10 * (np.median(finish - start) + max(0.0, np.median(gaps)))
        usual = (starts[:paired] > self._since) & (gaps <= most)
        if usual.any():
            self._overhead = max(0.0, float(gaps[usual].mean()))

    def _queue(self, slots: int) -> tuple[Places, int, int]:
        """The jobs to be laid out, how many of these stand for the early ones, how many those are.

        The same ones stand for all, estimate after estimate, until they are started.
        """
        waiting = np.flatnonzero(np.frombuffer(self._history.waiting(), dtype=np.uint8))
        split = max(0, len(waiting) - min(LAST * stride(slots), _LATE))
        early, late = waiting[:split], waiting[split:]
        sample = early
        if split > 2 * _SAMPLE:
            order = early * _GOLDEN % 2**32
            sample = np.sort(early[np.argpartition(order, _SAMPLE)[:_SAMPLE]])
        return np.concatenate([sample, late]), len(sample), split

    def _fit(self, coming: Places, now: float) -> None:
        history = self._history
        jobs = [*(index for index, _ in history.seen), *history.running]
        self._points.learn([*jobs, *coming.tolist()])
        if not self._described or len(self._points) > self._described * _MORE:
            self._effects = Effects(self._points.known)
            self._described = max(1, len(self._points))
        rows = self._effects.rows(self._points.columns(jobs), len(jobs))
        took = [duration for _, duration in history.seen]
        took += [now - at for at in history.running.values()]
        self._durations = Durations(
            self._effects, rows, np.array(took), len(history.running), history.each
        )
        self._fitted = history.ends

    def _ends(self, now: float, slots: int, coming: Places, sampled: int, early: int) -> Floats:
        """When all has ended, for each path."""
        history, durations = self._history, self._durations
        running = len(history.running)
        jobs = [*history.running, *coming.tolist()]
        self._points.learn(jobs)
        rows = self._effects.rows(self._points.columns(jobs), len(jobs))
        expected = durations.expected(rows)
        elapsed = np.maximum(now - np.array(list(history.running.values())), 1e-9)
        reached = np.log(elapsed) - durations.middle(rows[:running])
        spread = Spread(durations.rest, reached, durations.noise, history.each)
        chance, beyond = fortunes(np.array(jobs))

        further = spread.draw_further(reached, chance[:, :running], beyond[:, :running]) - reached
        free = np.zeros((PATHS, slots))
        free[:, :running] = elapsed * np.expm1(further)
        chance, beyond = chance[:, running:], beyond[:, running:]
        took = np.exp(expected[:, running:] + spread.draw(chance, beyond))
        took += self._overhead * (1 + beyond) / 2
        first = took[:, :sampled]
        work = first.sum(axis=1)
        if early > sampled:
            mean = np.exp(expected[:, running : running + sampled]).mean(axis=1) * spread.mean()
            mean += self._overhead
            luck = (work - sampled * mean) * (early / sampled) ** 0.5
            work = np.maximum(early * mean + luck, 0.0)
        return makespan(free, first, work, took[:, sampled:])


class _Points:
    """The parameters of those points that were asked for so far."""

    def __init__(self, columns: Columns | None) -> None:
        self._columns = columns
        self._at: dict[int, int] = {}
        self.known: dict[str, list[Any]] = {}

    def __len__(self) -> int:
        return len(self._at)

    def learn(self, indices: Sequence[int]) -> None:
        """Fetch those that are missing, neighbours at once."""
        if self._columns is None:
            return
        missing = sorted({index for index in indices if index not in self._at})
        first = 0
        for place, index in enumerate(missing):
            if place + 1 < len(missing) and missing[place + 1] == index + 1:
                continue
            found = self._columns(missing[first], index + 1)
            if not self._at:
                self.known = {name: [] for name in found}
            for name, values in self.known.items():  # whatever other names there are later
                values += found.get(name) or [None] * (place + 1 - first)
            for fetched in missing[first : place + 1]:
                self._at[fetched] = len(self._at)
            first = place + 1

    def columns(self, indices: Sequence[int]) -> dict[str, list[Any]]:
        rows = [self._at[index] for index in indices] if self.known else []
        return {name: [values[row] for row in rows] for name, values in self.known.items()}
