"""What there is in a piece of HTML beside its text."""

from __future__ import annotations

import re
from html.parser import HTMLParser

__all__ = ["ATTRIBUTES", "TAGS", "UNSEEN", "Markup"]

TAGS = {
    "b",
    "div",
    "img",
    "pre",
    "progress",
    "span",
    "style",
    "table",
    "tbody",
    "td",
    "th",
    "thead",
    "tr",
    "code",
}
ATTRIBUTES = {"alt", "aria-label", "class", "max", "scope", "src", "style", "tabindex", "value"}
CLASSES = {"dataframe", "tex2jax_ignore", "mathjax_ignore", "qnb-card-0a1b"}

# what a terminal or a reader's eye could be led astray by
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class Markup(HTMLParser):
    """A piece of HTML, taken apart; what is malformed fails here."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.rules = ""
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            self.attributes.add(name)
            if name == "class":
                assert set((value or "").split()) <= CLASSES
            if name == "src":
                assert (value or "").startswith("data:image/png;base64,")
            if name == "style":
                assert not re.search(r"url|expression|import|position|[{}<>]", value or "")
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
