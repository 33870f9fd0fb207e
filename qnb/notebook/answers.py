"""Answers what the pages of a view ask: a page of rows, a job's detail, a heat map."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from qnb.errors import BrokerError
from qnb.notebook import html

__all__ = ["Answer", "Answers"]

#: words and numbers, and buffers of bytes beside them
Answer: TypeAlias = tuple[dict[str, Any], list[bytes]]

PERIOD = 2.0  #: seconds between two answers to a question that stands, at least
SHARE = 0.1  #: of the time, that answering may take at most; questions that stand wait longer then
BYTES_PER_SECOND = 25_000  #: of one standing question's answers
MOST = 32  #: questions at a time
LINGER = 10.0  #: seconds that the thread stays without a question


@dataclass(slots=True)
class _Question:
    asked: dict[str, Any]
    page: str
    stands: bool
    fresh: bool = True  # it waits for an answer
    due: float = 0.0


class Answers:
    """One at a time, on a thread that is there while there are questions.

    A question that *stands* is answered again when the thing has changed, until it is dropped; and
    when the answer had ``more``, a word that is not sent, as there is more to say of the same.
    """

    def __init__(
        self,
        answer: Callable[[dict[str, Any]], Answer],
        send: Callable[[dict[str, Any], list[bytes]], None],
    ) -> None:
        self._answer = answer
        self._send = send
        self._changed = threading.Condition()
        self._questions: dict[str, _Question] = {}
        self._resting = False
        self._thread: threading.Thread | None = None

    def ask(self, content: dict[str, Any]) -> None:
        """Answer this soon; the newest question of an ``id`` counts, and one that stands already
        is not asked anew. From any thread."""
        ident, stands = str(content.get("id", "")), content.get("follow") is True
        asked = {key: value for key, value in content.items() if key not in ("id", "follow")}
        page = str(asked.pop("page", ""))
        with self._changed:
            known = self._questions.get(ident)
            if known and known.stands and known.asked == asked:
                return
            full = len(self._questions) >= MOST and ident not in self._questions
            if not full:
                self._questions[ident] = _Question(asked, page, stands)
                self._wake()
        if full:
            self._send({"answer": ident, "error": f"more than {MOST} questions at a time"}, [])

    def drop(self, ident: str) -> None:
        """It need not be answered any more."""
        with self._changed:
            self._questions.pop(ident, None)

    def only(self, page: str) -> None:
        """Forget what other pages have asked: they are gone."""
        with self._changed:
            for ident, question in list(self._questions.items()):
                if question.page != page:
                    del self._questions[ident]

    def refresh(self) -> None:
        """The thing has changed: what stands is to be answered again."""
        if not self._questions:
            return
        with self._changed:
            for question in self._questions.values():
                question.fresh = True
            self._wake()

    def rest(self, resting: bool) -> None:
        """Nobody sees what stands, or somebody does again."""
        with self._changed:
            if self._resting is not resting:
                self._resting = resting
                self._wake()

    def _wake(self) -> None:
        if self._questions and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="qnb-answers", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _run(self) -> None:
        while (found := self._take()) is not None:
            ident, question = found
            began = time.monotonic()
            try:
                words, buffers = self._answer(dict(question.asked))
            except Exception as error:  # noqa: BLE001 - whoever asked is told
                words, buffers = {"error": html.clip(f"{error}" or type(error).__name__, 500)}, []
                words["more"] = type(error) is BrokerError  # nobody says when the server is back
            more = words.pop("more", False)
            if more:
                question.fresh = True
            took, nbytes = time.monotonic() - began, sum(map(len, buffers))
            with contextlib.suppress(Exception):  # the channel may be gone, and nobody there
                self._send({**words, "answer": ident}, buffers)
            slow = 0.0 if more else took / SHARE
            wait = max(PERIOD, slow, nbytes / BYTES_PER_SECOND)
            question.due = time.monotonic() + wait

    def _take(self) -> tuple[str, _Question] | None:
        """The next question that is due; None when there has been none for a while."""
        with self._changed:
            until = time.monotonic() + LINGER
            while True:
                waiting = [
                    (question.due, ident)
                    for ident, question in self._questions.items()
                    if question.fresh and not (question.stands and self._resting)
                ]
                due, ident = min(waiting, default=(until, None))
                now = time.monotonic()
                if due <= now and ident is None:
                    self._thread = None
                    return None
                if due <= now and ident is not None:
                    question = self._questions[ident]
                    question.fresh = False
                    if not question.stands:
                        del self._questions[ident]
                    return ident, question
                self._changed.wait(due - now)
