"""The audit of the zoo: against counts known by hand, and a table that can be stopped and gone on with."""

from __future__ import annotations

from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.checks import zoo_coverage
from harness.checks.zoo_coverage import Audit, applicability, audit, executed, survey
from harness.errors import LeaderboardError
from harness.models import robustbench_zoo
from harness.models.robustbench_zoo import ZooEntry
from harness.report.zoo_summary import SUMMED_UP, summed_up

ROOT = Path(__file__).parents[2]
KNOWN = {  # read off the architectures' own code
    # ResNet-18 of Madry's kind, F.relu after each sum: 1 + 8 blocks of 2
    ZooEntry("cifar10", "Linf", "Sehwag2021Proxy_R18"): {"sites": "17", "steered": "17", "by_modules": "0"},
    # torchvision's ResNet-50 with pretrained=True: 1 + 16 blocks of 3 calls of 17 modules
    ZooEntry("imagenet", "corruptions", "Standard_R50"): {"sites": "49", "steered": "49", "by_modules": "49"},
    # a swish of its own, an autograd.Function: WRN-28-10, 3 groups of 4 blocks of 2, and one at the end
    ZooEntry("cifar100", "Linf", "Rebuffi2021Fixing_28_10_cutmix_ddpm"): {
        "sites": "0", "smooth": "25", "activations": "silu:25", "applicability": "no: silu",
    },
    # built by timm, with weights from the web if it had its way
    ZooEntry("cifar10", "Linf", "Debenedetti2022Light_XCiT-S12"): {
        "sites": "0", "smooth": "29", "activations": "gelu:29", "applicability": "no: gelu",
    },
}  # fmt: skip


@pytest.mark.parametrize("entry", KNOWN, ids=lambda entry: entry.name)
def test_counts_are_those_of_the_architecture(entry: ZooEntry) -> None:
    found = audit(entry, robustbench_zoo.build)
    assert found.builds == "yes"
    assert {name: getattr(found, name) for name in KNOWN[entry]} == KNOWN[entry]


def test_building_leaves_torch_and_timm_as_they_were() -> None:
    import timm
    import torchvision

    before = (timm.create_model, torchvision.models.resnet50, torch.Tensor.cuda, nn.Module.cuda)
    network, example = robustbench_zoo.build(ZooEntry("imagenet", "Linf", "Standard_R50"))
    assert before == (timm.create_model, torchvision.models.resnet50, torch.Tensor.cuda, nn.Module.cuda)
    assert example.shape == (1, 3, 224, 224)
    assert network(example).shape == (1, 1000)
    assert not network.training


def test_the_zoo_has_206_entries_on_seven_boards() -> None:
    entries = robustbench_zoo.zoo()
    assert len(entries) == len(set(entries)) == 206
    assert Counter(entry.board for entry in entries) == {
        "cifar10/Linf": 76, "cifar10/L2": 21, "cifar10/corruptions": 17, "cifar100/Linf": 38,
        "cifar100/corruptions": 12, "imagenet/Linf": 30, "imagenet/corruptions": 12,
    }  # fmt: skip


class Gated(nn.Module):
    def __init__(self, *activations: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.activations = activations

    def forward(self, x: Tensor) -> Tensor:
        for activation in self.activations:
            x = activation(self.layer(x))
        return x


@pytest.mark.parametrize(
    ("activations", "kinds", "answer"),
    [
        ((F.relu, torch.relu, torch.sigmoid), {"relu": 2, "sigmoid": 1}, "yes"),
        ((F.relu, F.silu), {"relu": 1, "silu": 1}, "partial: also silu"),
        ((F.gelu, torch.sigmoid), {"gelu": 1, "sigmoid": 1}, "no: gelu"),
        ((torch.sigmoid,), {"sigmoid": 1}, "no: sigmoid"),
        ((torch.abs,), {}, "no: no activation"),
    ],
)
def test_applicability(activations: Any, kinds: dict[str, int], answer: str) -> None:
    found = executed(Gated(*activations).eval(), torch.rand(1, 4))
    assert found == Counter(kinds)
    assert applicability(found) == answer


ENTRIES = [ZooEntry("cifar10", "Linf", name) for name in ("a", "b", "c")]


def test_a_stopped_survey_goes_on_where_it_was(tmp_path: Path, monkeypatch: Any) -> None:
    asked: list[ZooEntry] = []

    def audited(entries: Any, build: Any) -> Any:
        for entry in entries:
            asked.append(entry)
            if entry.name == "c" and asked.count(entry) == 1:
                raise KeyboardInterrupt
            yield Audit(
                entry.dataset, entry.threat, entry.name,
                builds="yes", applicability="yes, wholly", robustbench=version("robustbench"),
            )  # fmt: skip

    monkeypatch.setattr(zoo_coverage, "_audited", audited)
    table = tmp_path / "coverage.csv"
    with pytest.raises(KeyboardInterrupt):
        survey(ENTRIES, table, robustbench_zoo.build, lambda row: None)
    assert [row.model for row in zoo_coverage.read(table)] == ["a", "b"]
    told: list[str] = []
    rows = survey(ENTRIES, table, robustbench_zoo.build, lambda row: told.append(row.model))
    assert told == ["c"]
    assert [entry.name for entry in asked] == ["a", "b", "c", "c"]
    assert rows == zoo_coverage.read(table)
    monkeypatch.setattr(zoo_coverage, "version", lambda name: "another")
    assert zoo_coverage.missing(ENTRIES, table) == ENTRIES


def test_what_does_not_build_or_kills_its_process_is_a_row(tmp_path: Path) -> None:
    nowhere = ZooEntry("cifar10", "Linf", "Nobody2030Nothing")
    assert audit(nowhere, robustbench_zoo.build).builds == "no: does not build: KeyError: 'Nobody2030Nothing'"


def test_a_foreign_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("a,b\n1,2\n")
    with pytest.raises(LeaderboardError, match=r"c\.csv: not a table of coverage: expected the columns dataset, thr"):
        zoo_coverage.read(tmp_path / "c.csv")


def test_the_committed_table_answers_for_every_entry() -> None:
    rows = zoo_coverage.read(ROOT / "leaderboards" / "coverage.csv")
    assert {(row.dataset, row.threat, row.model) for row in rows} == set(robustbench_zoo.zoo())
    assert all(row.builds == "yes" for row in rows)
    *_, everything = summed_up(rows)
    assert dict(zip(SUMMED_UP, everything[2:], strict=True)) == {
        "build": "206", "CT applies": "113", "in part": "8", "not": "85", "steered wholly": "121",
        "wholly by modules": "90", "smooth extension": "92",
    }  # fmt: skip
