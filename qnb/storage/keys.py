"""The names of everything a queue keeps in the store.

All keys of a queue share one hash tag, ``qnb:{queue}:``, so that they live in one cluster slot and
one ACL pattern covers them.

==================== ====== ============================ =======================================
key                  type   lifetime                     what it holds, who writes it
==================== ====== ============================ =======================================
``lane:<name>``      stream structural                   entries ``a n c t m p x`` (attempt, starts
                                                         and lost starts before it, enqueue time,
                                                         spec, small call, expiry; 0 where absent):
                                                         one per waiting or held job;
                                                         group ``qnb`` is the lease. enqueue,
                                                         promote, retry, rerun, cron
``back:<lane>``      stream structural                   the same, of what a worker handed back or
                                                         lost: served before its lane. recover
``parked:<lane>``    zset   structural                   of what the gate of its sweep holds
                                                         back: sweep, place, job key. pass,
                                                         release
``delayed:<lane>``   zset   structural                   job key by due time. enqueue, retry,
                                                         promote
``expiring:<lane>``  zset   structural                   job key by expiry; swept by expire.
                                                         enqueue
``jobs``             zset   structural                   job key by enqueue time; swept of
                                                         expired jobs by workers
``sweeps``           zset   structural                   sweep by time of its last points; swept
                                                         of expired ones by workers
``gates``            hash   structural                   sweep: state, limit, last use of its
                                                         gate; unused ones swept by workers. gate
``holders:<hex>``    hash   structural                   job key: its entry, of the jobs that take
                                                         the places of a sweep with a limit. pass,
                                                         release
``workers``          zset   structural                   worker id by time of its last heartbeat;
                                                         swept by workers
``job:<hex>``        hash   30 d, again from its start,  the job's record: ``m`` spec, ``p`` call,
                            ``result_ttl_ms`` from its   ``t`` enqueue time, ``s`` state, ``a``
                            end                          attempt, ``n`` starts, ``c`` lost starts,
                                                         ``e`` entry, ``d`` due, ``x`` expiry,
                                                         ``b`` start, ``w`` worker, ``g`` report,
                                                         ``f`` last failure, ``k`` abort asked by,
                                                         ``l`` ``ld`` log bytes kept and dropped,
                                                         ``o`` outcome, ``r`` result
``log:<hex>``        list   as its job                   output of the body in pieces, a ring of
                                                         1 MB. report
``sweep:<hex>``      hash   30 d and ``result_ttl_ms``   a sweep: ``n`` name, ``p`` prefix of its
                            from the last news of it     jobs' ids, ``c`` created, ``f`` task, ``l``
                                                         lane, ``m`` signed manifest, ``v`` version
                                                         of its points, ``t`` how many, ``j`` its
                                                         jobs, ``s`` those stored, ``k`` all points
                                                         known, ``b`` last stored at, ``z`` how it
                                                         ended, ``h`` who holds it back, ``i`` nonce
                                                         of its last points. study, mark
``points:<hex>``     list   as its sweep                 the sweep's points in signed parts
``digests:<hex>``    string as its sweep                 16 bytes a job: what its arguments are
``cache:<digest>``   string 30 d and ``result_ttl_ms``   the job that computes a content
``code:<digest>``    string 30 d and ``result_ttl_ms``   what a fingerprint was made of
``func:<digest>``    string 30 d from its last submit    a function by value, signed
                            or its latest due time
``env:<digest>``     string 1 d from a worker's start    packages of a worker's environment
``worker:<hex>``     string a lease                      what a worker says of itself
``cron:<hex>``       string two periods and 10 min       an occurrence that has been enqueued
==================== ====== ============================ =======================================

Times are epoch milliseconds by the server's clock. States are ``q`` queued, ``d`` delayed,
``r`` running, ``c`` complete. Two kinds of channel carry news: ``notice:<client>`` of one client's
jobs, ``control`` to all workers (``a<task id>`` abort, ``w<time>`` something is due then,
``g<sweep>`` its gate has changed, ``s`` somebody looks: say what you do). An entry is named by its
id, ``b`` and the id if it is in ``back``, ``p`` and the member of one that is parked.
"""

from __future__ import annotations

from hashlib import blake2b

__all__ = [
    "DAY_MS", "EXPIRING", "GROUP", "STRUCTURAL", "UNFINISHED_TTL_MS", "KeySpace", "is_hex",
    "job_hex",
]  # fmt: skip

#: the consumer group on every lane
GROUP = "qnb"

DAY_MS = 24 * 3600 * 1000

#: an unfinished job's record lives this long
UNFINISHED_TTL_MS = 30 * DAY_MS

#: kinds of key that stay; each is bounded by what is waiting, or swept
STRUCTURAL = (
    "lane", "back", "parked", "delayed", "expiring", "jobs", "sweeps", "gates", "holders",
    "workers",
)  # fmt: skip

#: kinds of key that always carry a time to live
EXPIRING = (
    "job",
    "log",
    "sweep",
    "points",
    "digests",
    "cache",
    "code",
    "func",
    "env",
    "worker",
    "cron",
)


def job_hex(task_id: str) -> str:
    """The part of a job's key that stands for its id, whatever text that is."""
    return blake2b(task_id.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def is_hex(member: bytes) -> bool:
    """Whether a member of an index can be what :func:`job_hex` makes."""
    return len(member) == 32 and not member.strip(b"0123456789abcdef")


class KeySpace:
    """The keys of one queue."""

    __slots__ = ("control", "gates", "jobs", "prefix", "sweeps", "workers")

    def __init__(self, queue: str) -> None:
        self.prefix = f"qnb:{{{queue}}}:"
        self.jobs = self.prefix + "jobs"
        self.sweeps = self.prefix + "sweeps"
        self.gates = self.prefix + "gates"
        self.workers = self.prefix + "workers"
        self.control = self.prefix + "control"

    def lane(self, name: str) -> str:
        return f"{self.prefix}lane:{name}"

    def back(self, lane: str) -> str:
        return f"{self.prefix}back:{lane}"

    def parked(self, lane: str) -> str:
        return f"{self.prefix}parked:{lane}"

    def holders(self, sweep: str) -> str:
        """Of a sweep, by the :func:`job_hex` of the prefix of its jobs' ids."""
        return f"{self.prefix}holders:{sweep}"

    def delayed(self, lane: str) -> str:
        return f"{self.prefix}delayed:{lane}"

    def expiring(self, lane: str) -> str:
        return f"{self.prefix}expiring:{lane}"

    def job(self, task_id: str) -> str:
        return f"{self.prefix}job:{job_hex(task_id)}"

    def job_of(self, hex_: str) -> str:
        """The key of the job whose :func:`job_hex` is ``hex_``."""
        return f"{self.prefix}job:{hex_}"

    def log(self, task_id: str, enqueue_time: int) -> str:
        """Of one run of the job: a fresh run has a fresh log."""
        return f"{self.prefix}log:{job_hex(task_id)}.{enqueue_time}"

    def sweep(self, name: str) -> str:
        return f"{self.prefix}sweep:{job_hex(name)}"

    def study(self, name: str) -> tuple[str, str, str]:
        """All keys of a sweep but its jobs: itself, its points, its digests."""
        hex_ = job_hex(name)
        return self.sweep(name), f"{self.prefix}points:{hex_}", f"{self.prefix}digests:{hex_}"

    def cache(self, digest: str) -> str:
        return f"{self.prefix}cache:{digest}"

    def code(self, digest: str) -> str:
        return f"{self.prefix}code:{digest}"

    def function(self, digest: str) -> str:
        return f"{self.prefix}func:{digest}"

    def environment(self, digest: str) -> str:
        return f"{self.prefix}env:{digest}"

    def worker(self, worker_id: str) -> str:
        return f"{self.prefix}worker:{job_hex(worker_id)}"

    def cron(self, name: str, occurrence: int) -> str:
        return f"{self.prefix}cron:{job_hex(f'{name}@{occurrence}')}"

    def channel(self, client: str) -> str:
        """The pub/sub channel (not a key) on which ``client`` hears of its jobs."""
        return f"{self.prefix}notice:{client}"
