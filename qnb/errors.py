"""Every error qnb raises, in one tree.

::

    QnbError (RuntimeError)
    ├── BrokerError                 the store cannot be reached or used
    │   ├── ServerError             the embedded server could not be found or started
    │   ├── UnsafeStore             it would lose jobs: no persistence, or an eviction policy
    │   └── StoreFull               it refused a write for want of memory or disk
    ├── InvalidName (ValueError)    a name that may not be used
    │   ├── NameTaken               a task name that another function owns
    │   ├── UnknownLane             a priority that is not one of the app's lanes
    │   ├── UnknownSweep            a sweep name that the queue does not know
    │   └── UnknownTask             a task name that nobody has registered here
    ├── InvalidOption (ValueError)  an option or argument of the wrong type or range
    ├── EncodingError               a value that cannot be sent
    │   ├── ArgumentError (TypeError)   … of a call
    │   ├── ResultError (TypeError)     … that a task returned
    │   └── PayloadTooLarge (ValueError)
    ├── SignatureError              bytes that this queue's key has not signed
    ├── KeyFileError                the key file is missing, unsafe or malformed
    └── JobError                    why a job has no value
        ├── RemoteError             it raised something that cannot be rebuilt here
        ├── JobAborted
        ├── JobExpired
        ├── WorkerCrashed           it kept ending the process that ran it
        ├── MemoryLimitExceeded     it took more memory than its task allows
        └── JobLost                 its record is gone

    Retry (Exception)               raised by a task to be run again; not a QnbError
    CodeChanged (UserWarning)           a sweep has results of other code than its task's today
    EnvironmentMismatch (UserWarning)   notebook and workers differ in what a function needs
"""

from __future__ import annotations

__all__ = [
    "ArgumentError",
    "BrokerError",
    "CodeChanged",
    "EncodingError",
    "EnvironmentMismatch",
    "InvalidName",
    "InvalidOption",
    "JobAborted",
    "JobError",
    "JobExpired",
    "JobLost",
    "KeyFileError",
    "MemoryLimitExceeded",
    "NameTaken",
    "PayloadTooLarge",
    "QnbError",
    "RemoteError",
    "ResultError",
    "Retry",
    "ServerError",
    "SignatureError",
    "StoreFull",
    "UnknownLane",
    "UnknownSweep",
    "UnknownTask",
    "UnsafeStore",
    "WorkerCrashed",
]


#: the longest time that may be asked for, 100 years: the store and frames can count on from there
LONGEST_MS = 100 * 366 * 24 * 3600 * 1000


class QnbError(RuntimeError):
    """Anything that goes wrong in qnb itself, or in a job it ran."""


class BrokerError(QnbError):
    """The store cannot be reached, or cannot be used as a queue."""


class ServerError(BrokerError):
    """The embedded server could not be found, started or stopped."""


class UnsafeStore(BrokerError):
    """The store would lose jobs: it evicts keys, or keeps nothing on disk."""


class StoreFull(BrokerError):
    """The store has no memory, or its disk no room, for another write."""


class InvalidName(QnbError, ValueError):
    """A queue, lane, task or job name that may not be used."""


class NameTaken(InvalidName):
    """A task name that another function already owns."""


class UnknownLane(InvalidName):
    """A priority that is not one of the app's lanes, so that no worker reads it."""


class UnknownSweep(InvalidName):
    """A sweep name that the queue does not know."""


class UnknownTask(InvalidName):
    """A task name that nobody has registered here."""


class InvalidOption(QnbError, ValueError):
    """An option or argument of the wrong type or out of its range."""


class EncodingError(QnbError):
    """A value that cannot be turned into bytes, or back."""


class ArgumentError(EncodingError, TypeError):
    """An argument of a call that cannot be sent to a worker."""


class ResultError(EncodingError, TypeError):
    """A task returned a value that cannot be sent back."""


class PayloadTooLarge(EncodingError, ValueError):
    """An argument or result above the size limit."""


class SignatureError(QnbError):
    """Bytes from the store that this queue's key has not signed; nothing of them was decoded."""


class KeyFileError(QnbError):
    """The file with the queue's signing key is missing, unsafe or malformed."""


class JobError(QnbError):
    """A job ended without a value."""


class RemoteError(JobError):
    """A task raised an exception that cannot be rebuilt in this process."""


class JobAborted(JobError):
    """The job was aborted before it ended by itself."""


class JobExpired(JobError):
    """The job was not started before its expiry."""


class WorkerCrashed(JobError):
    """The job ended the process that ran it, as often as qnb lets it try."""


class JobLost(JobError):
    """The job's record is no longer in the store: it expired, was deleted, or never existed."""


class MemoryLimitExceeded(JobError):
    """The job's processes held more memory than its task's ``max_memory``."""


class CodeChanged(UserWarning):
    """A sweep has results that were computed by other code than its task has today."""


class EnvironmentMismatch(UserWarning):
    """Notebook and workers differ in Python or in a package that a function needs."""


class Retry(Exception):
    """Raised by a task to be run again, after ``delay_ms`` or the task's own backoff.

    It counts against the task's ``max_retries``; when those are used up, the job fails with it.

    >>> raise Retry("rate limited", delay_ms=30_000)
    Traceback (most recent call last):
    qnb.errors.Retry: rate limited
    """

    def __init__(self, message: str = "retry requested", *, delay_ms: int | None = None) -> None:
        if not isinstance(message, str):
            raise InvalidOption(f"Retry({message!r}): expected text: Retry(str(error))")
        if delay_ms is not None and not (type(delay_ms) is int and 0 <= delay_ms <= LONGEST_MS):
            raise InvalidOption(
                f"delay_ms={delay_ms!r}: expected milliseconds as a whole number ≥ 0 and ≤ "
                f"{LONGEST_MS:,}, or None for the task's own backoff"
            )
        super().__init__(message)
        self.delay_ms = delay_ms
