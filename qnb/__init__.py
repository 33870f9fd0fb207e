"""qnb: a durable Redis queue whose native interface is the notebook.

>>> import qnb
>>> app = qnb.App(queue_name="tour")
>>> @app.task
... def double(x: int) -> int:
...     return 2 * x
>>> double(4)
8
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from qnb import display

if TYPE_CHECKING:
    from qnb.adapters.joblib import register_joblib
    from qnb.analysis.values import LazyValue
    from qnb.app import App
    from qnb.errors import (
        ArgumentError,
        BrokerError,
        CodeChanged,
        EncodingError,
        EnvironmentMismatch,
        InvalidName,
        InvalidOption,
        JobAborted,
        JobError,
        JobExpired,
        JobLost,
        KeyFileError,
        MemoryLimitExceeded,
        NameTaken,
        PayloadTooLarge,
        QnbError,
        RemoteError,
        ResultError,
        Retry,
        ServerError,
        SignatureError,
        StoreFull,
        UnknownLane,
        UnknownSweep,
        UnknownTask,
        UnsafeStore,
        WorkerCrashed,
    )
    from qnb.job import Job
    from qnb.models import (
        ErrorContext,
        Failure,
        Frame,
        JobState,
        TaskContext,
        TaskInfo,
        TaskResult,
    )
    from qnb.nesting import nest
    from qnb.pool import Pool
    from qnb.running.context import current_task
    from qnb.running.progress import progress, report
    from qnb.sweeps.designs import grid, star
    from qnb.sweeps.designs import zip_ as zip
    from qnb.sweeps.sampling import sample
    from qnb.sweeps.spaces import points, rows
    from qnb.sweeps.sweep import Sweep
    from qnb.task import Task

#: public name → where it is defined; loaded when first used
_HOMES = {
    "App": "qnb.app",
    "ErrorContext": "qnb.models",
    "Failure": "qnb.models",
    "Frame": "qnb.models",
    "Job": "qnb.job",
    "JobState": "qnb.models",
    "LazyValue": "qnb.analysis.values",
    "Pool": "qnb.pool",
    "Sweep": "qnb.sweeps.sweep",
    "Task": "qnb.task",
    "TaskContext": "qnb.models",
    "TaskInfo": "qnb.models",
    "TaskResult": "qnb.models",
    "current_task": "qnb.running.context",
    "grid": "qnb.sweeps.designs",
    "nest": "qnb.nesting",
    "points": "qnb.sweeps.spaces",
    "progress": "qnb.running.progress",
    "register_joblib": "qnb.adapters.joblib",
    "report": "qnb.running.progress",
    "rows": "qnb.sweeps.spaces",
    "sample": "qnb.sweeps.sampling",
    "star": "qnb.sweeps.designs",
    "zip": "qnb.sweeps.designs",
}

__all__ = [
    "App",
    "ArgumentError",
    "BrokerError",
    "CodeChanged",
    "EncodingError",
    "EnvironmentMismatch",
    "ErrorContext",
    "Failure",
    "Frame",
    "InvalidName",
    "InvalidOption",
    "Job",
    "JobAborted",
    "JobError",
    "JobExpired",
    "JobLost",
    "JobState",
    "KeyFileError",
    "LazyValue",
    "MemoryLimitExceeded",
    "NameTaken",
    "PayloadTooLarge",
    "Pool",
    "QnbError",
    "RemoteError",
    "ResultError",
    "Retry",
    "ServerError",
    "SignatureError",
    "StoreFull",
    "Sweep",
    "Task",
    "TaskContext",
    "TaskInfo",
    "TaskResult",
    "UnknownLane",
    "UnknownSweep",
    "UnknownTask",
    "UnsafeStore",
    "WorkerCrashed",
    "current_task",
    "grid",
    "nest",
    "points",
    "progress",
    "register_joblib",
    "report",
    "rows",
    "sample",
    "star",
    "zip",
]

display.register("Job", "qnb.notebook.job_view:renderer")
display.register("Sweep", "qnb.notebook.sweep_view:renderer")
display.register("Pool", "qnb.notebook.pool_view:renderer")
display.register("App", "qnb.notebook.app_view:renderer")


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("qnb")
    if name not in __all__:
        raise AttributeError(f"module 'qnb' has no attribute {name!r}")
    attribute = "zip_" if name == "zip" else name  # inside, the builtin keeps its name
    value = getattr(import_module(_HOMES.get(name, "qnb.errors")), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def load_ipython_extension(shell: Any) -> None:
    """``%load_ext qnb``: the magics ``%qnb`` and ``%%qnb``."""
    from qnb.notebook.magics import register

    register(shell)
