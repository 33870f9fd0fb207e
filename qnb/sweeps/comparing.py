"""Which results of a sweep are of other code than its task has now, and what differs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from qnb.client import Client
from qnb.content.code import Code, explain
from qnb.errors import EncodingError
from qnb.storage.studies import Studies, Study
from qnb.sweeps.opening import Opened

__all__ = ["changed", "codes_of", "difference"]


async def codes_of(client: Client, ids: Sequence[str]) -> list[str | None]:
    """The fingerprint of the function of each job; "" of one that had none, None of no job."""
    specs = await Studies((await client.link()).store).specs(ids)
    return [spec.code if spec is not None else None for spec in specs]


async def difference(client: Client, old: str, new: Code) -> str:
    """What has changed between the code of that fingerprint and ``new``."""
    packed = await Studies((await client.link()).store).code(old)
    if packed is None:
        return "what it was then is no longer stored"
    try:
        return explain(Code.unpack(packed), new)
    except EncodingError as error:
        return str(error)


async def changed(client: Client, opened: Opened) -> str:
    """What to say of a sweep that has results of other code; "" if it has none."""
    study, manifest, before = opened.study, opened.manifest, opened.before
    now = manifest.parts
    if before is None or now is None or not study.jobs:
        return ""
    if not now.comparable:
        return (
            f"whether the results of sweep {study.name!r} are of the function that "
            f"{study.fn_name!r} is now cannot be told: {now.reason}. They are kept"
        )
    if set(before.codes) <= {now.digest}:
        return ""
    return await _told(client, study, now)


async def _told(client: Client, study: Study, now: Code) -> str:
    ids = [study.id(number) for number in range(study.jobs)]
    codes = Counter(code for code in await codes_of(client, ids) if code is not None)
    codes.pop(now.digest, None)
    if not codes:
        return ""
    [(most, _)] = codes.most_common(1)
    said = await difference(client, most, now) if most else "what it was then is not known"
    return (
        f"{codes.total():,} of {study.jobs:,} jobs of sweep {study.name!r} are of another "
        f"{study.fn_name!r} than the one defined now, and are kept:\n{said}\n"
        "options(on_code_change='rerun') runs them again, 'keep' keeps them without a word"
    )
