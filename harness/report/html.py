"""Pages from their templates, and pictures inlined in them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from harness.report import plot

if TYPE_CHECKING:
    from markupsafe import Markup

COLOURS = {
    plot.INK: "currentColor", plot.PAPER: "var(--card)", plot.CLEAN: "var(--clean)", plot.ROBUST: "var(--robust)",
}  # fmt: skip
"""The page's colour for each colour of a picture, so that it follows the reader's light or dark scheme."""


def inlined(svg: str, prefix: str) -> Markup:
    """Return a picture as part of a page: its ids apart from other pictures', its colours the page's.

    Args:
        svg: text from `harness.report.plot.svg`.
        prefix: put before every id of the picture; must be unique in the page.
    """
    from markupsafe import Markup

    body = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}", body)
    body = re.sub(r'^<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true">', body)
    body = body.replace("xlink:href", "href")
    for colour, name in COLOURS.items():
        body = body.replace(colour, name)
    return Markup(body)  # matplotlib has escaped the board's text


def render(template: str, **parts: Any) -> str:
    """Return a page from its template; all text is escaped.

    Args:
        template: file name in ``templates``.
        parts: variables of the template.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("harness.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    return environment.get_template(template).render(**parts)
