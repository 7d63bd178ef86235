"""The verdicts of the gate for a CI page (Markdown) and for CI itself (JUnit XML). Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from xml.etree import ElementTree

from harness.leaderboard.regression import RowVerdict, failed


def headline(name: str, rows: Sequence[RowVerdict]) -> str:
    """One line: held or regressed, and how many rows of which verdict."""
    counts = Counter(row.verdict for row in rows)
    verdicts = ", ".join(
        f"{counts[verdict]} {verdict}" for verdict in ("regressed", "improved", "moved", "held") if counts[verdict]
    )
    return f"{name}: {'REGRESSED' if failed(rows) else 'held'} ({verdicts})"


def markdown(name: str, rows: Sequence[RowVerdict]) -> str:
    """A heading and a table, the rows that matter first."""
    order = ["regressed", "improved", "moved", "held"]
    lines = [
        f"### {headline(name, rows)}",
        "",
        "| row | verdict | clean, points | robust, points | images flipped | why |",
        "|---|---|---:|---:|---:|---|",
    ]
    for row in sorted(rows, key=lambda row: order.index(row.verdict)):
        cells = (
            _escape(row.name),
            row.verdict,
            _points(row.clean_pp),
            _points(row.robust_pp),
            row.flipped,
            _escape(row.why),
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def junit(name: str, rows: Sequence[RowVerdict]) -> str:
    """A test suite with a case for each row; a regressed one has failed."""
    regressed = [row for row in rows if row.verdict == "regressed"]
    suite = ElementTree.Element("testsuite", name=name, tests=str(len(rows)), failures=str(len(regressed)), errors="0")
    for row in rows:
        case = ElementTree.SubElement(suite, "testcase", classname=name, name=row.name)
        if row.verdict == "regressed":
            ElementTree.SubElement(case, "failure", message=row.why, type="regressed").text = row.why
    suites = ElementTree.Element("testsuites")
    suites.append(suite)
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def _points(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
