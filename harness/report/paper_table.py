"""The robustness table of the Curvature Tuning paper, and beside it what boards have found under either protocol.

The published values are those of the authors' project page (Hu et al. 2025, arXiv 2502.07783). The row of a board
stands beside one of them where it answers the same question of a network of that name. Boards of the same question,
images, weights, seed and batches stand side by side. The columns are never ranked against each other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import NamedTuple

from harness.leaderboard import flags
from harness.leaderboard.row import LeaderboardRow, RowKind, known
from harness.report.formats import ARROW, signed, signed_interval
from harness.report.html import render
from harness.util.batching import grouped


class PaperSetting(NamedTuple):
    """Dataset, threat, ε and attack of a board, by its columns; of the dataset only the name."""

    dataset: str
    threat: str
    eps: str
    attack: str


class Claim(NamedTuple):
    """The published robust accuracy of one network in percent: of the untouched network, and at ``beta``."""

    base: float
    tuned: float
    beta: float

    @property
    def change(self) -> str:
        """Both accuracies, as published."""
        return f"{self.base:.2f}{ARROW}{self.tuned:.2f}"


class Measured(NamedTuple):
    """The headline of a board for one network under one protocol.

    Args:
        board: name of the board.
        identity: the question, the images, the seed, the batches and the weights: everything but the protocol.
        setting: the question.
        protocol: ``paper`` or ``pixel``.
        network: label of the model.
        n: number of images that are reported on.
        base: robust accuracy of the untouched network on these images, in percent.
        tuned: robust accuracy at the β of the headline, likewise.
        beta: the β that was chosen; where folds differ, each with the number of folds that chose it.
        delta: gain in percentage points.
        low: lower end of its 95 % interval.
        high: upper end.
        flags: flags of the row.
    """

    board: str
    identity: tuple[str, ...]
    setting: PaperSetting
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
        """The 95 % interval of the gain, in points."""
        return signed_interval(self.low, self.high)


class PaperRow(NamedTuple):
    """One network in one setting; None where nothing was published, or nothing was run."""

    setting: PaperSetting
    network: str
    claim: Claim | None
    paper: Measured | None = None
    pixel: Measured | None = None

    @property
    def measured(self) -> tuple[Measured, ...]:
        """The headlines of boards."""
        return tuple(one for one in (self.paper, self.pixel) if one)


class PaperGroup(NamedTuple):
    """The rows of one setting.

    Args:
        title: the setting in words.
        benchmark: path of the benchmark that fills its blanks; empty where nothing was published.
        rows: a row for each network.
    """

    title: str
    benchmark: str
    rows: tuple[PaperRow, ...]


DATASETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "imagenet": "ImageNet"}
THREATS = {"L2": ("0.5", "L2, ε = 0.5"), "Linf": ("0.0313725", "Linf, ε = 8/255"), "corruptions": ("", "corruptions")}
"""Each published threat: its ε as a board has it, and the threat in words."""

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
"""Base, tuned and β under each of `THREATS`. On ImageNet the networks have torchvision's first weights."""

COUNTED: Mapping[str, RowKind] = {"paper": "in_sample", "pixel": "selected"}
"""The kind of headline that counts under each protocol: in pixels an in-sample choice is no result."""


def _published() -> dict[tuple[PaperSetting, str], PaperRow]:
    """Return a row for every published value, by its setting and the network's plain name."""
    found = {}
    for (dataset, network), claims in TABLE.items():
        for (threat, (eps, _)), values in zip(THREATS.items(), claims, strict=True):
            attack = f"{DATASETS[dataset]}-C" if threat == "corruptions" else "standard"
            setting = PaperSetting(dataset, threat, eps, attack)
            found[setting, plain(network)] = PaperRow(setting, network, Claim(*values))
    return found


def plain(network: str) -> str:
    """Return the name of a network in lower case, without hyphens and underscores: ResNet-18 is resnet18."""
    return network.lower().replace("-", "").replace("_", "")


PUBLISHED: Mapping[tuple[PaperSetting, str], PaperRow] = _published()


def groups(boards: Mapping[str, Sequence[LeaderboardRow]]) -> list[PaperGroup]:
    """Return the table: settings that a board answers first; published rows in their order, then further pairs.

    Args:
        boards: rows of each board by its name; a board of another question is left out.
    """
    paired = _paired(one for name, rows in boards.items() for one in _measured(name, rows))
    found = grouped(paired, lambda row: (row.setting, plain(row.network)))
    by_setting: dict[PaperSetting, list[PaperRow]] = {}
    for key in [*PUBLISHED, *(key for key in found if key not in PUBLISHED)]:
        by_setting.setdefault(key[0], []).extend(found[key] if key in found else [PUBLISHED[key]])
    published = {setting for setting, _ in PUBLISHED}
    table = [
        PaperGroup(title(setting), benchmark(setting) if setting in published else "", tuple(rows))
        for setting, rows in by_setting.items()
    ]
    return sorted(table, key=lambda group: not belongs([group]))


def _measured(board: str, rows: Sequence[LeaderboardRow]) -> Iterator[Measured]:
    """Return the headlines of a board."""
    for row in rows:
        if row.kind != COUNTED.get(row.protocol):
            continue
        question = (row.dataset, row.threat, row.eps, row.attack)
        computed = (row.written(column) for column in ("data_sha256", "seed", "weights_sha256"))
        folds = Counter(row.chosen)
        robust, delta = 100 * known(row.robust), known(row.delta_pp)
        yield Measured(
            board=board,
            identity=(*question, *computed),
            setting=PaperSetting(row.dataset.partition("[")[0], *question[1:]),
            protocol=row.protocol,
            network=row.model,
            n=known(row.n),
            base=max(0.0, robust - delta),
            tuned=robust,
            beta=", ".join(f"{beta} × {count}" if len(folds) > 1 else beta for beta, count in folds.most_common()),
            delta=delta,
            low=known(row.delta_low),
            high=known(row.delta_high),
            flags=row.flags,
        )


def _paired(measured: Iterable[Measured]) -> Iterator[PaperRow]:
    """Return the rows that belong to the table: of a published network, or with both protocols."""
    for same in grouped(measured, lambda one: one.identity).values():
        papers, pixels = ([one for one in same if one.protocol == protocol] for protocol in COUNTED)
        keys = [(one.setting, plain(one.network)) for one in same]
        published = next((PUBLISHED[key] for key in keys if key in PUBLISHED), None)
        if published or (papers and pixels):
            blank = published or PaperRow(same[0].setting, same[0].network, None)
            yield from (blank._replace(paper=paper, pixel=pixel) for paper, pixel in zip_longest(papers, pixels))


def title(setting: PaperSetting) -> str:
    """Return the setting in words: ``CIFAR-10 · Linf, ε = 8/255``."""
    dataset, threat, eps, attack = setting
    published = THREATS.get(threat)
    words = published[1] if published and published[0] == eps else f"{threat}, ε = {eps}" if eps else threat
    name = DATASETS.get(dataset, dataset)
    return " · ".join([name, words, *([] if attack in ("standard", f"{name}-C") else [attack])])


def benchmark(setting: PaperSetting) -> str:
    """Return the path of the benchmark of a published setting."""
    return f"benchmarks/paper_{setting.dataset}_{setting.threat.lower()}.yaml"


def belongs(table: Iterable[PaperGroup]) -> bool:
    """Return whether any board has a row in the table."""
    return any(row.measured for group in table for row in group.rows)


def page(
    table: Iterable[PaperGroup], links: Mapping[str, str] | None = None, pages: Mapping[str, str] | None = None
) -> str:
    """Return the table as one page that needs no network.

    Args:
        table: groups of rows, from `groups`.
        links: names and addresses of further pages, where the page is part of a site.
        pages: addresses of the boards' own pages by their names, likewise.
    """
    shown = tuple(table)
    raised = {flag for group in shown for row in group.rows for one in row.measured for flag in one.flags}
    return render(
        "paper_table.html.j2", groups=shown, links=links or {}, pages=pages or {}, flags=flags.explained(raised)
    )
