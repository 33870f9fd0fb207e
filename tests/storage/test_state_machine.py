"""Any order of everything that may happen to jobs, against a real server and a plain model."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Awaitable, Iterable
from dataclasses import replace
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from qnb.models import Ending, JobSpec, Policy, Report
from qnb.registry import Cron
from qnb.storage.gates import Gate, Gates
from qnb.storage.keys import GROUP, job_hex
from qnb.storage.records import Call, Claimed, Finished, unpack_spec
from tests.conftest import leaks
from tests.storage.desk import DONE, LATER, LOST, Desk, call, opened, overdue
from tests.storage.model import LANES, Model, Place, Time

T = TypeVar("T")

#: milliseconds that make a time what the model says of it
WHEN = {Time.NEVER: 0, Time.COME: 1, Time.AHEAD: LATER}

#: whose sweep has a gate at times, and who has none
SWEEPS = {"a": "scan", "b": "scan", "c": "scan", "d": ""}

ids = st.sampled_from(list(SWEEPS))
lanes = st.sampled_from(LANES)
times = st.sampled_from(list(Time))
states = st.sampled_from(["open", "open", "paused", "stopped"])
limits = st.sampled_from([1, 2, None])
workers = st.sampled_from(["w1", "w2", "w3"])
endings = st.sampled_from([Ending.DONE, Ending.FAILED])


def _claims(queue: Queue) -> st.SearchStrategy[Claimed]:
    """Most of the time one that is held, else any that ever was."""
    ever, held = queue.claims, [run.held for run in queue.model.at(Place.HELD) if run.held]
    return st.integers(0, 3).flatmap(lambda n: st.sampled_from(held if held and n < 3 else ever))


def _unfinished(queue: Queue) -> list[str]:
    return [id_ for id_, run in queue.model.jobs.items() if run.place is not Place.ENDED]


claims = st.runner().flatmap(_claims)
calls = st.runner().flatmap(lambda queue: st.sampled_from(queue.calls))
unfinished = st.runner().flatmap(lambda queue: st.sampled_from(_unfinished(queue)))
some_claims = precondition(lambda queue: bool(queue.claims))
some_calls = precondition(lambda queue: bool(queue.calls))
some_unfinished = precondition(lambda queue: bool(_unfinished(queue)))


class Queue(RuleBasedStateMachine):
    """Every rule does one thing to the queue and to the model, and compares the answers."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.queue = f"t-{secrets.token_hex(6)}"
        self.loop = asyncio.new_event_loop()
        self.opened = opened(url, self.queue, LANES[::-1])
        self.desk: Desk = self.do(self.opened.__aenter__())
        self.gates = Gates(self.desk.store)
        self.model = Model()
        self.read: dict[str, Any] = {}  # outcomes as they were first read
        self.numbers = itertools.count(1)
        self.calls: list[Call] = []
        self.claims: list[Claimed] = []  # current ones and stale ones: the model knows which

    def do(self, what: Awaitable[T]) -> T:
        return self.loop.run_until_complete(what)

    def let_pass(self, *spans: Time) -> None:
        """Wait until the times that are said to be over are so by the server's clock."""
        end = self.do(self.desk.now_ms()) + 2
        while Time.COME in spans and self.do(self.desk.now_ms()) < end:
            pass

    # -- clients -------------------------------------------------------------------------------

    @rule(id_=ids, lane=lanes, due=times, expiry=times)
    def enqueue(self, id_: str, lane: str, due: Time, expiry: Time) -> None:
        when: dict[str, Any] = {"delay_ms": WHEN[due], "expire_ms": WHEN[expiry]}
        self.calls.append(call(id_, lane, channel=SWEEPS[id_], **when))
        self._send(self.calls[-1])

    @rule(some=st.lists(ids, min_size=1, max_size=3), lane=lanes, expiry=times)
    def enqueue_now(self, some: list[str], lane: str, expiry: Time) -> None:
        for id_ in some:
            self.enqueue(id_, lane, Time.NEVER, expiry)

    @some_calls
    @rule(sent=calls)
    def send_again(self, sent: Call) -> None:
        self._send(sent)

    def _send(self, sent: Call) -> None:
        stored = self.model.accepts(sent.spec)
        assert [bool(at) for at in self.do(self.desk.store.enqueue([sent]))] == [stored]
        if stored:
            due, expiry = (
                next(time for time, ms in WHEN.items() if ms == span)
                for span in (sent.delay_ms, sent.expire_ms)
            )
            self.model.enqueue(sent.spec, due, expiry)
            self.read.pop(sent.spec.task_id, None)
            self.let_pass(due, expiry)

    @rule(id_=ids, lane=lanes)
    def rerun(self, id_: str, lane: str) -> None:
        run = self.model.jobs.get(id_)
        spec = call(id_, lane, channel=SWEEPS[id_]).spec
        spec = replace(spec, nonce=f"rerun {next(self.numbers)}")
        again = run is not None and run.place is Place.ENDED
        assert bool(self.do(self.desk.store.rerun(spec, b"call"))) is again
        if again:
            self.model.enqueue(spec)
            self.read.pop(id_, None)

    @some_unfinished
    @rule(id_=unfinished)
    def abort(self, id_: str) -> None:
        assert self.do(self.desk.abort(id_)) == self.model.abort(id_)

    @rule(some=st.lists(ids, min_size=1, max_size=4, unique=True))
    def cancel(self, some: list[str]) -> None:
        answers = [self.model.abort(id_) for id_ in some]
        ended = (answers.count(1), answers.count(2))
        assert self.do(self.gates.cancel(some, "me")) == ended

    # -- gates ---------------------------------------------------------------------------------

    @initialize(limit=limits)
    def begin_with_a_gate(self, limit: int | None) -> None:
        self.set_gate("open", limit)

    @rule(state=states, limit=limits)
    def set_gate(self, state: Any, limit: int | None) -> None:
        before = self.model.gates.get("scan", Gate())
        self.do(self.gates.set("scan", state=state, limit=limit))
        if (state, before.state) != ("stopped", "stopped"):
            self.model.set_gate("scan", Gate(state, limit))
        assert self.do(self.gates.get("scan")) == self.model.gates.get("scan", Gate())

    @some_claims
    @rule(claimed=claims)
    def ask(self, claimed: Claimed) -> None:
        passes = self.model.admit(claimed)
        assert self.do(self.gates.admit([claimed]))[0] == ([claimed] if passes else [])

    @rule(lane=lanes)
    def release(self, lane: str) -> None:
        self.do(self.gates.release(job_hex("scan"), lane))
        self.model.release("scan", lane)

    # -- workers -------------------------------------------------------------------------------

    @rule(worker=workers, count=st.integers(1, 3), asks=st.booleans(), begins=st.booleans())
    def claim(self, worker: str, count: int, asks: bool, begins: bool) -> None:
        expected = self.model.next(count)
        got = self.do(self.desk.claim(worker, count))
        assert [claimed.spec.task_id for claimed in got] == expected
        for claimed in got:
            run = self.model.jobs[claimed.spec.task_id]
            assert (claimed.spec, claimed.call) == (run.spec, b"call")
            assert claimed.back is (run.place is Place.BACK)
            assert (claimed.expires_at is None) is (run.expiry is Time.NEVER)
            known = (claimed.attempt, claimed.starts, claimed.lost)
            assert known == (run.attempt, run.starts, run.lost)
            self.model.claim(claimed, worker)
        self.claims += got
        for claimed in got:
            if asks:
                self.ask(claimed)
            if begins and self.model.holds(claimed):
                self.start(claimed, worker)

    @some_claims
    @rule(claimed=claims, worker=workers)
    def start(self, claimed: Claimed, worker: str) -> None:
        self.do(self.desk.start(claimed, worker))
        if run := self.model.holds(claimed):
            self.model.start(run)

    @some_claims
    @rule(claimed=claims)
    def renew_and_report(self, claimed: Claimed) -> None:
        run = self.model.holds(claimed)
        worker = self.desk.worker(run.holder if run else "w1")
        ours, asked = self.do(worker.renew([claimed]))
        assert ours == ({claimed.ref} if run else set())
        if run:
            assert (claimed.ref in asked) is run.asked
            run.logged += len("said\n")
        self.do(worker.report([(claimed, Report(1, 2), "said\n")]))

    @some_claims
    @rule(claimed=claims, ending=endings)
    def finish(self, claimed: Claimed, ending: Ending) -> None:
        end = Finished(claimed, replace(DONE, ending=ending, finish=next(self.numbers)))
        run = self.model.holds(claimed)
        for _ in range(2):  # the reply to the first is lost
            assert self.do(self.desk.worker().finish([end])) == [run is not None]
        if run:
            self.model.end(run, ending)

    @some_claims
    @rule(claimed=claims, due=times)
    def retry(self, claimed: Claimed, due: Time) -> None:
        run = self.model.holds(claimed)
        answer = self.do(self.desk.retry(claimed, WHEN[due]))
        if run:
            assert answer == self.model.retry(run, due)
            self.let_pass(due)
        else:
            now = self.model.jobs[claimed.spec.task_id]
            followed = now.place is not Place.ENDED and now.attempt == claimed.attempt + 1
            assert answer in ((0, 1) if followed else (0,))  # 1: it was sent before

    @some_claims
    @rule(claimed=claims, begun=st.booleans())
    def give_back(self, claimed: Claimed, begun: bool) -> None:
        run = self.model.holds(claimed)
        answer = self.do(self.desk.worker().give_back(claimed, LOST, begun=begun))
        assert answer is (run is None or self.model.recover(run, begun=begun) == 1)

    @some_claims
    @rule(claimed=claims, worker=workers, early=st.booleans())
    def fall_silent(self, claimed: Claimed, worker: str, early: bool) -> None:
        """``worker`` believes that the lease is over; it is, unless ``early``."""
        run = None if early else self.model.holds(claimed)
        late = overdue(claimed, LATER if early else 0)
        answer = self.do(self.desk.worker(worker).recover(late, LOST))
        assert answer == (self.model.recover(run, begun=True) if run else 0)

    @rule(worker=workers, leaves=st.booleans(), forget=st.booleans())
    def tick(self, worker: str, leaves: bool, forget: bool) -> None:
        """A worker looks at the time, and may leave; the server may have lost its scripts."""
        if forget:
            self.do(self.desk.raw("SCRIPT", "FLUSH"))
        due = {
            run.spec.task_id: int(self.do(self.desk.field(run.spec.task_id, "d")) or 0)
            for run in self.model.at(Place.DELAYED)
        }
        self.do(self.desk.worker(worker).tick())
        self.model.tick(due)
        if leaves:
            self.do(self.desk.worker(worker).leave(worker))

    @precondition(lambda queue: "tick@2" not in queue.model.jobs)
    @rule(worker=workers, occurrence=st.integers(1, 2))
    def cron(self, worker: str, occurrence: int) -> None:
        id_ = f"tick@{occurrence}"
        spec, row = JobSpec(id_, "tick", "low"), Cron("tick", "", "low", Policy())
        taken = id_ in self.model.jobs
        answer = self.do(self.desk.worker(worker).run_cron(row, occurrence, LATER, spec, b"call"))
        assert answer == (-1 if taken else 0)
        if not taken:
            self.model.enqueue(spec)

    # -- what always holds ---------------------------------------------------------------------

    @invariant()
    def every_record_is_as_expected_and_an_outcome_never_changes(self) -> None:
        known = self.model.jobs
        records = self.do(self.desk.store.records(list(known), result=True))
        for record, run in zip(records, known.values(), strict=True):
            assert record is not None
            assert record.status == run.status
            assert (record.outcome and record.outcome.ending) == run.ending
            if record.outcome:
                assert self.read.setdefault(record.task_id, record.outcome) == record.outcome
            else:
                assert record.tries == run.starts
            assert run.lost <= 3
        rows = self._all(("HMGET", self.desk.keys.job(id_), "a", "c", "l") for id_ in known)
        for row, run in zip(rows, known.values(), strict=True):
            assert [int(found or 0) for found in row] == [run.attempt, run.lost, run.logged]

    @invariant()
    def every_job_is_in_one_place_and_with_one_holder(self) -> None:
        keys = self.desk.keys
        places = [(lane, place) for lane, place in self.model.waiting]
        streams = [(keys.back if at is Place.BACK else keys.lane)(lane) for lane, at in places]
        entries = self._all(("XRANGE", stream, "-", "+") for stream in streams)
        pending = self._all(("XPENDING", stream, GROUP, "-", "+", 100) for stream in streams)
        for place, there, leases in zip(places, entries, pending, strict=True):
            held = {
                run.held.entry.encode(): f"{run.holder}~{LATER}".encode()
                for run in self.model.at(Place.HELD)
                if run.held and (run.spec.lane, run.held.back) == (place[0], place[1] is Place.BACK)
            }
            assert {entry: name for entry, name, *_ in leases} == held
            waiting = [
                unpack_spec(flat[flat.index(b"m") + 1]).task_id
                for entry, flat in there
                if entry not in held
            ]
            assert waiting == list(self.model.waiting[place])
            assert len(there) == len(held) + len(waiting)

    @invariant()
    def what_waits_and_what_may_expire_is_known_and_counted(self) -> None:
        keys, delayed = self.desk.keys, list(self.model.at(Place.DELAYED))
        times = self._all(("ZRANGE", keys.delayed(lane), 0, -1) for lane in LANES)
        expiries = self._all(("ZRANGE", keys.expiring(lane), 0, -1) for lane in LANES)
        for lane, due, expiring in zip(LANES, times, expiries, strict=True):
            mine = {job_hex(r.spec.task_id).encode() for r in delayed if r.spec.lane == lane}
            assert set(due) == mine
            runs = [run for run in self.model.jobs.values() if run.spec.lane == lane]
            may = {job_hex(run.spec.task_id).encode() for run in runs if run.may_expire}
            assert may <= set(expiring)
        waiting = dict.fromkeys(LANES, 0)
        for (lane, _), line in self.model.waiting.items():
            waiting[lane] += len(line)
        for lane in LANES:
            aside = [run for sweep in {*SWEEPS.values()} for run in self.model.parked(sweep, lane)]
            waiting[lane] += len(aside)
            [parked] = self._all([("ZRANGE", keys.parked(lane), 0, -1)])
            order = [member[-32:].decode() for member in parked]
            assert order == [job_hex(run.spec.task_id) for run in aside]
        assert self.do(self.desk.store.sizes()) == (waiting, len(delayed))

    def _all(self, commands: Iterable[tuple[Any, ...]]) -> list[Any]:
        return self.do(self.desk.store.server.pipeline(commands))

    # -- the end -------------------------------------------------------------------------------

    def teardown(self) -> None:
        try:
            if self.desk is not None:
                self.do(self._drain())
        finally:
            self.do(self._close())
            self.loop.close()

    async def _close(self) -> None:
        keys = self.desk.keys
        found = await self.desk.raw(
            "KEYS", keys.prefix.replace("{", "[{]").replace("}", "[}]") + "*"
        )
        await self.desk.raw("DEL", *found) if found else None
        await self.opened.__aexit__(None, None, None)

    async def _drain(self) -> None:
        """Every worker is gone; one comes and does all that is left."""
        desk, keys, model = self.desk, self.desk.keys, self.model
        for run in model.at(Place.DELAYED):  # in an hour
            key = keys.job(run.spec.task_id)
            await desk.raw("HSET", key, "d", 1)
            await desk.raw("ZADD", keys.delayed(run.spec.lane), 1, job_hex(run.spec.task_id))
        for run in list(model.at(Place.HELD)):
            assert run.held is not None
            await desk.worker("last").recover(overdue(run.held), LOST)
        await desk.worker("last").tick()
        await self.gates.set("scan")
        for lane in LANES:
            await self.gates.release(job_hex("scan"), lane)
        while held := await desk.claim("last", 10):
            ends = [Finished(claimed, DONE) for claimed in held]
            assert await desk.worker("last").finish(ends) == [True] * len(held)
        for lane in LANES:  # and in two hours
            for hex_ in await desk.indexed("expiring", lane):
                await desk.raw("ZADD", keys.expiring(lane), 1, hex_)
        await desk.worker("last").tick()
        for record in await desk.store.records(list(model.jobs), result=True):
            assert record is not None
            assert record.outcome is not None
            assert self.read.get(record.task_id, record.outcome) == record.outcome
        assert await desk.store.sizes() == ({"low": 0, "high": 0}, 0)
        for lane in LANES:
            assert await desk.entries(lane) == 0
            assert await desk.indexed("delayed", lane) == await desk.indexed("expiring", lane) == []
            for stream in (keys.lane(lane), keys.back(lane)):
                assert await desk.raw("XPENDING", stream, GROUP, "-", "+", 10) == []
        assert leaks(self.url, self.queue) == []


def _explore(url: str, examples: int, steps: int) -> None:
    def queue() -> Queue:
        return Queue(url)

    run_state_machine_as_test(
        queue,  # type: ignore[arg-type]  # a factory will do
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.timeout(400)  # a failure is first made small
def test_any_order_of_events_leaves_each_job_with_one_outcome(server_url: str) -> None:
    _explore(server_url, 150, 50)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_any_long_order_of_events_leaves_each_job_with_one_outcome(server_url: str) -> None:
    _explore(server_url, 300, 80)
