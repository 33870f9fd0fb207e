"""Static HTML and text: nothing but our own markup, whatever the names and errors are."""

from __future__ import annotations

import base64
import re
import struct
import zlib
from html.parser import HTMLParser

import pytest

from qnb.models import (
    CELLS,
    Ending,
    Failure,
    JobRecord,
    JobState,
    Outcome,
    Report,
    SweepSnapshot,
)
from qnb.notebook import html, job_card, job_view, sweep_card, sweep_view

TAGS = {"b", "div", "img", "pre", "progress", "span", "style"}
ATTRIBUTES = {"alt", "aria-label", "class", "max", "src", "style", "value"}

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)>",
    "<svg><script>alert(1)</script></svg>",
    '"><img src=x onerror=alert(1)>',
    "'><img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)',
    "' onmouseover='alert(1)",
    "javascript:alert(1)",
    '<a href="javascript:alert(1)">x</a>',
    "<iframe src=//example.org></iframe>",
    "<style>*{display:none}</style>",
    "</style><b>out</b>",
    "</pre></div></div><h1>out</h1>",
    "</progress><u>out</u>",
    "<!-- <b>",
    "--><b>",
    "<![CDATA[<b>]]>",
    "<?xml version='1.0'?>",
    "&lt;script&gt;",
    "&#60;script&#62;",
    "&",
    "<",
    "a < b > c & d",
    "<math><mtext></form><form><mglyph><style></math><img src onerror=alert(1)>",
    "<template><script>alert(1)</script></template>",
    "{{7*7}} ${alert(1)} `x`",
    "\x1b[31mred\x1b[0m \x1b]8;;http://example.org\x07link\x1b]8;;\x07",
    "nul \x00 bell \x07 del \x7f c1 \x9b",
    "direction \u202egnp.exe\u202c \u2066isolated\u2069",
    "lone \ud800 surrogate",
    "carriage\rreturn\nnewline\ttab",
    "<" * 5_000,
    "長い" * 3_000,
]


class _Markup(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.rules = ""
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag != "img":
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "style":
            self.rules += data
        else:
            self.text += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)

    handle_decl = handle_pi = unknown_decl = handle_comment


def _sweep(text: str) -> SweepSnapshot:
    cells = bytes([0, 1, 2, 3, 4])
    return SweepSnapshot(text, text, 5, cells, 3.0, 2.0, {text: 1, text + "!": 2}, note=text)


def _jobs(text: str) -> list[JobRecord]:
    failure = Failure(text, text, text, text)
    outcome = Outcome(Ending.FAILED, 1, 1_000, 2_000, failure=failure, worker=text)
    running = JobRecord(
        text, text, text, JobState.RUNNING, 0, report=Report(1, 2, text), worker=text
    )
    ended = JobRecord(text, text, text, JobState.COMPLETE, 0, outcome=outcome)
    return [running, ended]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_only_ever_text(text: str) -> None:
    cards = [sweep_card.sweep_card(_sweep(text)), *map(job_card.job_card, _jobs(text))]
    plain = []
    for card in [*cards, *(html.beneath(card, "0a1b", 0) for card in cards)]:
        found = _Markup(card)
        assert set(found.tags) <= TAGS
        assert found.attributes <= ATTRIBUTES
        assert "}" not in found.rules.replace("{display:none}", "")
        plain.append(found.text)
    plain += [sweep_card.sweep_text(_sweep(text)), *map(job_card.job_text, _jobs(text))]
    for line in plain:
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", line)
        line.encode()  # no lone surrogates
    assert "\n" not in sweep_card.sweep_text(_sweep(text))
    repr(sweep_view.renderer.state(_sweep(text))).encode()
    repr([job_view.renderer.state(job) for job in _jobs(text)]).encode()


def test_the_text_itself_is_still_there() -> None:
    assert "a < b > c & d" in _Markup(sweep_card.sweep_card(_sweep("a < b > c & d"))).text
    assert html.tidy("\x1b[31m\ttab\nline\x9b") == "\\x1b[31m\ttab\nline\\x9b"


def test_a_card_names_every_state_in_words() -> None:
    text = _Markup(sweep_card.sweep_card(_sweep("scan"))).text
    for word in CELLS:
        assert f"1 {word}" in text


def test_only_the_most_frequent_errors_are_listed() -> None:
    errors = {f"Error{place}": place for place in range(1, 9)}
    card = sweep_card.sweep_card(SweepSnapshot("scan", "f", 36, bytes([3]) * 36, errors=errors))
    assert re.findall(r"(\d+) × Error", card) == ["8", "7", "6", "5", "4"]
    assert "and 3 more kinds of error" in card


@pytest.mark.parametrize("total", [1, 60, 5_000, 100_000, 1_000_000])
def test_the_picture_has_a_cell_for_each_job_and_stays_small(total: int) -> None:
    cells = bytes(place * 7919 % 5 for place in range(total))
    card = sweep_card.sweep_card(SweepSnapshot("scan", "f", total, cells))
    found = re.search(r'src="data:image/png;base64,([^"]+)"', card)
    assert found
    png = base64.b64decode(found[1])
    width, height = struct.unpack(">II", png[16:24])
    assert width * height >= min(total, 250_000)
    start = png.index(b"IDAT")
    (length,) = struct.unpack(">I", png[start - 4 : start])
    assert len(zlib.decompress(png[start + 4 : start + 4 + length])) == (width + 1) * height
    assert len(card) < 300_000


@pytest.mark.parametrize(
    "seconds, said",
    [
        (0.0, "0 ms"),
        (0.0404, "40 ms"),
        (0.9996, "1.0 s"),
        (9.96, "10 s"),
        (59.6, "1 min 00 s"),
        (75, "1 min 15 s"),
        (8040, "2 h 14 min"),
        (200_000, "2 d 7 h"),
    ],
)
def test_durations_read_naturally(seconds: float, said: str) -> None:
    assert html.duration(seconds) == said


@pytest.mark.parametrize(
    "nbytes, said", [(0, "0 B"), (999, "999 B"), (1_234, "1.2 kB"), (999_900, "1.0 MB")]
)
def test_sizes_read_naturally(nbytes: int, said: str) -> None:
    assert html.size(nbytes) == said
