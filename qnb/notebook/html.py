"""Words, signs and pieces of static HTML that all cards are made of. Pure.

Every piece of text passes through :func:`escape`. The markup has to look right where nothing but
it is left: in a saved, exported or untrusted notebook, without scripts, without style sheets, with
``role`` stripped, in a light or dark page. Hence inline styles, colours that read on both grounds,
a native ``<progress>``, and the sweep's cells as a small picture.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from datetime import UTC, datetime

from qnb.display import duration, tidy

__all__ = [
    "ERROR_CHARS",
    "GLYPHS",
    "MONO",
    "MUTED",
    "TONES",
    "beneath",
    "card",
    "clip",
    "div",
    "duration",
    "error",
    "escape",
    "facts",
    "head",
    "one_line",
    "pre",
    "progress",
    "sign",
    "size",
    "span",
    "tidy",
    "tone",
]

#: the colour of a state, readable on white and on black; `static/view.css` says the same
TONES = {
    "queued": "#8b929a",
    "running": "#2f8fe6",
    "done": "#3da35a",
    "failed": "#e5534b",
    "aborted": "#9a78cf",
}
#: a state's sign, for those who cannot tell the colours apart
GLYPHS = {
    "scheduled": "◷",
    "queued": "○",
    "running": "▸",
    "done": "✓",
    "failed": "✕",
    "aborted": "⊘",
    "expired": "⊘",
    "crashed": "✕",
    "refused": "✕",
    "complete": "✓",
    "not_found": "?",
    "finished": "!",
    "paused": "‖",
}
_TONE_OF = {
    "paused": "queued",
    "scheduled": "queued",
    "expired": "aborted",
    "crashed": "failed",
    "refused": "failed",
    "complete": "done",
    "not_found": "queued",
    "finished": "failed",
}
ERROR_CHARS = 300  #: of one error's line


def clip(text: object, limit: int) -> str:
    """``text``, tidy, cut to ``limit`` characters with a word on how many are missing."""
    whole = str(text)
    if len(whole) <= limit:
        return tidy(whole)
    return f"{tidy(whole[:limit])}… ({len(whole) - limit:,} more characters)"


def escape(text: object) -> str:
    """``text``, tidy, safe between tags and inside a quoted attribute."""
    return html.escape(tidy(text), quote=True)


def size(nbytes: int) -> str:
    """A number of bytes as a person says it: ``512 B``, ``1.2 kB``."""
    if nbytes < 1000:
        return f"{nbytes} B"
    power = 1
    while nbytes >= 999.5 * 1000**power and power < 4:
        power += 1
    amount = nbytes / 1000**power
    unit = " kMGT"[power] + "B"
    return f"{amount:.1f} {unit}" if amount < 9.95 else f"{amount:.0f} {unit}"


def tone(word: str) -> str:
    """Which of :data:`TONES` a state has."""
    return _TONE_OF.get(word, word)


# -- words -------------------------------------------------------------------------------------


def one_line(text: str) -> str:
    """Line ends made visible."""
    return re.sub(r"\s*\n\s*", " ⏎ ", text.strip())


# -- markup ------------------------------------------------------------------------------------

MUTED = "opacity:.72"
MONO = "font-family:var(--jp-code-font-family,monospace);font-size:.92em"
_CARD = (
    "box-sizing:border-box;max-width:680px;margin:2px 0;padding:10px 12px;border-radius:6px;"
    "border:1px solid rgba(128,128,128,.4);line-height:1.45;"
    "font-family:var(--jp-ui-font-family,system-ui,sans-serif);"
    "font-size:var(--jp-ui-font-size1,13px);text-align:left"
)


def card(content: str) -> str:
    """The frame of a card. A ``$`` in it is no mathematics: its classes say so to MathJax."""
    return f'<div class="tex2jax_ignore mathjax_ignore" style="{_CARD}">{content}</div>'


def div(content: str, style: str = "margin-top:6px") -> str:
    """A block; nothing if it would be empty."""
    return f'<div style="{style}">{content}</div>' if content else ""


def span(content: str, style: str) -> str:
    """A piece of a line."""
    return f'<span style="{style}">{content}</span>'


def sign(word: str) -> str:
    """The sign of a state in its colour."""
    return span(GLYPHS.get(word, "•"), f"color:{TONES[tone(word)]};font-weight:700")


def head(word: str, title: str, beside: str, length: str) -> str:
    """The first line of a card: state, name, what it is of, how long it took."""
    colour = TONES[tone(word)]
    chip = span(
        f"{sign(word)} {escape(word.replace('_', ' '))}",
        f"display:inline-block;padding:0 9px 0 7px;border:1px solid {colour};border-radius:99px;"
        f"background-color:{colour}24;margin-right:4px",
    )
    return div(
        f"{span(length, f'float:right;{MUTED}') if length else ''}"
        f"{chip} <b>{escape(clip(title, 120))}</b> "
        f"{span(escape(clip(beside, 120)), f'{MONO};{MUTED}')}",
        "margin:0",
    )


def progress(value: float, most: float, label: str) -> str:
    """A bar that reads without scripts."""
    return (
        f'<progress value="{value:g}" max="{max(most, 1):g}" aria-label="{escape(label)}" '
        f'style="width:100%;height:10px;margin-top:6px;accent-color:{TONES["done"]}">'
        f"{escape(label)}</progress>"
    )


def facts(facts: Sequence[str]) -> str:
    """A muted line of facts, each escaped already."""
    return div(" &nbsp;·&nbsp; ".join(facts), f"margin-top:4px;{MUTED}")


def pre(text: str, style: str = "", *, scrolls: bool = False) -> str:
    """Text with its line ends, in the fixed font; one that ``scrolls`` does so by keyboard too."""
    if not text:
        return ""
    reached = ' tabindex="0"' if scrolls else ""
    look = f"margin:4px 0 0;white-space:pre-wrap;overflow-wrap:anywhere;{MONO};{style}"
    return f'<pre{reached} style="{look}">{escape(text)}</pre>'


def error(text: str) -> str:
    """An error as it was raised."""
    return (
        f'<pre style="margin:6px 0 0;padding:0 0 0 8px;border-left:3px solid {TONES["failed"]};'
        f'white-space:pre-wrap;overflow-wrap:anywhere;{MONO}">{escape(text)}</pre>'
    )


def beneath(shown: str, ident: str, at_ms: int | None) -> str:
    """``shown``, a card, as it stands below a live view, in case that the kernel ends first.

    The live view hides it by its class. In a file whose kernel is gone the front end says "model
    not found" in the live view's place; the rule hides that output as long as no view is in it.
    ``at_ms`` is when that was (epoch ms), if it may have gone on since.
    """
    child = ".jp-OutputArea-child"
    since = ""
    if at_ms is not None:
        at = datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%d %b %Y, %H:%M:%S UTC")
        since = div(f"Last known state, {at}. Run the cell again to follow it.", MUTED)
    return (
        f"<style>{child}:has(+ {child} .qnb-card-{ident}):not(:has(.qnb-view))"
        f'{{display:none}}</style><div class="qnb-card-{ident}">{shown}{since}</div>'
    )
