"""How a sweep begins, and how it is found again: by its name, here or in another kernel."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import Any

from qnb.client import Client
from qnb.clock import stamp
from qnb.errors import (
    EncodingError,
    InvalidName,
    InvalidOption,
    QnbError,
    SignatureError,
    UnknownSweep,
)
from qnb.options import TaskOptions, hint
from qnb.storage.studies import UNKNOWN, Studies, Study
from qnb.sweeps.designs import Design
from qnb.sweeps.layout import Layout, digest_of, frozen
from qnb.sweeps.manifest import Manifest
from qnb.sweeps.numbering import create, matched
from qnb.sweeps.spaces import Stream

__all__ = ["Opened", "attach", "begin", "check_sweep_name", "plan", "read_layout"]

#: bytes of a sweep's name that its jobs' ids begin with
NAME_BYTES = 160


@dataclass(frozen=True, slots=True)
class Opened:
    """A sweep in the store, and what is to be done with it."""

    study: Study
    manifest: Manifest
    layout: Layout | None = None  #: where its jobs are; None until ``design`` has been laid out
    design: Design | None = None  #: points that it is to have
    stream: Stream | None = None  #: points that it is to have, as they come
    before: Manifest | None = None  #: what it was when it was found
    fresh: bool = False  #: has it been created just now?
    note: str = ""  #: of one that was only planned: what would run

    @property
    def by_name(self) -> bool:
        """Was it asked for by its name alone, with no points and no function?"""
        return self.before is self.manifest


def _manifest(client: Client, study: Study) -> Manifest:
    """The manifest of a stored sweep; SignatureError if it was signed for another one."""
    manifest = Manifest.unpacked(client.codec, study.prefix, study.manifest)
    spec = manifest.spec
    if (spec.sweep, spec.channel, spec.fn_name) != (study.name, study.prefix, study.fn_name):
        raise SignatureError(
            f"what is stored as sweep {study.name!r} was signed for sweep {spec.sweep!r}, and is "
            f"refused; app.forget({study.name!r}) removes it"
        )
    return manifest


def _prefix(name: str) -> str:
    return f"{name.encode()[:NAME_BYTES].decode(errors='ignore')}-{secrets.token_hex(4)}"


async def begin(
    client: Client,
    manifest: Manifest,
    name: str | None,
    space: Design | Stream,
    *,
    shuffle: bool = False,
) -> Opened:
    """Create the sweep ``name``, or find it; without a name, create one with a readable name."""
    studies = Studies((await client.link()).store)
    design = None
    if isinstance(space, Design):
        space = design = frozen(space)
    attempt = 0
    while True:
        attempt += 1
        called = name or f"{manifest.spec.fn_name}-{stamp()}{f'-{attempt}' if attempt > 1 else ''}"
        found = await studies.load(called) if name else None
        if found is not None:
            return _found(client, found, manifest, space)
        prefix = _prefix(called)
        spec = replace(manifest.spec, sweep=called, channel=prefix, task_id=prefix)
        ours = replace(manifest, spec=spec, design=_digest(design))
        study = Study(called, prefix, spec.fn_name, spec.lane, ours.packed(client.codec, prefix))
        made = await create(client, study, design, shuffle=shuffle)
        if made is not None:
            study, layout = made
            stream = space if isinstance(space, Stream) else None
            return Opened(study, ours, layout, stream=stream, fresh=True)


def _digest(design: Design | None) -> str:
    if design is None:
        return ""
    try:
        return digest_of(design).hex()
    except EncodingError:
        return ""


def _found(client: Client, study: Study, manifest: Manifest, space: Design | Stream) -> Opened:
    if study.fn_name != manifest.spec.fn_name:
        raise InvalidName(
            f"sweep {study.name!r} is of task {study.fn_name!r}, not of "
            f"{manifest.spec.fn_name!r}: choose another name, or app.forget({study.name!r}) first"
        )
    before = _manifest(client, study)
    spec = replace(manifest.spec, sweep=study.name, channel=study.prefix, task_id=study.prefix)
    ours = replace(manifest, spec=spec).newest(before)
    if isinstance(space, Stream):
        return Opened(study, ours, Layout(), stream=space, before=before)
    try:
        ours = replace(ours, design=digest_of(space).hex())
    except EncodingError as error:
        raise EncodingError(
            f"sweep {study.name!r} exists, and whether these points are its own cannot be told: "
            f"{error}. Look at it with app.sweep({study.name!r}), or app.forget({study.name!r}) "
            "and run this again"
        ) from None
    return Opened(study, ours, design=space, before=before)


async def plan(
    client: Client, manifest: Manifest, name: str | None, space: Design | Stream
) -> Opened:
    """What :func:`begin` would run; nothing is stored."""
    if isinstance(space, Stream):
        raise InvalidOption(f"dry_run=True would use up {space!r}: pass a list of its points")
    studies = Studies((await client.link()).store)
    study = await studies.load(name) if name else None
    called = name or manifest.spec.fn_name
    if study is None:
        study = Study(called, _prefix(called), manifest.spec.fn_name, manifest.spec.lane, b"")
    else:
        _found(client, study, manifest, space)
    numbers, new = await matched(studies, study, space)
    ids = [study.id(number) for number in numbers if number < study.jobs]
    cells = [cell for cell, *_ in await studies.tally(ids)]
    lost = cells.count(UNKNOWN)
    known = len(cells) - lost
    note = (
        f"dry run: {len(new) + lost:,} of {len(space):,} points would run, {known:,} have been "
        "computed or are on their way; nothing was stored"
    )
    return Opened(study, manifest, Layout([(space, numbers)]), note=note)


async def read_layout(client: Client, study: Study) -> Layout:
    """Where the jobs of a stored sweep are."""
    studies = Studies((await client.link()).store)
    codec, trees = client.codec, list[list[Any]]()
    for part in await studies.points(study.name):
        trees.append(codec.unpack_points(f"points {study.prefix}", part))
    return Layout.of(trees)


def check_sweep_name(name: object) -> str:
    """``name``, if it may name a sweep."""
    TaskOptions(name=name)  # type: ignore[arg-type]
    if name is None:
        raise InvalidName("name=None: which sweep? app.sweeps_frame() lists them")
    return name  # type: ignore[return-value]


async def attach(client: Client, name: str) -> Opened:
    """Find the sweep ``name``; :class:`UnknownSweep` if the queue does not know it."""
    studies = Studies((await client.link()).store)
    for _ in range(3):
        if (study := await studies.load(name)) is None:
            known = [study.name for study in await studies.all()]
            raise UnknownSweep(
                f"queue {client.options.queue_name!r} knows no sweep {name!r}."
                f"{hint(name, known)} It knows {len(known)}: app.sweeps_frame() lists them"
            )
        manifest = _manifest(client, study)
        layout = await read_layout(client, study)
        if len(layout) == study.total:
            return Opened(study, manifest, layout, before=manifest)
    raise QnbError(
        f"the points of sweep {name!r} are incomplete. Try again; if it stays so, "
        f"app.forget({name!r}) and run its cell again"
    )
