"""Static HTML and text: nothing but our own markup, whatever the names and errors are."""

from __future__ import annotations

import base64
import re
import struct
import zlib

import pytest

from qnb.models import (
    CELLS,
    SweepSnapshot,
)
from qnb.notebook import html, sweep_card
from tests.notebook.markup import Markup


def _sweep(text: str) -> SweepSnapshot:
    cells = bytes([0, 1, 2, 3, 4])
    return SweepSnapshot(text, text, 5, cells, 3.0, 2.0, {text: 1, text + "!": 2}, note=text)


def test_the_text_itself_is_still_there() -> None:
    assert "a < b > c & d" in Markup(sweep_card.sweep_card(_sweep("a < b > c & d"))).text
    assert html.tidy("\x1b[31m\ttab\nline\x9b") == "\\x1b[31m\ttab\nline\\x9b"


def test_a_card_names_every_state_in_words() -> None:
    text = Markup(sweep_card.sweep_card(_sweep("scan"))).text
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
