"""Pages from their templates, and pictures as parts of them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from harness.report import plot

if TYPE_CHECKING:
    from markupsafe import Markup

COLOURS = {
    plot.INK: "currentColor", plot.PAPER: "var(--card)", plot.CLEAN: "var(--clean)",
    plot.ROBUST: "var(--robust)",
}  # fmt: skip
"""What the page makes of a picture's colours, so that it follows the reader's scheme."""


def inlined(svg: str, prefix: str) -> Markup:
    """A picture from `drawing.svg` as part of a page: its names apart from other pictures', its colours the page's."""
    from markupsafe import Markup

    body = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}", body)
    body = re.sub(r'^<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true">', body)
    body = body.replace("xlink:href", "href")
    for colour, name in COLOURS.items():
        body = body.replace(colour, name)
    return Markup(body)  # matplotlib's own, without a word from the board


def render(template: str, **parts: Any) -> str:
    """A page from its template; all text is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    pages = Environment(
        loader=PackageLoader("harness.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    return pages.get_template(template).render(**parts)
