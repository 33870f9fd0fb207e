"""What qnb knows of jobs, sweeps and workers: plain, frozen values that travel between the wings.

Times are milliseconds since the epoch by the server's clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2b
from typing import Any, Literal

__all__ = [
    "CELLS",
    "FINAL",
    "UNFINISHED",
    "Ending",
    "ErrorContext",
    "FailedJob",
    "Failure",
    "Frame",
    "JobRecord",
    "JobSpec",
    "JobState",
    "Outcome",
    "Policy",
    "PoolSnapshot",
    "QueueSnapshot",
    "Report",
    "RunningJob",
    "SweepInfo",
    "SweepSnapshot",
    "TaskContext",
    "TaskInfo",
    "TaskResult",
    "WorkerInfo",
]


class JobState(StrEnum):
    """Where a job is. Members are strings: ``JobState.QUEUED == "queued"``."""

    SCHEDULED = "scheduled"  #: waiting for its time to come
    QUEUED = "queued"  #: waiting in its lane
    RUNNING = "running"  #: its body has been started on a worker
    COMPLETE = "complete"  #: it has ended, well or badly; the outcome is stored
    NOT_FOUND = "not_found"  #: unknown, or its record has expired


UNFINISHED = frozenset({JobState.SCHEDULED, JobState.QUEUED, JobState.RUNNING})
FINAL = frozenset({JobState.COMPLETE, JobState.NOT_FOUND})


class Ending(StrEnum):
    """How a finished job ended."""

    DONE = "done"
    FAILED = "failed"
    ABORTED = "aborted"
    EXPIRED = "expired"
    CRASHED = "crashed"
    REFUSED = "refused"  #: its bytes were not signed with this queue's key


@dataclass(frozen=True, slots=True)
class Frame:
    """One of the user's own frames in a traceback."""

    file: str  #: a path, or a cell's name: ``"Cell In[3]"``
    line: int
    function: str
    text: str = ""  #: the source line, where it is known


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed, as text: readable without the user's classes."""

    type: str  #: the exception's class name, ``"ValueError"``
    message: str  #: ``str(exception)``
    text: str  #: ``repr(exception)``: the ``value`` of a failed :class:`TaskResult`
    traceback: str = ""  #: the user's own frames and causes, as a traceback prints them
    frames: tuple[Frame, ...] = ()  #: the user's own frames, innermost last
    causes: tuple[Failure, ...] = ()  #: what led to it, the nearest first (``raise … from …``)


@dataclass(frozen=True, slots=True)
class Report:
    """What a running body last said of itself with ``qnb.report`` or ``qnb.progress``."""

    done: float
    total: float | None = None
    message: str | None = None
    metrics: Mapping[str, float | int | str] = field(default_factory=dict)

    @property
    def fraction(self) -> float | None:
        """From 0 to 1, None where the total is not known."""
        return min(1.0, max(0.0, self.done / self.total)) if self.total else None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one attempt ended. ``result`` is a signed envelope of the value, or the exception."""

    ending: Ending
    tries: int
    start: int
    finish: int
    result: bytes = b""
    failure: Failure | None = None
    worker: str = ""  #: ``host:pid`` of the process that ran the body
    result_nbytes: int | None = None
    peak_memory: int | None = None  #: bytes
    cpu_time_us: int | None = None
    cached: str = ""  #: the job whose result this is, if it was used again
    retry_in_ms: int | None = None  #: this attempt failed and another one follows after so long

    @property
    def success(self) -> bool:
        return self.ending is Ending.DONE


@dataclass(frozen=True, slots=True)
class TaskResult:
    """The outcome of a finished job.

    ``value`` is what the task returned, or the error's ``repr`` if ``success`` is false; then
    ``failure`` tells more. ``tries`` counts attempts; ``enqueue_time``, ``start`` and ``finish``
    are epoch milliseconds.
    """

    success: bool
    value: Any
    tries: int
    enqueue_time: int
    start: int
    finish: int
    aborted: bool = False
    failure: Failure | None = None

    @property
    def duration_ms(self) -> int:
        """Milliseconds from start to finish of the last attempt."""
        return self.finish - self.start


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """An unfinished job. ``scheduled_at`` is epoch milliseconds while it waits for its time."""

    task_id: str
    fn_name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    enqueue_time: int
    tries: int
    status: JobState
    scheduled_at: int | None = None


@dataclass(frozen=True, slots=True)
class TaskContext:
    """The running job: its id, its task's name, and which attempt this is (from 1)."""

    task_id: str
    name: str
    tries: int


@dataclass(frozen=True, slots=True)
class ErrorContext:
    """What an ``@app.on_error`` hook is told of a failed attempt."""

    name: str
    task_id: str
    exc: BaseException
    tries: int
    will_retry: bool


@dataclass(frozen=True, slots=True)
class Policy:
    """How a worker treats the attempts of a job. Its defaults are those of a task."""

    max_retries: int = 0
    backoff_ms: int = 0  #: before the second attempt; twice as long before each further one
    timeout_ms: int | None = None  #: of one attempt
    max_memory: int | None = None  #: bytes that the body's processes may hold together
    isolation: Literal["loop", "thread", "process"] | None = None  #: where the body runs
    gated: bool = False  #: its sweep has a gate: a worker asks before it starts the job
    stops: bool = False  #: its failure ends the sweep (``on_error="stop"``)


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What a job is, fixed when it is enqueued; a worker knows it before it decodes anything.

    ``function`` is the digest of a function shipped by value, or ``"module:name"`` of one that the
    worker imports, or empty where only the registered name is known.
    """

    task_id: str
    fn_name: str
    lane: str
    channel: str = ""  #: where the client that enqueued it hears of its end
    function: str = ""
    is_async: bool = False
    sweep: str | None = None
    index: int | None = None  #: the point's place in its sweep
    nonce: str = ""  #: tells a repeated send of this call from a new call with the same id
    content: str = ""  #: hex digest of its arguments, of a job whose result may be used again
    code: str = ""  #: hex fingerprint of its function and all that it reaches
    policy: Policy = Policy()
    bound: bytes = b""  #: what its signatures are bound to, if this is not what was sent

    def binding(self) -> bytes:
        """What the signatures of its call and result are bound to, so that neither can be moved to
        another task, function, run or treatment. Lane and channel are not covered: they decide
        when it runs and who is told.
        """
        if self.bound:
            return self.bound
        said = (
            f"{self.fn_name}\0{self.function}\0{self.is_async}\0{self.nonce}\0{self.sweep}"
            f"\0{self.index}"
        )
        if self.policy != _USUAL:
            said += f"\0{self.policy!r}"
        if self.content or self.code:
            said += f"\0{self.content}\0{self.code}"
        return blake2b(said.encode("utf-8", "surrogatepass"), digest_size=16).digest()


_USUAL = Policy()


@dataclass(frozen=True, slots=True)
class JobRecord:
    """Everything the store knows of one job; its values still as signed bytes."""

    task_id: str
    fn_name: str
    priority: str
    status: JobState
    enqueue_time: int
    tries: int = 0
    sweep: str | None = None
    index: int | None = None  #: the point's place in its sweep
    scheduled_at: int | None = None
    expires_at: int | None = None  #: it ends as expired if it has not been started by then
    start: int | None = None
    cached: bool = False
    report: Report | None = None  #: what the body last said of itself
    failure: Failure | None = None  #: of the last failed attempt, while another one is to come
    worker: str | None = None
    spec: JobSpec | None = field(default=None, repr=False)
    outcome: Outcome | None = None  #: of a finished job; without its ``result`` unless asked for
    call: bytes = field(default=b"", repr=False)  #: the signed arguments, if asked for
    arguments: str | None = field(default=None, repr=False)  #: as text, if asked for
    log: str = field(default="", repr=False)  #: the end of its output as text, if asked for
    note: str = field(default="", repr=False)  #: what the reader should know: "reconnecting"

    @property
    def progress(self) -> float | None:
        """From 0 to 1, None where nothing was reported."""
        return self.report.fraction if self.report else None

    @property
    def message(self) -> str | None:
        return self.report.message if self.report else None


#: what a byte of :attr:`SweepSnapshot.cells` means
CELLS = ("queued", "running", "done", "failed", "aborted")


@dataclass(frozen=True, slots=True)
class SweepInfo:
    """A sweep as the store knows it, for those who look from outside."""

    name: str
    fn_name: str
    priority: str
    created: int  #: epoch ms by the server's clock
    total: int  #: its points, as far as they are known
    stored: int  #: of them, jobs that are in the store
    counts: Mapping[str, int]  #: jobs by the words of ``CELLS``
    cached: int = 0  #: jobs whose result is that of another sweep's or call's
    finish: int | None = None  #: epoch ms of its last job's end, if all have ended
    state: Literal["running", "paused", "stopped", "finished", "incomplete"] = "running"
    estimated: bool = False  #: are ``counts`` those of a sample, scaled up?


@dataclass(frozen=True, slots=True)
class SweepSnapshot:
    """The last known state of a sweep; cheap to make, and all that a view needs."""

    name: str
    fn_name: str
    total: int
    cells: bytes = field(repr=False)  #: one byte a job: an index into ``CELLS``
    elapsed: float = 0.0  #: seconds since it was started, to its end if it has ended
    eta: float | None = None  #: seconds until it ends, if that can be told
    errors: Mapping[str, int] = field(default_factory=dict)  #: error text → how many jobs
    note: str = ""  #: what the reader should know: "reconnecting", "stored 200 of 1,000"
    whole: bool = True  #: is every job known and stored?
    eta_low: float | None = None  #: in eight of ten cases ``eta`` is between this
    eta_high: float | None = None  #: and this
    rate: float | None = None  #: jobs a second, of late
    state: str = "running"  #: as that of a :class:`SweepInfo`
    slots: int = 0  #: of the workers that serve it
    examples: Mapping[str, list[int]] = field(default_factory=dict)  #: error → some places

    @property
    def counts(self) -> dict[str, int]:
        return {word: self.cells.count(code) for code, word in enumerate(CELLS)}

    @property
    def finished(self) -> bool:
        return self.whole and self.cells.count(0) + self.cells.count(1) == 0


@dataclass(frozen=True, slots=True)
class RunningJob:
    """What one slot of a worker is busy with."""

    task_id: str
    fn_name: str
    start: int  #: epoch ms


@dataclass(frozen=True, slots=True)
class FailedJob:
    """A job that has ended badly, of late."""

    task_id: str
    fn_name: str
    finish: int  #: epoch ms
    text: str  #: the error's ``repr``, cut


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker, by what it last said of itself."""

    id: str
    host: str
    pid: int
    slots: int
    running: int
    done: int  #: jobs that have ended on it, since it was started
    started: int  #: epoch ms
    at: int  #: when it said so, epoch ms
    load: float | None = None  #: of its machine, over a minute
    memory: int | None = None  #: bytes, with all processes that it has started
    lanes: tuple[str, ...] = ()
    pool: bool = False  #: was it started from a notebook?
    leaving: bool = False  #: it finishes its jobs and takes no more
    silent: bool = False  #: it should have said something since
    jobs: tuple[RunningJob, ...] = ()  #: what it runs, the first few
    failed: tuple[FailedJob, ...] = field(default=(), repr=False)  #: on it, the last few


@dataclass(frozen=True, slots=True)
class PoolSnapshot:
    """The workers of one queue on this machine; the last that was seen of them."""

    queue: str
    host: str
    at: int = 0  #: when somebody looked, epoch ms by the server's clock; 0: nobody has yet
    state: Literal["looking", "serving", "idle", "starting", "leaving", "stopped"] = "looking"
    workers: tuple[WorkerInfo, ...] = ()
    slots: int = 0  #: of those that stay
    wanted: int | None = None  #: slots, while their number is being changed
    most: int = 1  #: slots that a view offers
    note: str = ""  #: what the reader should know: "reconnecting"


@dataclass(frozen=True, slots=True)
class QueueSnapshot:
    """A queue at a glance; the last that was seen of it."""

    queue: str
    at: int = 0  #: when somebody looked, epoch ms by the server's clock; 0: nobody has yet
    lanes: Mapping[str, int] = field(default_factory=dict)  #: jobs that wait, lowest lane first
    delayed: int = 0
    workers: tuple[WorkerInfo, ...] = ()
    more_workers: int = 0  #: that are not among ``workers``
    sweeps: tuple[SweepInfo, ...] = ()  #: the newest few, the newest first
    more_sweeps: int = 0
    failures: tuple[FailedJob, ...] = ()  #: the last few that were seen, the newest first
    rates: tuple[float | None, ...] = ()  #: jobs ended per second, in steps; None: nobody looked
    step: float = 5.0  #: seconds
    since: int = 0  #: when the first step of ``rates`` began, epoch ms
    rate: float | None = None  #: jobs ended per second, of late
    note: str = ""  #: what the reader should know: "reconnecting"

    @property
    def running(self) -> int:
        return sum(worker.running for worker in self.workers)

    @property
    def slots(self) -> int:
        return sum(worker.slots for worker in self.workers if not worker.leaving)

    @property
    def waiting(self) -> int:
        return sum(self.lanes.values())
