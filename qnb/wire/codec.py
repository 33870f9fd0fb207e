"""Calls, results, errors and functions as signed bytes, and back.

The reader's own mode says in which form values come, never the message: what was signed in another
form is refused unread. Nothing is decoded before its envelope has been verified.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qnb.errors import BrokerError, EncodingError, PayloadTooLarge, ResultError, SignatureError
from qnb.models import JobSpec
from qnb.options import AppOptions
from qnb.storage.blobs import Blobs, blobs_of
from qnb.wire import origins
from qnb.wire.blame import argument_error, blame, type_name
from qnb.wire.bodies import Bodies
from qnb.wire.envelope import Buffer, Content, Keys, Opened, open_, seal
from qnb.wire.forms import Form, Msgpack, Own
from qnb.wire.sources import ROOM

if TYPE_CHECKING:
    from qnb.wire.functions import Functions
    from qnb.wire.pickles import Pickles

__all__ = ["Codec"]


class Codec:
    """Packs and unpacks for one queue."""

    __slots__ = ("_form", "_functions", "_keys", "_limit", "_pickles", "_queue", "blobs")

    def __init__(  # noqa: PLR0913 - the app's options, one by one
        self,
        keys: Keys,
        queue: str,
        *,
        max_payload: int,
        mode: str = "signed",
        blobs: Blobs | None = None,
        blob_threshold: int = 1 << 20,
        serializer: Callable[[Any], bytes] | None = None,
        deserializer: Callable[[bytes], Any] | None = None,
    ) -> None:
        self._keys = keys
        self._queue = queue
        self._limit = max_payload
        self.blobs = blobs  #: where large parts are; None where everything travels inline
        bodies = Bodies(max_payload, blobs, blob_threshold)
        # With msgpack, the modules that unpickle are not even loaded.
        self._pickles: Pickles | None = None
        self._functions: Functions | None = None
        if mode == "signed":
            from qnb.wire.functions import Functions
            from qnb.wire.pickles import Pickles

            self._pickles = Pickles(bodies)
            self._functions = Functions(self._pickles, bodies)
        self._form: Form = self._pickles or Msgpack(bodies)
        if serializer is not None and deserializer is not None:
            self._form = Own(bodies, serializer, deserializer)

    @classmethod
    def of(cls, options: AppOptions, url: str | None) -> Codec:
        """The codec of the app with these options, whose server is at ``url`` (None: embedded)."""
        queue = options.queue_name
        return cls(
            Keys.load(queue, options.key_file),
            queue,
            max_payload=options.max_payload,
            mode=options.codec,
            blobs=blobs_of(queue, options.blob_store, url),
            blob_threshold=options.blob_threshold,
            serializer=options.serializer,
            deserializer=options.deserializer,
        )

    # -- calls ----------------------------------------------------------------------------------

    def pack_call(
        self, job_id: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, binding: bytes = b""
    ) -> bytes:
        """The arguments of a job, signed for it and for ``binding`` (what it will call)."""
        form = self._form
        try:
            body = form.encode_call(args, kwargs)
        except BrokerError:  # the blob store's fault, not the argument's
            raise
        except Exception as error:  # noqa: BLE001 - a user's __reduce__ may raise anything
            raise argument_error(args, kwargs, error, form) from None
        return seal(
            self._keys, "call", self._queue, job_id, form.content, body,
            binding=binding, limit=self._limit,
        )  # fmt: skip

    def unpack_call(
        self, job_id: str, data: bytes, *, binding: bytes | None = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of ``job_id``; with a ``binding``, only if they were signed for it."""
        opened = open_(self._keys, "call", self._queue, job_id, data, limit=self._limit)
        if binding is not None and opened.binding != binding:
            raise SignatureError(
                f"job {job_id!r} was refused unread: its arguments were signed for another task "
                "or another version of its function; submit it again"
            )
        form = self._form
        if opened.content is not form.content:
            raise _unexpected(opened, form.content, f"job {job_id!r}")
        return form.decode_call(opened.body, f"the arguments of job {job_id!r}")

    def rebind_call(self, job_id: str, data: bytes, old: bytes, new: bytes) -> bytes:
        """The same arguments, verified for one binding and signed for another; not decoded."""
        opened = open_(self._keys, "call", self._queue, job_id, data, limit=self._limit)
        if opened.binding != old:
            raise SignatureError(
                f"job {job_id!r} was refused unread: its arguments were signed for another task or "
                "another run"
            )
        return seal(
            self._keys, "call", self._queue, job_id, opened.content, opened.body,
            binding=new, limit=self._limit,
        )  # fmt: skip

    # -- results --------------------------------------------------------------------------------

    def pack_result(self, job_id: str, attempt: int, value: Any, *, binding: bytes = b"") -> bytes:
        """What an attempt returned, signed for the job and the ``binding`` of its call."""
        return self.pack_sized_result(job_id, attempt, value, binding=binding)[0]

    def pack_sized_result(
        self, job_id: str, attempt: int, value: Any, *, binding: bytes = b""
    ) -> tuple[bytes, int]:
        """What an attempt returned, and the bytes of it, those in the blob store included."""
        form = self._form
        try:
            body = form.encode(value)
        except PayloadTooLarge as error:
            raise PayloadTooLarge(
                f"the result, of type {type_name(value)}, is too large: {error}"
            ) from None
        except BrokerError:  # the blob store's fault, not the value's
            raise
        except Exception as error:  # noqa: BLE001 - a user's __reduce__ may raise anything
            path, culprit, cause = blame(value, "result", error, form)
            raise ResultError(
                f"the task returned a value that cannot be sent back: {path} is of type "
                f"{type_name(culprit)}: {cause}. {form.result_remedy}"
            ) from None
        sealed = self._seal_result(job_id, attempt, form.content, body, binding)
        return sealed, Bodies.nbytes(body)

    def unpack_result(
        self, job_id: str, data: bytes, attempt: int | None = None, *, binding: bytes | None = None
    ) -> Any:
        """What a job returned; with ``attempt`` or ``binding``, only what was signed for that."""
        body = self._open_result(job_id, data, attempt, self._form.content, binding)
        return self._form.decode(body, f"the result of job {job_id!r}")

    def pack_error(
        self, job_id: str, attempt: int, exc: BaseException, *, binding: bytes = b""
    ) -> bytes:
        """``exc`` without its traceback and causes, or nothing where it cannot be rebuilt."""
        body = self._pickles.encode_error(exc) if self._pickles else None
        if not body:
            return b""
        return self._seal_result(job_id, attempt, Content.ERROR, body, binding)

    def unpack_error(
        self, job_id: str, data: bytes, attempt: int | None = None, *, binding: bytes | None = None
    ) -> BaseException | None:
        """The exception a job ended with, or None where it cannot be rebuilt here."""
        if not data:
            return None
        if self._pickles is None:
            raise _wrong_content(f"the error of job {job_id!r}")
        body = self._open_result(job_id, data, attempt, Content.ERROR, binding)
        try:
            error = self._pickles.decode(body, f"the error of job {job_id!r}")
        except EncodingError:
            return None
        return error if isinstance(error, BaseException) else None

    def _seal_result(
        self, job_id: str, attempt: int, content: Content, body: list[Buffer], binding: bytes
    ) -> bytes:
        return seal(
            self._keys, "result", self._queue, job_id, content, body,
            binding=binding, attempt=attempt, limit=self._limit,
        )  # fmt: skip

    def _open_result(
        self, job_id: str, data: bytes, attempt: int | None, content: Content,
        binding: bytes | None,
    ) -> Buffer:  # fmt: skip
        opened = open_(self._keys, "result", self._queue, job_id, data, limit=self._limit)
        if attempt is not None and opened.attempt != attempt:
            raise SignatureError(
                f"the result of job {job_id!r} was refused unread: it was signed for attempt "
                f"{opened.attempt}, and this is attempt {attempt}"
            )
        if binding is not None and opened.binding != binding:
            raise SignatureError(
                f"the result of job {job_id!r} was refused unread: it was signed for another run, "
                "or for another version of its task"
            )
        if opened.content is not content:
            raise _unexpected(opened, content, f"the result of job {job_id!r}")
        return opened.body

    # -- sweeps ---------------------------------------------------------------------------------

    def seal_sweep(self, part: str, data: bytes) -> bytes:
        """``data`` that says of a sweep, signed for that ``part`` of it."""
        return seal(
            self._keys, "sweep", self._queue, part, Content.MSGPACK, [data], limit=self._limit
        )

    def open_sweep(self, part: str, data: bytes) -> Buffer:
        """What was signed for that ``part`` of a sweep."""
        opened = open_(self._keys, "sweep", self._queue, part, data, limit=self._limit)
        if opened.content is not Content.MSGPACK:
            raise _unexpected(opened, Content.MSGPACK, f"{part} of a sweep")
        return opened.body

    def pack_points(self, part: str, tree: list[Any]) -> bytes:
        """Points of a sweep, signed for that ``part`` of it; or PayloadTooLarge."""
        form = self._form
        return seal(
            self._keys, "sweep", self._queue, part, form.content, form.encode(tree),
            limit=self._limit,
        )  # fmt: skip

    def unpack_points(self, part: str, data: bytes) -> list[Any]:
        """What :meth:`pack_points` packed."""
        opened = open_(self._keys, "sweep", self._queue, part, data, limit=self._limit)
        if opened.content is not self._form.content:
            raise _unexpected(opened, self._form.content, part)
        tree: list[Any] = self._form.decode(opened.body, part)
        return tree

    def move_result(self, data: bytes, old: JobSpec, new: JobSpec) -> bytes:
        """A result, verified for one job and signed for another; not decoded."""
        content = self._form.content
        body = self._open_result(old.task_id, data, None, content, old.binding())
        return self._seal_result(new.task_id, 0, content, [body], new.binding())

    # -- functions ------------------------------------------------------------------------------

    def reference(self, fn: Callable[..., Any]) -> str | None:
        """``"module:qualname"`` of what workers can import, None of what is shipped by value.

        With ``codec="msgpack"`` it is empty: workers run what they know by its task's name. A
        producer who may name any importable function could run anything.
        """
        return origins.reference(fn) if self._functions else ""

    def resolve(self, reference: str) -> Callable[..., Any]:
        """The function that such a reference names, imported here."""
        if self._functions is None:
            raise SignatureError(
                f"function {reference!r} was refused: App(codec='msgpack') runs tasks by their "
                "names only. Start the worker with the app that defines them: qnb worker module:app"
            )
        return origins.resolve(reference)

    def pack_function(self, fn: Callable[..., Any]) -> tuple[bytes, bytes]:
        """``fn`` by value with the local code it reaches, and the digest it is stored under.

        Its source text travels along. Cheap for a function packed before of which nothing has
        changed since: neither its code nor a helper or global it reaches.
        """
        if self._functions is None:
            raise EncodingError(
                f"function {getattr(fn, '__qualname__', fn)!r} cannot be sent: "
                "App(codec='msgpack') sends names, no code. Define the task in a module, start the "
                "workers with it (qnb worker module:app), and enqueue it by its name"
            )

        def sealed(digest: bytes, body: list[Buffer]) -> bytes:
            return seal(
                self._keys, "func", self._queue, digest.hex(), Content.PICKLE, body,
                limit=self._limit + ROOM,
            )  # fmt: skip

        return self._functions.pack(fn, sealed)

    def unpack_function(
        self, digest: bytes, blob: bytes, *, task: str | None = None
    ) -> Callable[..., Any]:
        """The function stored under ``digest``; ``task`` names it in errors."""
        what = f"task {task!r}" if task else f"function {digest.hex()!r}"
        if self._functions is None:
            raise _wrong_content(what)
        opened = open_(
            self._keys, "func", self._queue, digest.hex(), blob, limit=self._limit + ROOM
        )
        if opened.content is not Content.PICKLE:
            raise _unexpected(opened, Content.PICKLE, what)
        return self._functions.unpack(digest, opened.body, what)


_NAMES = {
    Content.MSGPACK: "App(codec='msgpack')",
    Content.PICKLE: "App(codec='signed')",
    Content.ERROR: "an error with App(codec='signed')",
    Content.OWN: "App(serializer=...)",
}


def _unexpected(opened: Opened, content: Content, what: str) -> SignatureError:
    return SignatureError(
        f"{what} was refused unread: it was signed for another use, as {_NAMES[opened.content]}, "
        f"and this reader takes {_NAMES[content]}; give clients and workers the same options"
    )


def _wrong_content(what: str) -> SignatureError:
    return SignatureError(
        f"{what} was refused unread: it holds code, which App(codec='msgpack') never reads"
    )
