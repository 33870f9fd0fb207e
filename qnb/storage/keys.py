"""The names of everything a queue keeps in the store.

All keys of a queue share one hash tag, ``qnb:{queue}:``, so that they live in one cluster slot and
one ACL pattern covers them.

=================== ====== ============================ ========================================
key                 type   lifetime                     what it holds, who writes it
=================== ====== ============================ ========================================
``lane:<name>``     stream structural                   entries ``j a n t m p`` (job key,
                                                        attempt, starts before it, enqueue
                                                        time, spec, small call): one
                                                        per waiting or held job; group ``qnb``
                                                        is the lease. enqueue, claim, recover,
                                                        finish
``delayed``         zset   structural                   job key by due time
``jobs``            zset   structural                   job key by enqueue time; swept of
                                                        expired jobs by workers
``workers``         zset   structural                   worker id by time of its last heartbeat;
                                                        swept by workers
``job:<hex>``       hash   30 d, then ``result_ttl_ms`` the job's record: ``m`` spec, ``p`` call,
                           after its end                ``t`` enqueue time, ``s`` state, ``a``
                                                        attempt, ``n`` starts, ``e`` entry,
                                                        ``b`` start, ``w`` worker, ``o`` outcome,
                                                        ``r`` result. enqueue, start, recover,
                                                        finish
``func:<hex>``      string 30 d after its last use      a function shipped by value, signed.
                                                        client
``worker:<hex>``    string three heartbeats             what a worker says of itself. worker
=================== ====== ============================ ========================================

Times are epoch milliseconds by the server's clock. States are ``q`` queued, ``d`` delayed,
``r`` running, ``c`` complete. The channel ``notice:<hex>`` carries news of one client's jobs.
"""

from __future__ import annotations

from hashlib import blake2b

__all__ = ["EXPIRING", "GROUP", "STRUCTURAL", "KeySpace", "job_hex"]

#: the consumer group on every lane
GROUP = "qnb"

#: kinds of key that stay; each is bounded by what is waiting, or swept
STRUCTURAL = ("lane", "delayed", "jobs", "workers")

#: kinds of key that always carry a time to live
EXPIRING = ("job", "func", "worker")


def job_hex(task_id: str) -> str:
    """The part of a job's key that stands for its id, whatever text that is."""
    return blake2b(task_id.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


class KeySpace:
    """The keys of one queue."""

    __slots__ = ("delayed", "jobs", "prefix", "workers")

    def __init__(self, queue: str) -> None:
        self.prefix = f"qnb:{{{queue}}}:"
        self.delayed = self.prefix + "delayed"
        self.jobs = self.prefix + "jobs"
        self.workers = self.prefix + "workers"

    def lane(self, name: str) -> str:
        return f"{self.prefix}lane:{name}"

    def job(self, task_id: str) -> str:
        return f"{self.prefix}job:{job_hex(task_id)}"

    def job_of(self, hex_: str) -> str:
        """The key of the job whose :func:`job_hex` is ``hex_``."""
        return f"{self.prefix}job:{hex_}"

    def function(self, digest: str) -> str:
        return f"{self.prefix}func:{digest}"

    def worker(self, worker_id: str) -> str:
        return f"{self.prefix}worker:{job_hex(worker_id)}"

    def channel(self, client: str) -> str:
        """The pub/sub channel (not a key) on which ``client`` hears of its jobs."""
        return f"{self.prefix}notice:{client}"
