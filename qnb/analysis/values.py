"""What jobs were given and returned, as this queue's codec reads it; large values on demand."""

from __future__ import annotations

from typing import Any, Final, TypeAlias

from qnb import bridge
from qnb.analysis.columns import MISSING
from qnb.client import Client
from qnb.errors import QnbError
from qnb.models import Ending
from qnb.reading import value_of
from qnb.storage.rows import Row

__all__ = ["LAZY_ABOVE", "Call", "LazyValue", "Values"]

Call: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]

#: results of more bytes stay where they are until asked for
LAZY_ABOVE: Final = 64 * 1024

_UNITS = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


class LazyValue:
    """A result that has not been loaded: it is large, or cannot be read here. :meth:`get` tries.

    It stands in a frame in the place of the value, and keeps none of it in memory.
    """

    __slots__ = ("_client", "nbytes", "task_id")

    def __init__(self, client: Client, task_id: str, nbytes: int | None) -> None:
        self._client = client
        self.task_id = task_id
        self.nbytes = nbytes  #: of the value as it is stored, None where that is not known

    def get(self) -> Any:
        """The value; loaded anew each time. Raises what tells why there is none."""
        record = bridge.run(self._client.record(self.task_id))
        return value_of(self._client.codec, self.task_id, record)

    def __repr__(self) -> str:
        size = "" if self.nbytes is None else f"{_size(self.nbytes)} "
        return f"<{size}result of job {self.task_id!r}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LazyValue) and self.task_id == other.task_id

    def __hash__(self) -> int:
        return hash(self.task_id)


def _size(nbytes: int) -> str:
    for size, unit in _UNITS:
        if nbytes >= size:
            return f"{nbytes / size:.1f} {unit}"
    return f"{nbytes} B"


class Values:
    """Reads the calls and results of a queue; those above ``lazy_above`` bytes stay lazy."""

    def __init__(self, client: Client, lazy_above: int = LAZY_ABOVE) -> None:
        self._client = client
        self._codec = client.codec
        self._most = lazy_above

    def call(self, row: Row) -> Call | None:
        """The arguments of a job, None where they cannot be read here."""
        try:
            return self._codec.unpack_call(row.task_id, row.call, binding=_binding(row))
        except QnbError:
            return None

    def value(self, row: Row) -> object:
        """What a job returned, ``MISSING`` where it has not, a :class:`LazyValue` if it is large.

        :class:`QnbError` where it cannot be read here: its class is away, another key signed it.
        """
        if row.ending is not Ending.DONE:
            return MISSING
        if not row.result or (row.result_nbytes or 0) > self._most:
            return self.lazy(row)
        return self._codec.unpack_result(row.task_id, row.result, binding=_binding(row))

    def lazy(self, row: Row) -> LazyValue:
        """What a job returned, unread."""
        return LazyValue(self._client, row.task_id, row.result_nbytes)


def _binding(row: Row) -> bytes | None:
    return None if row.spec is None else row.spec.binding()
