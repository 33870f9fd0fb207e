"""How the jobs of a sweep are made: all that another kernel needs to go on with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgpack

from qnb.content.code import Code
from qnb.errors import SignatureError
from qnb.models import JobSpec
from qnb.storage.records import Call, pack, pack_spec, unpack_spec
from qnb.sweeps.layout import Layout
from qnb.wire.codec import Codec

__all__ = ["Manifest"]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What all jobs of a sweep have in common, and how it treats them."""

    spec: JobSpec  #: of its jobs, but for id, index and content
    design: str = ""  #: hex digest of its points as they were given; "" if they have none
    codes: tuple[str, ...] = ()  #: fingerprints that its function has had, the newest last
    on_error: Literal["continue", "stop"] = "continue"
    max_running: int | None = None
    cache: bool = False
    schedule_ms: int = 0
    expire_ms: int = 0
    blob: bytes | None = None  #: the function by value, where it was made here; not stored
    parts: Code | None = None  #: what its fingerprint was made of, likewise

    def packed(self, codec: Codec, prefix: str) -> bytes:
        """As signed bytes."""
        fields = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("spec", "blob", "parts")
        }
        return codec.seal_sweep(f"manifest {prefix}", pack([pack_spec(self.spec), fields]))

    @classmethod
    def unpacked(cls, codec: Codec, prefix: str, data: bytes) -> Manifest:
        """What was signed for the sweep of that prefix."""
        body = codec.open_sweep(f"manifest {prefix}", data)
        try:
            spec, fields = msgpack.unpackb(body)
            fields["codes"] = tuple(fields["codes"])
            return cls(spec=unpack_spec(spec), **fields)
        except (ValueError, TypeError, KeyError) as error:
            raise SignatureError(
                f"the sweep was written by another version of qnb and cannot be read ({error}); "
                "forget it, and run its cell again"
            ) from None

    def of(self, function: str, blob: bytes | None, parts: Code | None, is_async: bool) -> Manifest:
        """This one with another function: what workers are told of it, itself, and what it is."""
        code = parts.digest if parts is not None and parts.comparable else ""
        return dataclasses.replace(
            self,
            spec=dataclasses.replace(self.spec, function=function, code=code, is_async=is_async),
            codes=(code,) if code else (),
            blob=blob,
            parts=parts,
        )

    def newest(self, other: Manifest) -> Manifest:
        """This one, the later, with the history of ``other``."""
        codes = [code for code in other.codes if code not in self.codes]
        return dataclasses.replace(self, codes=(*codes, *self.codes)[-20:])

    def calls(
        self,
        codec: Codec,
        layout: Layout,
        places: Sequence[int],
        digests: Sequence[bytes] | None = None,
        nonces: Mapping[int, str] | None = None,
    ) -> list[Call]:
        """The jobs at ``places``."""
        contents = layout.digests(places) if digests is None else digests
        calls = []
        for place, content, (args, kwargs) in zip(
            places, contents, layout.calls(places), strict=True
        ):
            number = layout.number(place)
            spec = dataclasses.replace(
                self.spec,
                task_id=f"{self.spec.channel}.{number}",
                index=number,
                content=content.hex(),
            )
            data = codec.pack_call(spec.task_id, args, kwargs, binding=spec.binding())
            calls.append(Call(spec, data, self.blob, 0, self.schedule_ms, self.expire_ms))
        return calls
