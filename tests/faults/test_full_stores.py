"""Stores that are full, or would drop jobs to stay below a limit: refused early, nothing lost."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from qnb.errors import StoreFull, UnsafeStore
from tests.faults.conftest import Figures
from tests.faults.ledger import Ledger, note
from tests.faults.noting import IN_FULL, client, noting
from tests.faults.stage import Kind, Stage, eventually, invariants


@pytest.mark.parametrize("kind", IN_FULL)
def test_a_full_store_refuses_what_is_new_and_keeps_what_was_accepted(
    kind: Kind, stage: Stage, queue: str, ledger: Ledger, figures: Figures, tmp_path: Path
) -> None:
    server = stage.server()
    worker = stage.worker(server.url, queue, 4, kind=kind)
    app = client(server.url, queue)
    gate, path = tmp_path / "gate", ledger.path

    @app.task
    async def work(x: int, load: bytes) -> int:
        note(path, "start", x)
        while not gate.exists():  # noqa: ASYNC110 - it is another process that opens it
            await asyncio.sleep(0.01)
        note(path, "end", x)
        return x

    async def main() -> tuple[int, int, list[object]]:
        jobs = [await work.enqueue(x, b"") for x in range(8)]
        await asyncio.to_thread(eventually, lambda: len(ledger.starts()) >= 4, "four run")
        used = int(server.cli("INFO", "memory")["used_memory"])
        server.cli("CONFIG", "SET", "maxmemory", used + 2_000_000)
        refusal = ""
        while not refusal:
            try:
                jobs.append(await work.enqueue(len(jobs), os.urandom(20_000)))
            except StoreFull as error:
                refusal = str(error)
        assert "maxmemory" in refusal
        server.cli("CONFIG", "SET", "maxmemory", used)
        gate.touch()
        async with asyncio.timeout(30):
            values = await asyncio.gather(*jobs, return_exceptions=True)
        full = len(values)
        server.cli("CONFIG", "SET", "maxmemory", 0)
        assert await (await work.enqueue(full, b"")) == full
        return full, len(ledger.ends()) - 1, [v for x, v in enumerate(values) if v != x]

    accepted, done, wrong = asyncio.run(main())
    figures(
        "G17", f"noeviction, memory used up while jobs run and wait ({kind})",
        "StoreFull for the caller; every outcome of what was accepted kept, 0 lost, 0 exits",
        f"StoreFull after {accepted}, {done} done, {len(wrong)} wrong, "
        f"{ledger.extra()} extra runs, {int(not worker.alive)} exits",
        ok=accepted > 8 and done == accepted and not wrong and worker.alive and not ledger.extra(),
    )  # fmt: skip
    invariants(server.url, queue)


@pytest.mark.on_demand
def test_a_worker_is_started_on_a_full_store_and_empties_it(
    stage: Stage, queue: str, ledger: Ledger
) -> None:
    server = stage.server()
    app = client(server.url, queue)
    work = noting(app, ledger.path)

    async def main() -> None:
        assert stage.worker(server.url, queue, 2).terminate() == 0  # one has been here before
        jobs = [await work.enqueue(x, 0) for x in range(20)]
        server.cli("CONFIG", "SET", "maxmemory", 1)
        worker = stage.worker(server.url, queue, 2, wait=False)
        async with asyncio.timeout(15):
            assert await asyncio.gather(*jobs) == list(range(20))
        assert worker.alive

    asyncio.run(main())


@pytest.mark.parametrize("kind", IN_FULL)
@pytest.mark.parametrize(
    "policy", ["allkeys-lru", pytest.param("volatile-ttl", marks=pytest.mark.on_demand)]
)
def test_a_server_that_would_drop_jobs_is_refused_by_name(
    policy: str, kind: Kind, stage: Stage, queue: str, figures: Figures
) -> None:
    server = stage.server(config={"maxmemory-policy": policy})
    with pytest.raises(UnsafeStore, match=f"maxmemory-policy '{policy}'.*noeviction"):
        client(server.url, queue).task(name="f")(abs).submit(1)
    worker = stage.worker(server.url, queue, 1, kind=kind, wait=False)
    eventually(lambda: not worker.alive, "the worker leaves")
    named = f"maxmemory-policy '{policy}'" in worker.log()
    figures(
        "G17", f"started on a server with maxmemory-policy {policy} ({kind})",
        "refused by client and worker, the policy named; the worker leaves non-zero",
        f"{'named' if named else 'not named'}, exit status {worker.exit_status}",
        ok=named and bool(worker.exit_status),
    )  # fmt: skip
