"""The verdicts of the nightly gate for people (Markdown) and for CI (JUnit XML). Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from xml.etree import ElementTree

from harness.leaderboard.regression import FAILING, GateVerdict, RowVerdict, failed
from harness.report.formats import NONE, signed
from harness.util.text import cleaned

ORDER: tuple[GateVerdict, ...] = ("regressed", "risen", "accepted", "moved", "held")
"""The verdicts, those that matter first."""


def headline(name: str, rows: Sequence[RowVerdict]) -> str:
    """Return one line: held or failed, and the number of rows with each verdict."""
    counts = Counter(row.verdict for row in rows)
    verdicts = ", ".join(f"{counts[verdict]} {verdict}" for verdict in ORDER if counts[verdict])
    return f"{name}: {'FAILED' if failed(rows) else 'held'} ({verdicts})"


def markdown(name: str, rows: Sequence[RowVerdict]) -> str:
    """Return a heading and a table, the rows that matter first."""
    lines = [
        f"### {headline(name, rows)}",
        "",
        "| row | verdict | clean, points | robust, points | images flipped | why |",
        "|---|---|---:|---:|---:|---|",
    ]
    for row in sorted(rows, key=lambda row: ORDER.index(row.verdict)):
        points = (_points(row.clean_pp), _points(row.robust_pp))
        cells = (_escape(row.name), row.verdict, *points, row.flipped, _escape(row.why))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def junit(name: str, rows: Sequence[RowVerdict]) -> str:
    """Return a test suite with a case for each row, a failure if it shuts the gate. No control characters."""
    failures = sum(row.verdict in FAILING for row in rows)
    counts = {"tests": str(len(rows)), "failures": str(failures), "errors": "0"}
    suite = ElementTree.Element("testsuite", {"name": cleaned(name)} | counts)
    for row in rows:
        case = ElementTree.SubElement(suite, "testcase", classname=cleaned(name), name=cleaned(row.name))
        if row.verdict in FAILING:
            why = cleaned(row.why)
            ElementTree.SubElement(case, "failure", message=why, type=row.verdict).text = why
    suites = ElementTree.Element("testsuites")
    suites.append(suite)
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def _points(value: float | None) -> str:
    return NONE if value is None else signed(value, 2)


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
