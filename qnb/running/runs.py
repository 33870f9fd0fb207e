"""What becomes of the jobs that a worker has launched: each is run, and how it ended is stored.

A job whose body has simply been done costs no task of its own: its end waits for the call that
stores the ends before it, and goes with the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Literal

from qnb.batching import Batcher
from qnb.clock import backoff
from qnb.errors import BrokerError
from qnb.models import Ending, Failure, JobSpec, Outcome, Report
from qnb.running.attempt import Attempt, lost_outcome, retry_delay
from qnb.running.body import Unbegun
from qnb.running.bulletin import Bulletin
from qnb.running.executors import Executor, SlotDied, SlotLost
from qnb.running.gatekeeper import Gatekeeper
from qnb.running.intake import Intake
from qnb.running.newsroom import Newsroom
from qnb.storage.leases import Leases
from qnb.storage.records import Claimed, Finished
from qnb.storage.store import aborted, expired

__all__ = ["Runs", "lost"]

log = logging.getLogger("qnb.worker")

#: shipped functions kept as bytes, to hand to executors
KEPT_CODE = 64

#: seconds that a body runs before its job is marked as running: most are over by then
YOUNG = 0.02

#: most ends that are stored in one call
MOST_ENDS = 256

#: seconds after which a lingering worker believes that its server will not come back
GIVE_UP = 600.0

Stopping = Literal["", "aborted", "overtime", "taken over"]


class Runs:
    """The launched jobs of the worker ``name``. Belongs to its loop."""

    def __init__(  # noqa: PLR0913 - its neighbours
        self,
        name: str,
        leases: Leases,
        executor: Executor,
        intake: Intake,
        gates: Gatekeeper,
        news: Newsroom,
        bulletin: Bulletin,
        *,
        linger: float | None,
    ) -> None:
        self.done = 0  #: jobs that are held no more
        self.clock = leases.store.clock
        self.news = news
        self._name = name
        self._leases = leases
        self._executor = executor
        self._intake = intake
        self._gates = gates
        self._bulletin = bulletin
        self._linger = linger
        self._jobs: dict[str, _Job] = {}  # by ref
        self._asked: dict[str, str] = {}  # refs of jobs to be aborted, and by whom
        self._code: OrderedDict[str, bytes] = OrderedDict()
        self._group: asyncio.TaskGroup | None = None  # while it serves
        self._young: list[_Job] = []  # begun a moment ago, not marked as running yet
        self._marks: Batcher[_Job, None] = Batcher(self._send_marks)
        self._over: list[Finished] = []  # ended, not stored yet
        self._storing = False

    def serve(self, group: asyncio.TaskGroup | None) -> None:
        """From now on what takes a while is done in ``group``; None: nothing is begun any more."""
        self._group = group

    @property
    def running(self) -> int:
        """How many bodies run."""
        return sum(job.running for job in self._jobs.values())

    @property
    def unreported(self) -> set[str]:
        """The refs of jobs whose body has been started, and whose end is not stored."""
        return {ref for ref, job in self._jobs.items() if job.start}

    async def flush(self) -> None:
        """Store the ends that are not stored yet."""
        await self._marks.flush()
        await self._store_ends()

    def launch(self, claimed: Claimed) -> None:
        """Have a held job run, unless the worker leaves."""
        if self._group is None:
            return
        job = self._jobs[claimed.ref] = _Job(self, claimed)
        spec, now = claimed.spec, self.clock.now_ms()
        if claimed.expires_at is not None and claimed.expires_at <= now:
            self._ended(job, expired(spec.task_id, claimed.starts, now))
        elif not self._executor.needs_code(spec):
            self._begin(job, None)
        elif spec.function in self._code:
            self._begin(job, self._code[spec.function])
        else:
            self._spawn(self._fetch_code(job))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> bool:
        """Do what takes a while; what is under way when the worker leaves is not waited for."""
        if self._group is not None:
            with contextlib.suppress(RuntimeError):  # it is just being ended
                self._group.create_task(work, name="qnb-job")
                return True
        work.close()
        return False

    async def _fetch_code(self, job: _Job) -> None:
        function = job.claimed.spec.function
        code: bytes | None = await self._patiently(lambda: self._leases.store.function(function))
        if code is not None:
            self._code[function] = code
            if len(self._code) > KEPT_CODE:
                self._code.popitem(last=False)
        self._begin(job, code)

    def _begin(self, job: _Job, code: bytes | None) -> None:
        claimed = job.claimed
        if claimed.ref in self._asked:
            self._ended(job, self._aborted(job, "before it was started"))
            return
        job.attempt = Attempt(
            claimed.spec, claimed.attempt, claimed.starts + 1, claimed.call, code, claimed.lost
        )
        self._executor.begin(job.attempt, job)

    def begun(self, job: _Job) -> None:
        """A body has a place to run in; if it still runs in a moment, the store is told."""
        claimed = job.claimed
        self._intake.entered(claimed)
        self._bulletin.begun(claimed.ref, claimed.spec, job.start)
        if not self._young:
            asyncio.get_running_loop().call_later(YOUNG, self._mark)
        self._young.append(job)

    def _mark(self) -> None:
        young, self._young = self._young, []
        for job in young:
            if job.running:
                self._marks.put(job).add_done_callback(_retrieved)

    def ended(self, job: _Job, end: Outcome | Exception | None) -> None:
        """A body runs no more."""
        claimed = job.claimed
        self._intake.entered(claimed)
        self._bulletin.ended(claimed.ref)
        self._ended(job, end)
        self._intake.roomier()

    def _ended(self, job: _Job, end: Outcome | Exception | None) -> None:
        if type(end) is Outcome and end.ending is Ending.DONE:
            self._intake.took(end.finish - end.start)
            self._finish(job, end)
        else:
            self._spawn(self._conclude(job, end))

    async def _conclude(self, job: _Job, end: Outcome | Exception | None) -> None:
        """Say in the store what became of a job that has not simply been done."""
        claimed = job.claimed
        if isinstance(end, Exception):
            await self._died(job, end)
            self._let_go(claimed)
            return
        outcome = end or await self._stopped(job)
        if outcome is None:  # another worker has it
            self._let_go(claimed)
            return
        self._intake.took(outcome.finish - outcome.start)
        self._bulletin.outcome(claimed.spec, outcome)
        if outcome.retry_in_ms is not None:
            await self.news.flush([claimed.ref])
            answer = await self._patiently(partial(self._leases.retry, claimed, outcome))
            if answer == 2:  # an abort was asked for while it ran
                outcome = self._aborted(job, "before its next attempt")
            elif answer == 0:
                self._stale(claimed)
        # before its end is stored: whoever dies in between, no sweep goes on after its failure
        await self._patiently(partial(self._gates.failed, claimed.spec, outcome))
        if outcome.retry_in_ms is None:
            self._finish(job, outcome)
        else:
            self._let_go(claimed)

    async def _stopped(self, job: _Job) -> Outcome | None:
        """How a job ends whose body was stopped; None if it is not for this worker to say."""
        if job.stopping == "overtime":
            return await self._overtime(job)
        if job.stopping == "aborted":
            when = "while it ran" if job.start else "before it was started"
            return self._aborted(job, when, self._runs_on(job.claimed.spec) if job.start else "")
        return None

    async def _died(self, job: _Job, end: Exception) -> None:
        """The process of a body has ended under it: the job is put back."""
        claimed, spec = job.claimed, job.claimed.spec
        if not isinstance(end, SlotDied | SlotLost):
            raise end
        if not isinstance(end, Unbegun):  # nothing has happened to it
            log.warning("job %r of task %r: %s", spec.task_id, spec.fn_name, end)
        start = job.start or self.clock.now_ms()
        if isinstance(end, SlotDied):
            await self._crashed(claimed, end, start)
        else:
            back = lost(claimed, self.clock.now_ms(), str(end), start)
            await self._patiently(lambda: self._leases.give_back(claimed, back, begun=False))

    def _finish(self, job: _Job, outcome: Outcome) -> None:
        """Have the end of a job stored, together with others; it is held until that is done."""
        claimed = job.claimed
        self._over.append(Finished(claimed, outcome, self.news.has_log(claimed.ref)))
        if not self._storing:
            self._storing = self._spawn(self._store_ends())

    async def _store_ends(self) -> None:
        """Store what has ended; what ends meanwhile goes with the next call."""
        try:
            while ends := self._over[:MOST_ENDS]:
                await self.news.flush([end.claimed.ref for end in ends if end.has_log])
                accepted = await self._patiently(partial(self._leases.finish, ends))
                del self._over[: len(ends)]
                for end, was_ours in zip(ends, accepted, strict=True):
                    if not was_ours:
                        self._stale(end.claimed)
                    self._let_go(end.claimed)
        finally:
            self._storing = False

    def _let_go(self, claimed: Claimed) -> None:
        del self._jobs[claimed.ref]
        self._asked.pop(claimed.ref, None)
        self.news.forget(claimed.ref)
        self.done += 1
        self._gates.left(claimed.spec)
        self._intake.let_go(claimed)

    def stop_body(self, job: _Job, why: Stopping) -> None:
        """Stop a body that runs, or waits for a place to run in."""
        job.stopping = why
        self._executor.stop(job)

    async def _overtime(self, job: _Job) -> Outcome:
        attempt, spec = job.attempt, job.claimed.spec
        assert attempt is not None
        limit, delay = spec.policy.timeout_ms or 0, retry_delay(spec.policy, attempt.failures)
        message = f"job {spec.task_id!r} ran longer than its timeout of {limit / 1000:g} s"
        message += self._runs_on(spec)
        await self._executor.report_failure(
            attempt, "TimeoutError", message, will_retry=delay is not None
        )
        return Outcome(
            ending=Ending.FAILED,
            tries=attempt.tries,
            start=job.start,
            finish=self.clock.now_ms(),
            failure=Failure("TimeoutError", message, f"TimeoutError({message!r})"),
            retry_in_ms=delay,
        )

    async def _crashed(self, claimed: Claimed, death: SlotDied, start: int) -> None:
        """A body has ended its process: the job is put back, or ended if that was too often."""
        outcome = lost(claimed, self.clock.now_ms(), str(death), start)
        await self.news.flush([claimed.ref])
        lives = await self._patiently(
            lambda: self._leases.give_back(claimed, outcome, begun=death.starts)
        )
        if not lives:
            await self._patiently(partial(self._gates.failed, claimed.spec))
        if not lives and outcome.failure is not None:
            attempt = Attempt(claimed.spec, claimed.attempt, claimed.starts + 1, claimed.call)
            await self._executor.report_failure(
                attempt, "WorkerCrashed", outcome.failure.message, will_retry=False
            )

    def _aborted(self, job: _Job, when: str, but: str = "") -> Outcome:
        claimed, now = job.claimed, self.clock.now_ms()
        how = f"aborted {when} by {self._asked.get(claimed.ref, 'its client')}{but}"
        start = job.start or now
        return aborted(claimed.spec.task_id, claimed.starts + 1, now, how, start)

    def _runs_on(self, spec: JobSpec) -> str:
        if self._executor.stops(spec):
            return ""
        here = spec.is_async and spec.policy.isolation != "thread"
        return f"; its {'coroutine' if here else 'thread'} cannot be stopped and runs on"

    def _stale(self, claimed: Claimed) -> None:
        log.warning(
            "job %r of task %r: another worker had taken it over; attempt %d is dropped",
            claimed.spec.task_id, claimed.spec.fn_name, claimed.attempt,
        )  # fmt: skip

    async def _patiently(self, act: Callable[[], Awaitable[Any]]) -> Any:
        """``act``, again and again until the store has taken it.

        Only a worker with a ``linger`` gives up: its server may be gone with its user's session.
        """
        loop = asyncio.get_running_loop()
        attempt, since = 0, loop.time()
        while True:
            try:
                return await act()
            except BrokerError as error:
                log.warning("%s", error)
                if self._linger is not None and loop.time() - since > max(self._linger, GIVE_UP):
                    raise
                await asyncio.sleep(backoff(attempt))
                attempt += 1

    async def _send_marks(self, jobs: list[_Job]) -> list[None]:
        # A body that is over already needs no mark: its end says all.
        if still := [(job.claimed, job.start) for job in jobs if job.running]:
            await self._leases.start(self._name, still)
        return [None] * len(jobs)

    # -- stopping ------------------------------------------------------------------------------

    def abort(self, asked: dict[str, str]) -> None:
        """End jobs early: refs, and who asks for it."""
        for ref, who in asked.items():
            if ref in self._asked:
                continue
            self._asked[ref] = who
            job = self._jobs.get(ref)
            if job is None:
                self._intake.start_now(ref)  # if it waits here; it ends at once
            elif job.attempt is not None:
                self.stop_body(job, "aborted")

    def taken_over(self, claimed: Claimed) -> None:
        """Another worker has a held job."""
        if (job := self._jobs.get(claimed.ref)) is None:
            self._intake.drop(claimed.ref)
        elif job.attempt is not None:
            log.warning("job %r was taken over; stopping it", claimed.spec.task_id)
            self.stop_body(job, "taken over")


class _Job:
    """A launched job: hears of its attempt, for its runs."""

    __slots__ = ("_runs", "_timer", "attempt", "claimed", "running", "start", "stopping")

    def __init__(self, runs: Runs, claimed: Claimed) -> None:
        self._runs = runs
        self._timer: asyncio.TimerHandle | None = None
        self.claimed = claimed
        self.attempt: Attempt | None = None  #: once the executor has it
        self.start = 0  #: epoch ms, once its body has begun
        self.running = False  #: does its body run?
        self.stopping: Stopping = ""

    def begun(self) -> None:
        runs, limit = self._runs, self.claimed.spec.policy.timeout_ms
        self.start = runs.clock.now_ms()
        self.running = True
        runs.begun(self)
        if limit is not None:  # what it has waited for a place to run in does not count
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(limit / 1000, runs.stop_body, self, "overtime")

    def hear(self, news: Report | str) -> None:
        self._runs.news.hear(self.claimed, news)

    def ended(self, end: Outcome | Exception | None) -> None:
        self.running = False
        if self._timer is not None:
            self._timer.cancel()
        self._runs.ended(self, end)


def lost(claimed: Claimed, now: int, reason: str, start: int | None = None) -> Outcome:
    """How a held job ends if this is one loss of its worker too many."""
    return lost_outcome(claimed.spec, now, reason, claimed.starts + 1, start)


def _retrieved(future: asyncio.Future[None]) -> None:
    """A lost start mark changes nothing but what is shown meanwhile."""
    if not future.cancelled():
        future.exception()
