"""What is expected of a queue, told in plain Python: no scripts, no streams, no server."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from qnb.models import Ending, JobSpec, JobState
from qnb.storage.gates import Gate
from qnb.storage.keys import job_hex
from qnb.storage.records import MAX_LOST_STARTS, Claimed

#: lanes, highest first
LANES = ("high", "low")


class Place(Enum):
    LANE = "waits in its lane"
    BACK = "was handed back to its lane"
    DELAYED = "waits for its time"
    HELD = "a worker holds it"
    PARKED = "its sweep's gate holds it back"
    ENDED = "has an outcome"


class Time(Enum):
    """Of a due time or an expiry."""

    NEVER = "there is none"
    COME = "is over already"
    AHEAD = "will not come before the end of the test"


@dataclass
class Run:
    """A job, from its enqueue to its end; a fresh run is another one."""

    spec: JobSpec
    place: Place
    attempt: int = 1
    starts: int = 0
    lost: int = 0
    due: Time = Time.NEVER
    expiry: Time = Time.NEVER
    swept: bool = False  #: its expiry came while it ran: nobody will look at it again
    held: Claimed | None = None
    holder: str = ""
    running: bool = False
    asked: bool = False  #: to be aborted
    seat: int = 0  #: another one after each move: what a place in its sweep is taken by
    rank: tuple[bool, list[int]] = (False, [])  #: among those that are parked
    logged: int = 0  #: bytes
    ending: Ending | None = None

    @property
    def status(self) -> JobState:
        if self.place is Place.HELD:
            return JobState.RUNNING if self.running else JobState.QUEUED
        return {
            Place.DELAYED: JobState.SCHEDULED,
            Place.ENDED: JobState.COMPLETE,
        }.get(self.place, JobState.QUEUED)

    @property
    def may_expire(self) -> bool:
        waits = self.place is not Place.ENDED and not self.swept
        return waits and self.expiry is not Time.NEVER


@dataclass
class Model:
    """All jobs by id, and the order in which those of each lane wait."""

    jobs: dict[str, Run] = field(default_factory=dict)
    waiting: dict[tuple[str, Place], list[str]] = field(
        default_factory=lambda: {
            (lane, place): [] for lane in LANES for place in (Place.BACK, Place.LANE)
        }
    )

    gates: dict[str, Gate] = field(default_factory=dict)
    places: dict[str, dict[str, int]] = field(default_factory=dict)  #: sweep → job → its seat
    seats: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def holds(self, claimed: Claimed) -> Run | None:
        """The run that ``claimed`` is the current attempt of, None if it is stale."""
        run = self.jobs.get(claimed.spec.task_id)
        return run if run is not None and run.held is claimed else None

    def at(self, place: Place) -> Iterator[Run]:
        return (run for run in self.jobs.values() if run.place is place)

    # -- clients -------------------------------------------------------------------------------

    def accepts(self, spec: JobSpec) -> bool:
        """Whether a call is stored: not while its id is unfinished, and not when sent again."""
        run = self.jobs.get(spec.task_id)
        return run is None or (run.place is Place.ENDED and run.spec != spec)

    def enqueue(self, spec: JobSpec, due: Time = Time.NEVER, expiry: Time = Time.NEVER) -> None:
        """A new job, or a fresh run: its attempt numbers go on, so that old holders stay fenced."""
        before = self.jobs.get(spec.task_id)
        run = Run(spec, Place.ENDED, before.attempt + 1 if before else 1, due=due, expiry=expiry)
        self.jobs[spec.task_id] = run
        if due is Time.NEVER:
            self._wait(run, Place.LANE)
        else:
            run.place = Place.DELAYED

    def abort(self, task_id: str) -> int:
        run = self.jobs.get(task_id)
        if run is None or run.place is Place.ENDED:
            return 0
        if run.place is Place.HELD:
            run.asked = True
            return 2
        self.end(run, Ending.ABORTED)
        return 1

    # -- gates ---------------------------------------------------------------------------------

    def set_gate(self, sweep: str, gate: Gate) -> None:
        self.gates[sweep] = gate
        if gate.limit is None:
            self.places.pop(sweep, None)

    def parked(self, sweep: str, lane: str) -> list[Run]:
        """Who is parked there, the next one first."""
        runs = [run for run in self.at(Place.PARKED) if run.spec.lane == lane]
        return sorted((r for r in runs if r.spec.channel == sweep), key=lambda run: run.rank)

    def admit(self, claimed: Claimed) -> bool:
        """Whether a claimed job may start; if not, it is parked."""
        run = self.holds(claimed)
        if run is None or run.asked or run.running:
            return run is not None
        id_, sweep = run.spec.task_id, run.spec.channel
        gate, places = self.gates.get(sweep, Gate()), self.places.setdefault(sweep, {})
        has, most = places.get(id_) == run.seat, gate.limit
        room = most is None or len(places) < most + has
        in_turn = has or claimed.back or not self.parked(sweep, run.spec.lane)
        if gate.state == "open" and room and in_turn:
            if most is not None:
                places[id_] = run.seat
            return True
        if has:
            del places[id_]
        self._again(run)
        run.rank = (not claimed.back, [int(part) for part in claimed.entry.split("-")])
        run.place, run.seat = Place.PARKED, next(self.seats)
        return False

    def release(self, sweep: str, lane: str) -> None:
        """Places that are taken no more are free; who is next goes on, or ends."""
        gate, waiting = self.gates.get(sweep, Gate()), self.parked(sweep, lane)
        if gate.state == "stopped" and waiting:
            for run in waiting:
                self.end(run, Ending.ABORTED)
            return
        places = {
            id_: seat for id_, seat in self.places.get(sweep, {}).items()
            if self.jobs[id_].seat == seat
        }  # fmt: skip
        self.places[sweep] = places
        for run in waiting if gate.state == "open" else []:
            if gate.limit is not None and len(places) >= gate.limit:
                break
            self._wait(run, Place.BACK)
            if gate.limit is not None:
                places[run.spec.task_id] = run.seat

    # -- workers -------------------------------------------------------------------------------

    def next(self, count: int) -> list[str]:
        """Who is to be claimed next: lane by lane, what was handed back first."""
        order = [id_ for line in self.waiting.values() for id_ in line]
        return order[:count]

    def claim(self, claimed: Claimed, holder: str) -> None:
        run = self.jobs[claimed.spec.task_id]
        self._leave(run)
        run.place, run.held, run.holder = Place.HELD, claimed, holder

    def start(self, run: Run) -> None:
        if not run.running:
            run.running, run.starts = True, run.starts + 1

    def end(self, run: Run, ending: Ending) -> None:
        self._leave(run)
        run.place, run.held, run.ending = Place.ENDED, None, ending
        run.seat = next(self.seats)

    def retry(self, run: Run, due: Time) -> int:
        if run.asked:
            return 2
        run.starts += not run.running
        self._again(run)
        run.expiry = Time.NEVER
        run.due = due
        if due is Time.NEVER:
            self._wait(run, Place.LANE)
        else:
            run.place, run.seat = Place.DELAYED, next(self.seats)
        return 1

    def recover(self, run: Run, *, begun: bool) -> int:
        run.starts += begun - run.running
        run.lost += begun
        self._again(run)
        if run.asked:
            self.end(run, Ending.ABORTED)
            return 2
        if run.lost >= MAX_LOST_STARTS:
            self.end(run, Ending.CRASHED)
            return 2
        if begun:
            run.expiry = Time.NEVER
        self._wait(run, Place.BACK)
        return 1

    def tick(self, due: dict[str, int]) -> None:
        """What is due (at the times in ``due``) moves into its lane; what has expired ends."""
        come = [run for run in self.at(Place.DELAYED) if run.due is Time.COME]
        come.sort(key=lambda run: (due[run.spec.task_id], job_hex(run.spec.task_id)))
        for run in come:
            self._wait(run, Place.LANE)
        for run in self.jobs.values():
            if run.expiry is not Time.COME or run.swept:
                continue
            if run.place is Place.HELD:
                run.swept = run.running
            elif run.place is not Place.ENDED:
                self.end(run, Ending.EXPIRED)

    # -- moves ---------------------------------------------------------------------------------

    def _again(self, run: Run) -> None:
        run.attempt, run.held, run.running = run.attempt + 1, None, False

    def _wait(self, run: Run, place: Place) -> None:
        run.place, run.seat = place, next(self.seats)
        self.waiting[run.spec.lane, place].append(run.spec.task_id)

    def _leave(self, run: Run) -> None:
        for line in self.waiting.values():
            if run.spec.task_id in line:
                line.remove(run.spec.task_id)
