"""A fan-out as one thing: a sequence of jobs that is stored, watched, awaited and tabulated."""

from __future__ import annotations

import asyncio
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from datetime import timedelta
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar, overload
from weakref import finalize

from qnb import bridge
from qnb.client import Client
from qnb.clock import seconds
from qnb.display import Displayed
from qnb.errors import CodeChanged, InvalidOption
from qnb.forecast.forecast import Progress
from qnb.job import Job
from qnb.models import CELLS, JobRecord, SweepSnapshot
from qnb.reading import value_of
from qnb.storage.studies import ABORTED, DONE, FAILED, QUEUED, RUNNING
from qnb.sweeps.comparing import changed
from qnb.sweeps.completed import Completed, how_to_return
from qnb.sweeps.designs import Design
from qnb.sweeps.driver import Driver
from qnb.sweeps.feed import Feed
from qnb.sweeps.layout import Layout, taken
from qnb.sweeps.manifest import Manifest
from qnb.sweeps.opening import Opened
from qnb.sweeps.spaces import extended

if TYPE_CHECKING:
    from qnb.analysis.cubes import Dataset as XarrayDataset
    from qnb.analysis.frames import DataFrame
    from qnb.analysis.plots import Axes, Kind

__all__ = ["Sweep"]

R = TypeVar("R")

#: seconds that finding a sweep takes at most before its jobs' states are known
READ = 3.0

Errors = Literal["raise", "coerce", "return"]

_Read = tuple[list[str], Design, list[JobRecord | None]]  # the jobs, their points, what is known


class Sweep(Displayed, Sequence[Job[R]]):
    """One job per point of a design, in the design's order; kept by its name.

    Made by :meth:`Task.grid <qnb.Task.grid>` and its siblings, which return at once: the jobs are
    stored in the background. ``sweep[i]`` is a job, ``await sweep`` gives all values,
    :meth:`wait` blocks until all have ended, :meth:`frame` tabulates. ``app.sweep(name)`` finds it
    again from any kernel. As the last expression of a notebook cell it is shown live.

    All its state is owned by qnb's I/O thread; other threads read it.
    """

    def __init__(
        self, client: Client, opened: Opened, *, shuffle: bool = False, rerun: bool = False
    ) -> None:
        self.name = opened.study.name
        self.fn_name = opened.study.fn_name
        self._client = client
        self._driver = Driver(client, opened, shuffle=shuffle, rerun=rerun)
        self._driver.start()
        if opened.by_name:
            finalize(self, self._driver.let_go).atexit = False

    @property
    def _feed(self) -> Feed:
        return self._driver.feed

    @property
    def design(self) -> Design:
        """Its points."""
        return self._laid_out().layout.design

    # -- a sequence of jobs --------------------------------------------------------------------

    def _laid_out(self) -> Feed:
        """The feed, once it is known which job is where."""
        self._driver.ready.result()
        return self._driver.feed

    def _stored(self) -> Driver:
        """Its driver, if it is more than a plan."""
        if self._driver.is_plan:
            raise InvalidOption(
                f"{self!r}: a dry run has no jobs of its own; app.sweep({self.name!r}) finds those "
                "of the sweep of that name, if there is one"
            )
        return self._driver

    def __len__(self) -> int:
        return len(self._laid_out().layout)

    @overload
    def __getitem__(self, at: int) -> Job[R]: ...
    @overload
    def __getitem__(self, at: slice) -> list[Job[R]]: ...
    def __getitem__(self, at: int | slice) -> Job[R] | list[Job[R]]:
        if isinstance(at, slice):
            return [self._job(i) for i in range(len(self))[at]]
        return self._job(range(len(self))[at])

    def __iter__(self) -> Iterator[Job[R]]:
        return map(self._job, range(len(self)))

    def _id(self, place: int) -> str:
        feed = self._feed
        return feed.study.id(feed.layout.number(place))

    def _ids(self) -> list[str]:
        feed = self._laid_out()
        study, layout = feed.study, feed.layout
        return [study.id(layout.number(place)) for place in range(len(layout))]

    def _job(self, place: int) -> Job[R]:
        return Job(self._client, self._id(place))

    def _until_known(self) -> Sweep[R]:
        """It, once the state of its jobs has been read, or after a while."""
        bridge.run(self._driver.known(READ))
        return self

    # -- waiting -------------------------------------------------------------------------------

    def wait(self, timeout: float | timedelta | None = None) -> Sweep[R]:
        """Block until every job has ended, well or badly; the sweep itself.

        ``TimeoutError`` after ``timeout`` seconds. An interrupt ends the wait; the work goes on.
        """
        limit = seconds(timeout)
        deadline = None if limit is None else time.monotonic() + limit
        try:
            while (ended := self._feed.ended) is not None:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                ended.result(left)
                if ended is self._feed.ended:
                    return self
        except FutureTimeout:
            raise TimeoutError(
                f"{self!r} has not ended within {limit:g} s; {self._feed.why()}"
            ) from None
        except KeyboardInterrupt as interrupt:
            interrupt.add_note(how_to_return(self.name))
            raise
        return self

    async def _all_ended(self) -> None:
        while (ended := self._feed.ended) is not None:
            await bridge.arrived(ended)
            if ended is self._feed.ended:
                return

    def __await__(self) -> Generator[Any, None, list[R]]:
        return self._values().__await__()

    async def _values(self) -> list[R]:
        await self._all_ended()
        return self._results(await asyncio.wrap_future(bridge.spawn(self._records())), "raise")

    def results(self, errors: Errors = "raise") -> list[Any]:
        """Wait for all jobs and give their values, in the order of the points.

        With ``errors="raise"`` an ``ExceptionGroup`` of all failures, each with its point; with
        ``"coerce"`` their places hold None, with ``"return"`` the exceptions themselves.
        """
        if errors not in ("raise", "coerce", "return"):
            raise InvalidOption(f"errors={errors!r}: expected 'raise', 'coerce' or 'return'")
        self.wait()
        return self._results(bridge.run(self._records()), errors)

    def _results(self, read: _Read, errors: Errors) -> list[Any]:
        found: list[Any] = []
        failures: list[Exception] = []
        ids, design, records = read
        for place, (id_, record) in enumerate(zip(ids, records, strict=True)):
            try:
                found.append(value_of(self._client.codec, id_, record))
            except Exception as error:  # noqa: BLE001 - collected, and given together
                error.add_note(f"job {id_!r}, point {design[place]!r}")
                failures.append(error)
                found.append(error if errors == "return" else None)
        if failures and errors == "raise":
            raise ExceptionGroup(
                f"{len(failures):,} of {len(ids):,} jobs of sweep {self.name!r} failed", failures
            )
        return found

    def as_completed(self, timeout: float | timedelta | None = None) -> Completed[R]:
        """The jobs as they end, well or badly: ``for job in ...``, or ``async for job in ...``.

        Those that have ended come first. ``TimeoutError`` if not all have within ``timeout``
        seconds.
        """
        return Completed(self._laid_out, self._job, seconds(timeout))

    async def _records(self) -> _Read:
        feed, ids = self._feed, self._ids()
        design = feed.layout.design
        store = (await self._client.link()).store
        return ids, design, await feed.patiently(lambda: store.records(ids, result=True))

    # -- commands ------------------------------------------------------------------------------

    def retry(self, where: Any = None) -> bridge.Command[int]:
        """Run jobs again that have ended: all that have no value, or those of ``where``.

        ``where`` is a mask with a bool for each point, or jobs, or their ids such as
        ``frame[frame.loss > 1].index``. They run with the function that is defined here now, if
        this kernel has the task, else with the one they had. A sweep that is held back goes on,
        and what waits in it gets that function too. The answer is how many jobs there are.
        """
        driver, chosen, manifest = self._stored(), self._chosen(where), self._todays()
        held = where is None and self._feed.paused.startswith("paused")

        async def reopen() -> list[int]:
            feed = driver.feed
            ended = [p for p in feed.layout.places(chosen) if feed.cells[p] > RUNNING]
            feed.renew(ended)
            return [feed.layout.number(place) for place in ended]

        return bridge.Command(
            driver.again(bridge.run(reopen()), manifest, waiting=held),
            f"retry of sweep {self.name!r}",
        )

    def _todays(self) -> Manifest:
        """The manifest with the function that its task has here now."""
        manifest = self._driver.manifest
        fn = self._client.registry.get(self.fn_name)
        if fn is None:
            return manifest
        function, blob = self._client.shipped(fn)
        return manifest.of(function, blob, self._client.code(fn), iscoroutinefunction(fn))

    def _chosen(self, where: Any) -> list[int]:
        """The numbers of the jobs that are meant."""
        feed = self._laid_out()
        study, layout, cells = feed.study, feed.layout, bytes(feed.cells)
        if where is None:
            return [layout.number(p) for p, cell in enumerate(cells) if cell in (FAILED, ABORTED)]
        if isinstance(where, str | Job):
            where = [where]
        listed = list(getattr(where, "index", where) if hasattr(where, "columns") else where)
        if all(isinstance(one, str | Job) for one in listed):
            numbers = {study.id(n): n for n in map(layout.number, range(len(layout)))}
            ids = [one.id if isinstance(one, Job) else one for one in listed]
            if unknown := [id_ for id_ in ids if id_ not in numbers]:
                raise InvalidOption(f"job {unknown[0]!r} is none of {self!r}")
            return [numbers[id_] for id_ in ids]
        if len(listed) != len(layout) or not all(_is_bool(one) or _is_na(one) for one in listed):
            raise InvalidOption(
                f"where has {len(listed):,} values: expected a bool for each of the "
                f"{len(layout):,} points, or jobs or ids of some of them"
            )
        return [layout.number(p) for p, one in enumerate(listed) if not _is_na(one) and one]

    def cancel(self) -> bridge.Command[int]:
        """End all that has not ended: what waits is aborted, what runs is stopped.

        The answer is how many jobs that were.
        """
        return bridge.Command(self._stored().cancel(), f"cancel of sweep {self.name!r}")

    def pause(self) -> bridge.Command[bool]:
        """Let no further job start, wherever workers are; what runs goes on.

        It stays so until :meth:`resume`, also when this kernel is gone. The answer is false if no
        job is left.
        """
        return bridge.Command(self._stored().pause(), f"pause of sweep {self.name!r}")

    def resume(self) -> bridge.Command[bool]:
        """Let jobs start again after :meth:`pause`; false if none is left."""
        return bridge.Command(self._stored().resume(), f"resume of sweep {self.name!r}")

    def extend(self, **axes: Any) -> bridge.Command[int]:
        """Add values to axes of a grid, and run the new points: the answer is how many.

        What has been computed stays. ``sweep.extend(x=[4, 5])`` on a grid of ``x`` and ``y`` runs
        the new values of ``x`` with each ``y``.
        """
        driver, manifest, axes = self._stored(), self._todays(), taken(axes)
        layout = self._laid_out().layout
        design = extended(layout.design, axes, repr(self))  # refused here, rather than unheard
        opened = Opened(driver.feed.study, manifest, before=driver.manifest)
        if said := bridge.run(changed(self._client, opened)):
            warnings.warn(said, CodeChanged, stacklevel=2)

        def points(now: Layout) -> Design:
            return design if now is layout else extended(now.design, axes, repr(self))

        return bridge.Command(driver.extend(points, manifest), f"extend of sweep {self.name!r}")

    # -- looking -------------------------------------------------------------------------------

    def frame(self) -> DataFrame:
        """All points as a tidy DataFrame, also while they run.

        Parameters first under their own names, then the result (the fields of a dict, NamedTuple
        or dataclass become columns), then how each job went. Index: ``task_id``.
        """
        from qnb.analysis import gather
        from qnb.analysis.columns import MISSING

        design = self.design
        return gather.sweep_frame(
            self._client, self.name, self._ids(), design.columns(absent=MISSING), design.labels
        )

    def errors(self) -> DataFrame:
        """What went wrong, grouped by the type of the error and the line of yours that raised it.

        A row a group, the commonest first: ``error_type``, ``where`` (``"Cell In[3], line 6"``),
        that ``line``, how many (``count``), an ``example`` with its ``message``, all ``task_ids``.
        """
        from qnb.analysis import gather

        feed = self._laid_out()
        places = [place for place, cell in enumerate(feed.cells) if cell == FAILED]
        return gather.errors_frame(self._client, [self._id(place) for place in places])

    def to_xarray(self, *axes: str, values: str | Sequence[str] | None = None) -> XarrayDataset:
        """The results as an ``xarray.Dataset`` whose dimensions are the parameters that vary.

        As :func:`qnb.analysis.cubes.to_xarray` of :meth:`frame`; NaN where there is no value (yet).
        """
        from qnb.analysis import cubes

        return cubes.to_xarray(self.frame(), *axes, values=values)

    def pivot(self, index: str, columns: str, values: str | None = None) -> DataFrame:
        """A table of one result: a row for each value of ``index``, a column for each of the other.

        ``values`` names the result if there are several.
        """
        from qnb.analysis import cubes

        return cubes.pivot(self.frame(), index, columns, values)

    def plot(
        self,
        kind: Kind = "timeline",
        *,
        ax: Axes | None = None,
        x: str | None = None,
        y: str | None = None,
        color: str | None = None,
    ) -> Axes:
        """Draw how it went: when each job ran and where, how long they took, a result over a
        parameter. ``x``, ``y`` and ``color`` name columns of :meth:`frame` for the last.
        """
        from qnb.analysis import plots

        frame = self.frame()
        return plots.plot(
            frame, kind, parameters=frame.attrs["parameters"], ax=ax, x=x, y=y, color=color
        )

    def progress(self) -> Progress:
        """How far it is, how fast, and when it will end: with an interval that holds 8 of 10."""

        async def ask() -> Progress:
            feed = self._driver.feed
            feed.estimate(fresh=True)
            return self._progress()

        return bridge.run(ask())

    def _progress(self) -> Progress:
        feed, estimate = self._driver.feed, self._driver.feed.estimated
        cells = bytes(feed.cells)
        counts = [cells.count(code) for code in range(len(CELLS))]
        return Progress(
            total=len(cells), done=counts[DONE], failed=counts[FAILED], aborted=counts[ABORTED],
            running=counts[RUNNING], queued=counts[QUEUED], cached=feed.cached,
            rate=estimate.rate, eta=estimate.eta, eta_low=estimate.low, eta_high=estimate.high,
            state=self._state(),
        )  # fmt: skip

    def _state(self) -> str:
        feed = self._driver.feed
        if feed.ended.done():
            return "finished" if feed.ended.exception() is None else "incomplete"
        if self._feed.paused:
            return self._feed.paused.partition(":")[0]  # the reason follows
        return "running"

    def snapshot(self) -> SweepSnapshot:
        """The last known state; no I/O."""
        feed = self._driver.feed
        cells = b"" if self._driver.is_plan else bytes(feed.cells)
        return SweepSnapshot(
            name=self.name,
            fn_name=self.fn_name,
            total=len(cells),
            cells=cells,
            elapsed=feed.elapsed,
            eta=feed.estimated.eta if feed.left else None,
            eta_low=feed.estimated.low,
            eta_high=feed.estimated.high,
            rate=feed.estimated.rate,
            state=self._state(),
            errors=feed.errors.counts(),
            note=self._note(),
            whole=feed.stored or feed.ended.done(),
            slots=feed.slots,
            examples=feed.errors.examples(),
        )

    def _note(self) -> str:
        feed = self._driver.feed
        if feed.ended.done():
            error = feed.ended.exception()
            return str(error) if error else feed.note
        if feed.away:
            return "reconnecting"
        if self._feed.paused:
            return self._feed.paused
        if not feed.stored and feed.study.stored < max(feed.study.jobs, 1):
            return f"stored {feed.study.stored:,} of {feed.study.jobs:,}"
        return feed.unserved or feed.note

    def watch(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Have ``changed`` called on qnb's I/O thread whenever :meth:`snapshot` may have changed.

        Call the answer to stop.
        """
        watchers = self._feed.watchers
        watchers.append(changed)

        def end() -> None:
            if changed in watchers:
                watchers.remove(changed)

        return end

    def __repr__(self) -> str:
        feed = self._driver.feed
        if self._driver.is_plan:
            return f"<Sweep {self.name!r} of {self.fn_name!r}: {feed.note}>"
        total, aborted = len(feed.cells), feed.cells.count(ABORTED)
        said = f"{total - feed.left:,}/{total:,} finished, {feed.cells.count(FAILED):,} failed"
        said += f", {aborted:,} aborted" if aborted else ""
        return f"<Sweep {self.name!r} of {self.fn_name!r}: {said}; app.sweep({self.name!r})>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"a sweep stays in this process: a task that needs it calls app.sweep({self.name!r})"
        )

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


def _is_na(one: object) -> bool:
    return type(one).__name__ == "NAType"  # of a nullable mask: it is not known


def _is_bool(one: object) -> bool:
    return isinstance(one, bool) or type(one).__name__ in ("bool", "bool_")
