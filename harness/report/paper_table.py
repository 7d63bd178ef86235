"""The robustness table of the Curvature Tuning paper, and beside it what boards have found under either protocol.

The published values are those of the authors' project page (Hu et al. 2025, arXiv 2502.07783). A board's row stands
beside one of them where it answers the same question of a network of that name, with its n beside it. Boards of one
question on the same images with the same weights, seed and batches stand side by side. The columns are never ranked
against each other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest
from typing import TYPE_CHECKING, NamedTuple

from harness.leaderboard import flags
from harness.leaderboard.csv_file import IN_SAMPLE, SELECTED, written
from harness.report.html import render
from harness.report.table import TO
from harness.report.verdict import signed

if TYPE_CHECKING:
    import pandas as pd

ARROW = "\N{NO-BREAK SPACE}→\N{NO-BREAK SPACE}"


class PaperSetting(NamedTuple):
    """What was asked, as the columns of a board have it; of the data set only the kind."""

    dataset: str
    threat: str
    eps: str
    attack: str


class Claim(NamedTuple):
    """What was published of one network: robust accuracy in percent, untouched and at β."""

    base: float
    tuned: float
    beta: float

    @property
    def change(self) -> str:
        """Both accuracies, as published."""
        return f"{self.base:.2f}{ARROW}{self.tuned:.2f}"


class Measured(NamedTuple):
    """What a board found for one network under one protocol.

    Args:
        identity: of the question, the images, the seed, the batches and the weights: all but the protocol.
        base: robust accuracy of the untouched network on the images that are reported on, percent.
        tuned: likewise at the β of the headline.
        beta: the one that was chosen; where folds differ, each with how many chose it.
        delta: the gain in points, ``low`` … ``high`` with 95 % confidence.
    """

    board: str
    identity: tuple[str, ...]
    question: PaperSetting
    protocol: str
    network: str
    n: int
    base: float
    tuned: float
    beta: str
    delta: float
    low: float
    high: float
    flags: tuple[str, ...]

    @property
    def change(self) -> str:
        """Both accuracies."""
        return f"{self.base:.1f}{ARROW}{self.tuned:.1f}"

    @property
    def gain(self) -> str:
        """The gain, in points."""
        return signed(self.delta)

    @property
    def interval(self) -> str:
        """Its 95 % interval, in points."""
        return f"{signed(self.low)}{TO}{signed(self.high)}"


class PaperRow(NamedTuple):
    """One network under one question; None where nothing was published, or nothing was run."""

    question: PaperSetting
    network: str
    claim: Claim | None
    paper: Measured | None = None
    pixel: Measured | None = None

    @property
    def measured(self) -> tuple[Measured, ...]:
        """What was run."""
        return tuple(one for one in (self.paper, self.pixel) if one)


class PaperGroup(NamedTuple):
    """The rows of one question.

    Args:
        title: the question in words.
        benchmark: the file that fills its blanks; empty where nothing was published.
    """

    title: str
    benchmark: str
    rows: tuple[PaperRow, ...]


DATASETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "imagenet": "ImageNet"}
THREATS = {"L2": ("0.5", "L2, ε = 0.5"), "Linf": ("0.0313725", "Linf, ε = 8/255"), "corruptions": ("", "corruptions")}
"""Of each published threat ε, as a board has it, and the threat in words."""

TABLE = {
    ("cifar10", "ResNet-18"): ((53.67, 53.67, 1.00), (11.17, 14.93, 0.90), (77.73, 77.73, 1.00)),
    ("cifar10", "ResNet-50"): ((55.10, 56.53, 0.97), (10.10, 12.08, 0.90), (77.26, 77.26, 1.00)),
    ("cifar10", "ResNet-152"): ((56.27, 56.27, 1.00), (11.47, 15.00, 0.99), (78.82, 78.83, 0.99)),
    ("cifar100", "ResNet-18"): ((24.30, 25.50, 0.92), (4.47, 6.90, 0.92), (51.81, 51.95, 0.94)),
    ("cifar100", "ResNet-50"): ((23.83, 25.80, 0.96), (4.43, 7.90, 0.93), (53.91, 53.93, 0.98)),
    ("cifar100", "ResNet-152"): ((27.90, 28.23, 0.98), (5.40, 7.70, 0.99), (56.12, 56.12, 1.00)),
    ("imagenet", "ResNet-18 IMAGENET1K_V1"): ((23.37, 23.37, 1.00), (0.00, 7.00, 0.89), (33.11, 33.32, 0.92)),
    ("imagenet", "ResNet-50 IMAGENET1K_V1"): ((31.90, 31.90, 1.00), (0.30, 9.30, 0.93), (39.64, 39.64, 1.00)),
    ("imagenet", "ResNet-152 IMAGENET1K_V1"): ((42.50, 42.50, 1.00), (0.30, 13.53, 0.97), (45.47, 45.47, 0.99)),
}
"""Under each of `THREATS` base, tuned and β. On ImageNet the networks are those of torchvision's first weights."""

COUNTED = {"paper": IN_SAMPLE, "pixel": SELECTED}
"""The headline that each protocol goes with: in pixels an in-sample choice is no result."""


def _published() -> dict[tuple[PaperSetting, str], PaperRow]:
    """A row for every published value, by its question and the network's plain name."""
    found = {}
    for (dataset, network), claims in TABLE.items():
        for (threat, (eps, _)), values in zip(THREATS.items(), claims, strict=True):
            attack = f"{DATASETS[dataset]}-C" if threat == "corruptions" else "standard"
            question = PaperSetting(dataset, threat, eps, attack)
            found[question, plain(network)] = PaperRow(question, network, Claim(*values))
    return found


def plain(network: str) -> str:
    """A network's name without its case, its hyphens and its underscores: ResNet-18 is resnet18."""
    return network.lower().replace("-", "").replace("_", "")


PUBLISHED: Mapping[tuple[PaperSetting, str], PaperRow] = _published()


def groups(boards: Mapping[str, pd.DataFrame]) -> list[PaperGroup]:
    """The table: questions that a board answers, then the others; published ones in their order, then further pairs.

    Args:
        boards: each by its name; those that answer none of these questions are left out.
    """
    found: dict[tuple[PaperSetting, str], list[PaperRow]] = {}
    for row in _paired(one for name, table in boards.items() for one in _measured(name, table)):
        found.setdefault((row.question, plain(row.network)), []).append(row)
    by_question: dict[PaperSetting, list[PaperRow]] = {}
    for key in [*PUBLISHED, *(key for key in found if key not in PUBLISHED)]:
        by_question.setdefault(key[0], []).extend(found[key] if key in found else [PUBLISHED[key]])
    asked = {question for question, _ in PUBLISHED}
    table = [
        PaperGroup(title(question), benchmark(question) if question in asked else "", tuple(rows))
        for question, rows in by_question.items()
    ]
    return sorted(table, key=lambda group: not belongs([group]))


def _measured(board: str, table: pd.DataFrame) -> Iterator[Measured]:
    """The headlines of a board."""
    for row in table.to_dict("records"):
        if row["status"] != COUNTED.get(str(row["protocol"])):
            continue
        asked = [str(row[column]) for column in ("dataset", "threat", "eps", "attack")]
        alike = [written(row[column], column) for column in ("data_sha256", "seed", "batch_size", "weights_sha256")]
        folds = Counter(str(row["chosen"]).split(";"))
        yield Measured(
            board=board,
            identity=(*asked, *alike),
            question=PaperSetting(asked[0].partition("[")[0], *asked[1:]),
            protocol=str(row["protocol"]),
            network=str(row["model"]),
            n=int(row["n"]),
            base=max(0.0, 100 * row["robust"] - row["delta_pp"]),
            tuned=100 * row["robust"],
            beta=", ".join(f"{beta} × {count}" if len(folds) > 1 else beta for beta, count in folds.most_common()),
            delta=row["delta_pp"],
            low=row["delta_low"],
            high=row["delta_high"],
            flags=tuple(flag for flag in str(row["flags"]).split(";") if flag),
        )


def _paired(measured: Iterable[Measured]) -> Iterator[PaperRow]:
    """The rows that belong to the table: of a published network, or with both protocols."""
    alike: dict[tuple[str, ...], list[Measured]] = {}
    for one in measured:
        alike.setdefault(one.identity, []).append(one)
    for same in alike.values():
        papers, pixels = ([one for one in same if one.protocol == protocol] for protocol in COUNTED)
        keys = [(one.question, plain(one.network)) for one in same]
        entry = next((PUBLISHED[key] for key in keys if key in PUBLISHED), None)
        if entry or (papers and pixels):
            blank = entry or PaperRow(same[0].question, same[0].network, None)
            yield from (blank._replace(paper=paper, pixel=pixel) for paper, pixel in zip_longest(papers, pixels))


def title(question: PaperSetting) -> str:
    """The question in words: ``CIFAR-10 · Linf, ε = 8/255``."""
    dataset, threat, eps, attack = question
    published = THREATS.get(threat)
    words = published[1] if published and published[0] == eps else f"{threat}, ε = {eps}" if eps else threat
    name = DATASETS.get(dataset, dataset)
    return " · ".join([name, words, *([] if attack in ("standard", f"{name}-C") else [attack])])


def benchmark(question: PaperSetting) -> str:
    """The file that asks a published question."""
    return f"benchmarks/paper_{question.dataset}_{question.threat.lower()}.yaml"


def belongs(table: Iterable[PaperGroup]) -> bool:
    """Whether any of the boards has something to say here."""
    return any(row.measured for group in table for row in group.rows)


def page(
    table: Iterable[PaperGroup], links: Mapping[str, str] | None = None, pages: Mapping[str, str] | None = None
) -> str:
    """The table as one page that needs no network.

    Args:
        table: from `groups`.
        links: names and addresses of what lies beside the page, where it is part of a site.
        pages: the addresses of the boards' pages, likewise.
    """
    shown = tuple(table)
    met = {flag for group in shown for row in group.rows for one in row.measured for flag in one.flags}
    return render("paper.html.j2", groups=shown, links=links or {}, pages=pages or {}, flags=flags.explained(met))
