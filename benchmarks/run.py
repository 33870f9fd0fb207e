"""qnb beside its peers, measured in one run: ``make bench``, a minute with ``ARGS=--quick``.

Every contender runs in a process of its own, with a queue of its own, on the same server with the
settings of the embedded one, over TCP on loopback. Rounds are interleaved, in another order each.
Prints the tables, keeps the figures of the rounds in ``build/bench/figures.json`` and, when all was
measured, writes the tables into ``docs/performance.md``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(HERE / "peers")]

import alone  # noqa: E402
import fair  # noqa: E402
import page  # noqa: E402
import where  # noqa: E402
from rows import CONTENDERS, PEER, Contender, goals, table  # noqa: E402
from work import spin_for  # noqa: E402

from qnb.storage import server  # noqa: E402

FIGURES = ROOT / "build" / "bench" / "figures.json"
LOG = ROOT / "build" / "bench" / "workers.log"

#: form of worker → what is done with it, in order, and how often
WORK = {
    "one": {"warm up": 100, "drain": 20_000, "round trip": 1500, "blocking trip": 500,
            "enqueue one": 2000, "fan out": 2000},
    "arrays": {"warm up": 10, "arrays": 50},
    "two": {"warm up": 40, "compute": 200},
}  # fmt: skip
QUICK = {
    "one": {"warm up": 20, "drain": 1000, "round trip": 100, "blocking trip": 50,
            "enqueue one": 100, "fan out": 200},
    "arrays": {"warm up": 10, "arrays": 5},
    "two": {"warm up": 10, "compute": 20},
}  # fmt: skip
PATIENCE = 480.0  #: seconds in which more than 3 rounds are to be done
SCALED = {"drain", "round trip", "enqueue one"}  # less of them is as good a figure


class Server:
    """One server for all, with the embedded one's program and settings, on loopback."""

    def __init__(self, home: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}"
        self._process = subprocess.Popen(
            [
                server._program(), *server.SETTINGS,
                *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", home),
                *("--daemonize", "no", "--logfile", ""),
                # A rewrite would hit whoever is measured just then: here they are made in between.
                *("--auto-aof-rewrite-percentage", "0"),
            ],
            stdout=subprocess.DEVNULL, env={**os.environ, **server.ENVIRONMENT},
        )  # fmt: skip
        while True:
            with contextlib.suppress(OSError):
                if self.call("PING") == "+PONG":
                    return
            time.sleep(0.01)

    def call(self, *words: str) -> str:
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as link:
            link.sendall(" ".join(words).encode() + b"\r\n")
            return link.recv(65536).decode().strip()

    @property
    def version(self) -> str:
        said = dict(line.split(":", 1) for line in self.call("INFO", "server").split("\r\n")
                    if ":" in line)  # fmt: skip
        if "valkey_version" in said:
            return f"Valkey {said['valkey_version']}"
        return f"Redis {said['redis_version']}"

    def clear(self) -> None:
        """Nothing of the one before is left, in memory or on disk."""
        self.call("FLUSHALL")
        self.call("BGREWRITEAOF")
        while "aof_rewrite_in_progress:1" in self.call("INFO", "persistence"):
            time.sleep(0.05)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="qnb-bench-") as home:
        # Nothing of the user's own is read or written.
        os.environ |= {"QNB_DATA_DIR": f"{home}/server", "XDG_DATA_HOME": home,
                       "XDG_STATE_HOME": home}  # fmt: skip
        store = Server(home)
        try:
            yield store
        finally:
            store.stop()


def steps() -> int:
    """How often :func:`spin_for` goes round in 10 ms here."""
    took = []
    for _ in range(25):
        began = time.thread_time()
        spin_for(100_000)
        took.append(time.thread_time() - began)
    return int(100_000 * 0.010 / statistics.median(took))


class Run:
    """The rounds of one run, and what came of them."""

    def __init__(self, store: Server, peers: str | None, *, quick: bool, only: str) -> None:
        self.store = store
        self.work = QUICK if quick else WORK
        self.python = {True: sys.executable, False: peers and str(Path(peers).absolute())}
        named = [one for one in CONTENDERS if one.name.startswith(only)]
        self.contenders = [one for one in named if self._can(one)]
        self.figures: dict[str, dict[str, dict[int, float]]]
        self.figures = defaultdict(lambda: defaultdict(dict))
        self.steps = steps()

    def _can(self, contender: Contender) -> bool:
        python = self.python[contender.is_ours]
        if python is None:
            return False
        tried = subprocess.run(
            [python, "-c", f"import {contender.package}"], capture_output=True, check=False
        )
        if tried.returncode:
            print(f"{contender.name} is left out: {python} has not got it", file=sys.stderr)
        return not tried.returncode

    def round(self, number: int) -> None:
        shift = number % len(self.contenders)
        for form, work in self.work.items():
            for contender in self.contenders[shift:] + self.contenders[:shift]:
                if form not in contender.forms:
                    continue
                for key, figure in self.measured(contender, form, work).items():
                    self.figures[contender.name][key][number] = figure

    def measured(self, contender: Contender, form: str, work: dict[str, int]) -> dict[str, float]:
        scale = contender.scale
        work = {what: int(count * scale) if what in SCALED else count
                for what, count in work.items()}  # fmt: skip
        python = self.python[contender.is_ours]
        assert python is not None
        env = os.environ | {
            "BENCH_URL": self.store.url, "BENCH_QUEUE": f"bench-{secrets.token_hex(4)}",
            "BENCH_FORM": form, "BENCH_KIND": contender.kind, "BENCH_WORK": json.dumps(work),
            "BENCH_LOG": str(LOG), "BENCH_STEPS": str(self.steps),
        }  # fmt: skip
        process = subprocess.Popen(
            [python, contender.script], cwd=HERE / "peers", env=env, stdout=subprocess.PIPE,
            text=True, start_new_session=True,
        )  # fmt: skip
        said = ""
        try:
            said, _ = process.communicate(timeout=150)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # workers that it has not stopped
        self.store.clear()
        if process.wait() or not said:
            print(f"{contender.name} has no figures of {list(work)}, see {LOG}", file=sys.stderr)
            return {}
        found: dict[str, float] = json.loads(said.splitlines()[-1])
        if form != "one":  # its memory is that of another worker
            found = {key: found[key] for key in found if "memory" not in key}
        return found


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--quick", action="store_true", help="a minute: does it all run?")
    asked.add_argument("--rounds", type=int, help="default: 5, or 3 where they take long")
    asked.add_argument("--peers", help="the Python that has the peers; without it, qnb alone")
    asked.add_argument("--only", help="the contenders whose names begin so, and nothing else")
    told = asked.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # which leaves nothing behind
    LOG.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with serving() as store:
        run = Run(store, told.peers, quick=told.quick, only=told.only or "")
        on = page.machine(store.version, run.python[False], run.contenders, 1e7 / run.steps)
        print(on, flush=True)
        rounds = beside_peers(run, 1 if told.quick else told.rounds)
        print(f"\n{table(run.figures)}\n\n{goals(run.figures)}\n", flush=True)
        if told.only:
            return
        ours = alone.measured(quick=told.quick)
        print(f"{alone.table(ours)}\n\n{alone.goals(ours)}\n", flush=True)
        spent = where.measured(store.url, quick=told.quick)
        print(f"{where.table(spent)}\n", flush=True)
        fairness = fair.measured(store.url, quick=told.quick)
        print(f"{fair.table(fairness)}\n\n{time.monotonic() - began:.0f} s in all", flush=True)
    if told.quick:
        return
    FIGURES.write_text(json.dumps(run.figures, indent=1))
    if PEER in run.figures:
        page.write({
            "machine": f"{on}; {rounds} rounds.", "peers": table(run.figures),
            "alone": alone.table(ours), "fair": fair.table(fairness),
            "where": where.table(spent),
        })  # fmt: skip
    else:
        print(f"{page.PAGE} stays as it is: {PEER} was not measured")


def beside_peers(run: Run, wanted: int | None) -> int:
    """Do the rounds; how many there were."""
    began = time.monotonic()
    for number in range(wanted or 5):
        each = (time.monotonic() - began) / max(number, 1)
        if not wanted and number >= 3 and each * (number + 1) > PATIENCE:
            return number
        run.round(number)
        for name, took in alone.imports(run.contenders, run.python):
            run.figures[name]["import"][number] = took
        print(f"round {number + 1}, {time.monotonic() - began:.0f} s", flush=True)
    return wanted or 5


if __name__ == "__main__":
    main()
