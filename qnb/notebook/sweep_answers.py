"""What the view of a sweep is asked: a page of its jobs, one of them, colours, a heat map."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qnb import bridge
from qnb.closeup import Closeup, brief
from qnb.models import CELLS, JobRecord
from qnb.notebook import html
from qnb.notebook.answers import Answer
from qnb.notebook.job_card import frames, job_word, job_words
from qnb.notebook.measures import Floats, Measures, Parameter
from qnb.storage.rows import Row
from qnb.sweeps.sweep import Sweep

__all__ = ["answer"]

MOST_ROWS = 100  #: of a page
MOST_BINS = 200  #: along an axis of a heat map
SHOWN = 12  #: columns of results in the table
CELL = 120  #: characters in a cell of the table
CATEGORIES = 254  #: levels of a colour scale of categories

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_COMPARED = re.compile(rf"\s*(<=|>=|<|>|=)?\s*({_NUMBER})\s*$")
_BETWEEN = re.compile(rf"\s*({_NUMBER})\s*\.\.\s*({_NUMBER})\s*$")


def answer(sweep: Sweep[Any], measures: Measures, asked: Mapping[str, Any]) -> Answer:
    """The answer to one question, all text in it tidy and cut."""
    questions = {"columns": _columns, "rows": _rows, "job": _job, "colour": _colour, "heat": _heat}
    kind = asked.get("ask")
    if not isinstance(kind, str) or kind not in questions:
        raise ValueError(f"{kind!r} is no question; there are: {', '.join(questions)}")
    measures.look()
    return questions[kind](sweep, measures, asked)


# -- what there is -----------------------------------------------------------------------------


def _columns(sweep: Sweep[Any], measures: Measures, asked: Mapping[str, Any]) -> Answer:
    measures.read()
    kinds = {**dict.fromkeys(measures.texts, "text"), **dict.fromkeys(measures.results, "number")}
    return {
        "parameters": [
            {"name": name, "kind": parameter.kind, "distinct": len(parameter.labels)}
            for name in measures.names
            for parameter in [measures.parameter(name)]
        ],
        "results": [{"name": name, "kind": kind} for name, kind in kinds.items()],
        "results_known": int(np.count_nonzero(measures.cells == CELLS.index("done"))),
    }, []


# -- the table ---------------------------------------------------------------------------------


def _head(measures: Measures) -> list[dict[str, Any]]:
    def column(name: str, kind: str, **more: bool) -> dict[str, Any]:
        return {
            "name": name, "label": html.clip(name, 60), "kind": kind, "sortable": True,
            "filterable": True, **more,
        }  # fmt: skip

    numeric = list(measures.results)[:SHOWN]
    texts = sorted(measures.texts - set(numeric))[: SHOWN - len(numeric)]
    return [
        column("place", "number", filterable=False),
        column("state", "text"),
        *(column(name, measures.parameter(name).kind) for name in measures.names),
        *(column(name, "number") for name in numeric),
        *(column(name, "text", sortable=False, filterable=False) for name in texts),
        column("duration", "number"),
        column("error", "text", sortable=False),
    ]


def _rows(sweep: Sweep[Any], measures: Measures, asked: Mapping[str, Any]) -> Answer:
    filters = asked.get("filters") or {}
    sort, offset, limit = asked.get("sort"), asked.get("offset", 0), asked.get("limit", 20)
    if not isinstance(filters, dict) or not all(isinstance(text, str) for text in filters.values()):
        raise ValueError(f"filters={brief(filters)}: expected a text for each column")
    if (
        type(offset) is not int
        or type(limit) is not int
        or offset < 0
        or not 0 < limit <= MOST_ROWS
    ):
        raise ValueError(f"offset={offset!r}, limit={limit!r}: expected ≥ 0, and 1 to {MOST_ROWS}")
    more = measures.read()
    head = _head(measures)
    kept = np.ones(len(measures), bool)
    for name, text in filters.items():
        kept &= _matches(sweep, measures, str(name), text)
    order = np.flatnonzero(kept)
    if sort is not None:
        order = _sorted(measures, str(sort), order, descending=asked.get("descending") is True)
    places = order[offset : offset + limit].tolist()
    return {
        "matching": len(order),
        "total": len(measures),
        "head": head,
        "rows": [
            _row(measures, head, place, row)
            for place, row in zip(places, measures.rows(places) if places else [], strict=True)
        ],
        "more": more,
    }, []


def _figures(measures: Measures, name: str) -> Floats:
    if name == "place":
        return np.arange(len(measures), dtype=float)
    if name == "state":
        return measures.cells.astype(float)
    return measures.column(name)


def _sorted(
    measures: Measures, name: str, places: NDArray[np.intp], *, descending: bool
) -> NDArray[np.intp]:
    """By a column, what is unknown last."""
    values = _figures(measures, name)[places]
    by = np.argsort(-values if descending else values, kind="stable")
    return places[by]


def _matches(sweep: Sweep[Any], measures: Measures, name: str, text: str) -> NDArray[np.bool_]:
    wanted = text.strip().lower()
    if name == "error":
        found = np.zeros(len(measures), bool)
        for place in sweep._feed.errors.places(wanted):
            if place < len(found):
                found[place] = True
        return found
    if name == "state":
        codes = [code for code, word in enumerate(CELLS) if word.startswith(wanted)]
        if not codes:
            raise ValueError(f"state {brief(text)}: expected one of {', '.join(CELLS)}")
        return np.isin(measures.cells, codes)
    if name in measures.names and (parameter := measures.parameter(name)).kind != "number":
        fits = np.array([wanted in label.lower() for label in parameter.labels] + [False])
        return fits[parameter.codes]
    return _between(measures.column(name), name, text)


def _between(values: Floats, name: str, text: str) -> NDArray[np.bool_]:
    if span := _BETWEEN.match(text):
        return (values >= float(span[1])) & (values <= float(span[2]))
    if not (compared := _COMPARED.match(text)):
        raise ValueError(
            f"filter {brief(text)} of {name!r}: expected a number, a bound like >3 or <=0.5, or a "
            "span like 1..5"
        )
    sign, bound = compared[1] or "=", float(compared[2])
    if sign == "=":
        return np.isclose(values, bound, rtol=1e-9, atol=0)
    found = {"<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal}
    kept: NDArray[np.bool_] = found[sign](values, bound)
    return kept


def _row(measures: Measures, head: list[dict[str, Any]], place: int, row: Row) -> dict[str, Any]:
    word = CELLS[measures.cells[place]]
    given, fields = measures.point(place), measures.fields(row)
    took = measures.duration[place]
    known: dict[str, str] = {
        "place": str(place),
        "state": word,
        "duration": "" if math.isnan(took) else html.duration(float(took)),
        "error": row.failure.text if row.failure else "",
    }
    cells = []
    for column in head:
        name = column["name"]
        if name in given:
            text = _given(given[name])
        elif name in known:
            text = known[name]
        else:
            text = _value(fields[name]) if name in fields else ""
        cells.append(html.clip(html.one_line(text), CELL))
    return {"place": place, **_words(word), "cells": cells}


def _value(value: object) -> str:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else brief(value)


def _given(value: object) -> str:
    return "None" if value is None else _value(value)


def _words(word: str) -> dict[str, str]:
    return {
        "word": word.replace("_", " "),
        "glyph": html.GLYPHS.get(word, "•"),
        "tone": html.tone(word),
    }


# -- one job -----------------------------------------------------------------------------------


def _job(sweep: Sweep[Any], measures: Measures, asked: Mapping[str, Any]) -> Answer:
    place = asked.get("place")
    if type(place) is not int or not 0 <= place < len(measures):
        raise ValueError(f"place={place!r}: expected 0 to {len(measures) - 1:,}")
    task_id = sweep._id(place)
    [row] = measures.rows([place])
    fields = measures.fields(row)
    value = ", ".join(f"{name}={_value(found)}" for name, found in fields.items())
    if list(fields) == ["value"]:
        value = _value(fields["value"])
    if not fields and row.result_nbytes:
        value = f"a value of {html.size(row.result_nbytes)}"
    found: dict[str, Any] = {
        "place": place,
        "id": html.clip(task_id, 200),
        **_words(CELLS[measures.cells[place]]),
        "parameters": [
            [html.clip(name, 60), html.clip(_given(given), 300)]
            for name, given in measures.point(place).items()
        ],
        "value": html.clip(value, 600),
        "error": html.clip(row.failure.text, html.ERROR_CHARS) if row.failure else "",
        "facts": [], "frames": "", "log": "",
    }  # fmt: skip
    if asked.get("brief") is not True and (record := bridge.run(_near(sweep, task_id))):
        found |= _details(record)
    return found, []


async def _near(sweep: Sweep[Any], task_id: str) -> JobRecord | None:
    return await Closeup(sweep._client, task_id).look()


def _details(record: JobRecord) -> dict[str, Any]:
    outcome = record.outcome
    failure = outcome.failure if outcome else record.failure
    facts = job_words(record)
    if outcome:
        facts.insert(0, f"took {html.duration((outcome.finish - outcome.start) / 1000)}")
    return {
        **_words(job_word(record)),
        "facts": facts,
        "frames": frames(failure.traceback) if failure else "",
        "log": html.tidy(record.log),
    }


# -- colours and maps --------------------------------------------------------------------------


def _colour(sweep: Sweep[Any], measures: Measures, asked: Mapping[str, Any]) -> Answer:
    name = str(asked.get("column"))
    more = measures.read()
    parameter: Parameter | None = measures.parameter(name) if name in measures.names else None
    if parameter is not None and parameter.kind != "number":
        levels = np.where(parameter.codes < CATEGORIES, parameter.codes + 1, CATEGORIES + 1)
        words: dict[str, Any] = {
            "kind": "category", "low": None, "high": None,
            "labels": [html.clip(label, 60) for label in parameter.labels[:CATEGORIES]],
        }  # fmt: skip
    else:
        values = measures.column(name)
        low, high = _scale(values)
        with np.errstate(over="ignore", invalid="ignore"):
            share = np.clip((values - low) / ((high - low) or 1.0), 0, 1)
        levels = np.where(np.isfinite(values), 1 + np.nan_to_num(np.round(254 * share)), 0)
        words = {"kind": "number", "low": low, "high": high, "labels": []}
    known = int(np.count_nonzero(levels))
    deflated = zlib.compress(levels.astype(np.uint8).tobytes(), 1)
    return {**words, "known": known, "more": more}, [deflated]


def _scale(values: Floats) -> tuple[float, float]:
    """The ends of a colour scale: of all values, unless few of them lie far away."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return 0.0, 0.0
    low, high = float(finite.min()), float(finite.max())
    with np.errstate(over="ignore", invalid="ignore"):  # ±1e308
        first, last = (float(end) for end in np.quantile(finite, (0.01, 0.99)))
    if last > first and high - low > 10 * (last - first):
        return first, last
    return low, high


def _heat(sweep: Sweep[Any], measures: Measures, asked: Mapping[str, Any]) -> Answer:
    more = measures.read()
    values = measures.column(str(asked.get("value")))
    across, xs = _axis(measures, asked.get("x"))
    down, ys = _axis(measures, asked.get("y")) if asked.get("y") is not None else (0 * across, [""])
    known = np.isfinite(values) & (across >= 0) & (down >= 0)
    at, size = (down * len(xs) + across)[known], len(xs) * len(ys)
    counts = np.bincount(at, minlength=size)
    with np.errstate(over="ignore", invalid="ignore"):  # 0 / 0 is what is not known
        means = np.bincount(at, weights=values[known], minlength=size) / counts
        shown = means.astype("<f4")
    low, high = _scale(means)
    return {
        "x": xs, "y": ys, "low": low, "high": high, "of": size, "more": more,
        "filled": int(np.count_nonzero(counts)), "mean_of": int(counts.max(initial=0)),
    }, [shown.tobytes()]  # fmt: skip


def _axis(measures: Measures, name: object) -> tuple[NDArray[np.int64], list[str]]:
    """Where on an axis each job is (-1: nowhere), and the labels along it."""
    if not isinstance(name, str) or name not in measures.names:
        known = ", ".join(measures.names) or "none"
        raise ValueError(f"{brief(name)} is no parameter of this sweep; there are: {known}")
    parameter = measures.parameter(name)
    codes = parameter.codes.astype(np.int64)
    if len(parameter.labels) <= MOST_BINS:
        return codes, [html.clip(label, 60) for label in parameter.labels]
    if parameter.kind == "text":
        raise ValueError(
            f"{name!r} has {len(parameter.labels):,} distinct texts, and an axis has room for "
            f"{MOST_BINS}: take another parameter"
        )
    finite = parameter.values[np.isfinite(parameter.values)]
    if not len(finite):
        raise ValueError(f"{name!r} has no finite values: take another parameter")
    ends = np.linspace(finite[0], finite[-1], MOST_BINS + 1)
    bins = np.clip(np.searchsorted(ends, parameter.values, "right") - 1, 0, MOST_BINS - 1)
    bins[np.isnan(parameter.values)] = -1
    return np.append(bins, -1)[codes], [f"{end:.4g}" for end in ends[:-1]]
