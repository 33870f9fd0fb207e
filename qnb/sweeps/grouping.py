"""The errors of a sweep's jobs, grouped by what they say. Pure.

What is kept does not depend on the order in which the jobs ended: whoever looks at the same jobs
finds the same groups.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection, Mapping

__all__ = ["Errors"]

KEPT = 1000  #: groups; of more, the first by their text


class Errors:
    """Which jobs ended with which error, by place. Changed by one thread, read by any."""

    def __init__(self) -> None:
        self._places: dict[str, list[int]] = {}  # ascending
        self._texts: list[str] = []  # of the groups, ascending

    def add(self, place: int, text: str) -> None:
        """The job at ``place`` has ended so."""
        places = self._places.get(text)
        if places is not None:
            insort(places, place)
            return
        if len(self._texts) == KEPT:
            if text > self._texts[-1]:
                return
            del self._places[self._texts.pop()]  # for good: what is kept comes before it
        insort(self._texts, text)
        self._places[text] = [place]

    def drop(self, gone: Collection[int]) -> None:
        """The jobs at those places have not ended after all."""
        left = {
            text: [place for place in places if place not in gone]
            for text, places in self._places.items()
        }
        self._set(left)

    def move(self, to: Mapping[int, int]) -> None:
        """The jobs have other places now; those without one are gone."""
        left = {
            text: sorted(to[place] for place in places if place in to)
            for text, places in self._places.items()
        }
        self._set(left)

    def _set(self, places: Mapping[str, list[int]]) -> None:
        self._places = {text: found for text, found in places.items() if found}
        self._texts = sorted(self._places)

    def counts(self) -> dict[str, int]:
        """How many jobs ended with each."""
        return {text: len(places) for text, places in list(self._places.items())}

    def examples(self, most: int = 3) -> dict[str, list[int]]:
        """The first places of each."""
        return {text: places[:most] for text, places in list(self._places.items())}

    def places(self, part: str) -> list[int]:
        """Where errors are that contain ``part``, whatever its case."""
        wanted = part.lower()
        return [
            place
            for text, places in list(self._places.items())
            if wanted in text.lower()
            for place in list(places)
        ]
