"""Looks at a queue once a second, while somebody wants to see it.

One for each client of this process, however many views there are of the queue or its pool: one task
on the I/O thread, begun with the first who watches and ended with the last.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakValueDictionary

from qnb import bridge
from qnb.client import Client
from qnb.errors import QnbError
from qnb.models import FailedJob, QueueSnapshot, RunningJob, SweepInfo, WorkerInfo
from qnb.rates import Rates
from qnb.storage.connection import Refused
from qnb.storage.rows import failed
from qnb.storage.store import Store
from qnb.storage.studies import Studies
from qnb.sweeps.listing import newest

__all__ = ["Lookout", "worker_info"]

log = logging.getLogger("qnb")

PERIOD = 1.0  #: seconds between two looks
LATE = 2.0  #: seconds for a look; one that takes longer waits for a server that is away
ECHO = 0.05  #: seconds in which workers that were asked have answered

#: what is looked at, at most
WORKERS = 256
SWEEPS = 10
FAILURES = 5
AMONG = 200  #: the newest jobs, for those that have failed
FAILURES_EVERY = 5  #: looks

#: characters of a name, and of an error
NAME = 120
ERROR = 300

_LATEST = 253_402_300_799_999  # the end of the year 9999, in epoch ms


@dataclass(frozen=True, slots=True)
class _Watcher:
    told: Callable[[], None]
    whole: bool  # does it want more than the workers?


class Lookout:
    """What was last seen of the queue of ``client``."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._seen = QueueSnapshot(client.options.queue_name)
        self.wanted: int | None = None  #: slots, while the number of those here is being changed
        self._lock = threading.Lock()
        self._watchers: list[_Watcher] = []
        self._task: Future[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._rates = Rates()
        self._looks = 0
        self._failures: dict[str, FailedJob] = {}
        self._may_ask = True  # may this user speak to the workers?

    @classmethod
    def of(cls, client: Client) -> Lookout:
        """The one of this client."""
        found = _lookouts.get(id(client))
        if found is None:
            found = _lookouts.setdefault(id(client), cls(client))
        return found

    def snapshot(self) -> QueueSnapshot:
        """The last that was seen; no I/O."""
        if self._watchers and bridge.running() not in (None, self._loop):
            self._follow()  # the I/O thread is another one by now
        return self._seen

    def watch(self, told: Callable[[], None], *, whole: bool = True) -> Callable[[], None]:
        """Look once a second, and call ``told`` on the I/O thread after each look.

        Until the answer is called. Unless ``whole``, only the workers are looked at.
        """
        watcher = _Watcher(told, whole)
        with self._lock:
            self._watchers.append(watcher)
        self._follow()

        def end() -> None:
            with contextlib.suppress(ValueError), self._lock:
                self._watchers.remove(watcher)
                if not self._watchers and self._task is not None:
                    self._task.cancel()
                    self._task = None

        return end

    def look(self, timeout: float, *, whole: bool = True) -> QueueSnapshot:
        """What was last seen; if that was never, a first look, for ``timeout`` seconds at most."""
        if not self._seen.at:
            with contextlib.suppress(Exception):  # who watches is told
                bridge.run(self._look(whole=whole), timeout)
        return self._seen

    def _follow(self) -> None:
        loop = bridge.loop()
        with self._lock:
            if self._watchers and (self._loop is not loop or self._task is None):
                self._loop, self._task = loop, bridge.spawn(self._run())

    async def _run(self) -> None:
        while True:
            look = asyncio.ensure_future(self._look(whole=any(w.whole for w in self._watchers)))
            try:
                await asyncio.wait({look}, timeout=LATE)
                if not look.done():
                    self._note("reconnecting")
                    await asyncio.wait({look})
                await look
            except Refused as error:
                self._note(str(error)[:ERROR])
            except QnbError:
                if self._client.is_closed:
                    return self._note("the app has been closed")
                self._note("reconnecting")
            except Exception:  # what others have written there is theirs
                log.exception("a look at queue %r has failed", self._seen.queue)
                self._note("the queue cannot be looked at; the log says why")
            finally:
                look.cancel()
            self.tell()
            await asyncio.sleep(PERIOD)

    def _note(self, note: str) -> None:
        if self._seen.note != note:
            self._seen = replace(self._seen, note=note)
            self.tell()

    def tell(self) -> None:
        """Have those who watch take a new snapshot."""
        for watcher in tuple(self._watchers):
            watcher.told()

    # -- one look ------------------------------------------------------------------------------

    async def _look(self, *, whole: bool) -> None:
        store = (await self._client.link()).store
        await self._ask(store)
        await asyncio.sleep(ECHO)
        said = await store.workers(WORKERS)
        now = await self._client.server_ms()
        quiet = now - self._client.options.lease_ms / 2
        workers = tuple(worker_info(id_, says, quiet) for id_, says in sorted(said.items()))
        self._rates.look(now / 1000, {w.id: (w.done, w.started / 1000) for w in workers})
        since, rates = self._rates.steps()
        more = await store.count_workers() - WORKERS
        seen = replace(
            self._seen, at=now, workers=workers, more_workers=max(0, more), rates=rates,
            since=round(1000 * since), rate=self._rates.now, note="",
        )  # fmt: skip
        if whole:
            seen = await self._all(store, seen)
        self._seen = seen

    async def _ask(self, store: Store) -> None:
        """Have the workers say what they do; those that do not hear it say so every few seconds."""
        if self._may_ask:
            try:
                await store.server.call("PUBLISH", store.keys.control, b"s")
            except Refused:
                self._may_ask = False

    async def _all(self, store: Store, seen: QueueSnapshot) -> QueueSnapshot:
        lanes, delayed = await store.sizes()
        studies = Studies(store)
        sweeps: list[SweepInfo] = await newest(studies, SWEEPS)
        more = await studies.count() - SWEEPS
        failures = [job for worker in seen.workers for job in worker.failed]
        if self._looks % FAILURES_EVERY == 0:
            failures += [
                FailedJob(
                    row.task_id[:NAME], row.fn_name[:NAME] if row.fn_name else "", row.finish or 0,
                    row.failure.text[:ERROR] if row.failure else "",
                )
                for row in await failed(store, AMONG, FAILURES)
            ]  # fmt: skip
        self._looks += 1
        known = dict(self._failures)
        for job in failures:  # a worker and the store cut an error differently: the first one stays
            if job.task_id not in known or job.finish > known[job.task_id].finish:
                known[job.task_id] = job
        last = sorted(known.values(), key=lambda job: (-job.finish, job.task_id))[:FAILURES]
        self._failures = {job.task_id: job for job in last}
        return replace(
            seen, lanes=lanes, delayed=delayed, sweeps=tuple(sweeps), failures=tuple(last),
            more_sweeps=max(0, more),
        )  # fmt: skip


_lookouts: WeakValueDictionary[int, Lookout] = WeakValueDictionary()


# -- what workers say, which anybody may have written --------------------------------------------


def worker_info(id_: str, says: Mapping[str, Any], quiet: float = 0) -> WorkerInfo:
    """What a worker says; what it does not say, or says in another form, is missing.

    One that was last heard of before ``quiet`` (epoch ms) is silent.
    """
    at = _whole(says.get("at"), _LATEST)
    return WorkerInfo(
        id=id_[:NAME],
        host=_text(says.get("host"), NAME),
        pid=_whole(says.get("pid")),
        slots=_whole(says.get("slots")),
        running=_whole(says.get("running")),
        done=_whole(says.get("done")),
        started=_whole(says.get("started"), _LATEST),
        at=at,
        load=_load(says.get("load")),
        memory=_whole(says.get("memory")) or None,
        lanes=tuple(_text(lane, NAME) for lane in _rows(says.get("lanes"), 64)),
        pool=says.get("pool") is True,
        leaving=says.get("leaving") is True,
        silent=at < quiet,
        jobs=tuple(
            RunningJob(_text(row[0], NAME), _text(row[1], NAME), _whole(row[2], _LATEST))
            for row in _rows(says.get("jobs"), 16)
            if isinstance(row, list | tuple) and len(row) == 3
        ),
        failed=tuple(
            FailedJob(
                _text(row[0], NAME), _text(row[1], NAME), _whole(row[2], _LATEST),
                _text(row[3], ERROR),
            )
            for row in _rows(says.get("failed"), FAILURES)
            if isinstance(row, list | tuple) and len(row) == 4
        ),
    )  # fmt: skip


def _rows(said: object, most: int) -> list[Any]:
    return list(said[:most]) if isinstance(said, list | tuple) else []


def _text(said: object, most: int) -> str:
    return said[:most] if isinstance(said, str) else ""


def _load(said: object) -> float | None:
    fits = isinstance(said, int | float) and not isinstance(said, bool) and 0 <= said < 1e6
    return float(said) if fits and isinstance(said, int | float) else None


def _whole(said: object, most: int = 2**53) -> int:
    return said if type(said) is int and 0 <= said <= most else 0
