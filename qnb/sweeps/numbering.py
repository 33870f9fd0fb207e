"""Which number the job of each point has: what is known keeps its own, what is new gets the next.

A sweep is created here with its points, and given others.
"""

from __future__ import annotations

import asyncio
import random
from array import array
from collections import defaultdict
from dataclasses import replace

from qnb.client import Client
from qnb.errors import BrokerError, EncodingError, PayloadTooLarge
from qnb.storage.studies import Studies, Study
from qnb.sweeps.designs import Design
from qnb.sweeps.layout import Layout, Numbers, packed_part, point_digests
from qnb.sweeps.manifest import Manifest

__all__ = ["NONE", "Known", "create", "digests_of", "matched", "pack_parts", "relaid"]

#: points that are looked at before others get their turn
CHUNK = 500

NONE = bytes(16)  #: the digest of what cannot be compared


def pack_parts(client: Client, study: Study, design: Design, numbers: Numbers) -> list[bytes]:
    """Points as they are stored, signed for their sweep."""

    def pack(tree: list[object]) -> bytes:
        return client.codec.pack_points(f"points {study.prefix}", tree)

    try:
        return packed_part(design, numbers, pack)
    except (BrokerError, PayloadTooLarge):
        raise
    except Exception:
        for place, (args, kwargs) in enumerate(design.calls()):  # which of them is it?
            try:
                client.codec.pack_call("", args, kwargs)
            except EncodingError as error:
                error.add_note(f"point {place} of sweep {study.name!r}")
                raise error from None
        raise


async def create(
    client: Client, study: Study, design: Design | None, *, shuffle: bool
) -> tuple[Study, Layout] | None:
    """Store a new sweep; None if there is one of that name."""
    studies = Studies((await client.link()).store)
    if design is None:
        made = await studies.create(study, [])
        return (made, Layout()) if made else None
    size = len(design)
    numbers: Numbers = range(size)
    if shuffle:
        numbers = _shuffled(study, size)
    study = replace(study, total=size, jobs=size, whole=True)
    made = await studies.create(study, pack_parts(client, study, design, numbers))
    return (made, Layout([(design, numbers)])) if made else None


def _shuffled(study: Study, count: int) -> Numbers:
    numbers = array("I", range(study.jobs, study.jobs + count))
    random.Random(study.prefix).shuffle(numbers)  # noqa: S311 - an order, no secret
    return numbers


class Known:
    """The jobs of a sweep by what they compute; each is given out once."""

    def __init__(self, digests: bytes) -> None:
        self._numbers: dict[bytes, list[int]] = defaultdict(list)
        for number in range(len(digests) // 16 - 1, -1, -1):
            self._numbers[digests[16 * number : 16 * number + 16]].append(number)
        self._numbers.pop(NONE, None)

    def take(self, digest: bytes) -> int | None:
        numbers = self._numbers.get(digest)
        return numbers.pop() if numbers else None


async def matched(
    studies: Studies, study: Study, design: Design, *, shuffle: bool = False
) -> tuple[array[int], list[int]]:
    """The number of the job of each point, and the places whose jobs are new."""
    known = Known(await studies.digests(study.name))
    numbers, new = array("I", bytes(4 * len(design))), list[int]()
    for start in range(0, len(design), CHUNK):
        stop = min(start + CHUNK, len(design))
        digests = point_digests(design, start, stop)
        taken = [known.take(digest) for digest in digests]
        ids = [study.id(number) for number in taken if number is not None]
        specs = iter(await studies.specs(ids) if ids else [])
        for place, (digest, number) in enumerate(zip(digests, taken, strict=True), start):
            # The list of digests is not signed, a job's own is: what they say apart is another's.
            spec = None if number is None else next(specs)
            if number is None or (spec is not None and spec.content != digest.hex()):
                new.append(place)
            else:
                numbers[place] = number
        await asyncio.sleep(0)
    given = _shuffled(study, len(new)) if shuffle else range(study.jobs, study.jobs + len(new))
    for place, number in zip(new, given, strict=True):
        numbers[place] = number
    return numbers, new


async def relaid(
    client: Client, study: Study, manifest: Manifest, design: Design, *, shuffle: bool = False
) -> tuple[Study, Layout] | None:
    """The sweep with other points, where jobs that compute one of them keep their numbers.

    None if somebody else has changed it meanwhile.
    """
    studies = Studies((await client.link()).store)
    numbers, new = await matched(studies, study, design, shuffle=shuffle)
    plain: Numbers = numbers
    if numbers == array("I", range(len(design))):
        plain = range(len(design))
    changed = replace(
        study,
        total=len(design),
        jobs=study.jobs + len(new),
        whole=True,
        manifest=manifest.packed(client.codec, study.prefix),
    )
    made = await studies.replace(changed, pack_parts(client, changed, design, plain))
    return (made, Layout([(design, plain)])) if made else None


def digests_of(design: Design) -> list[bytes]:
    try:
        return point_digests(design, 0, len(design))
    except EncodingError:
        return [NONE] * len(design)
