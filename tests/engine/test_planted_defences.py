"""Planted defences: a flag says where a board reports more than an adaptive attack leaves; healthy ones get none."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar, Literal

import pandas as pd
import pytest
import torch
from helpers.defences import Defence
from helpers.ledgers import trials
from torch import Tensor, nn

from harness.api import work
from harness.api.model import Model, Scorable
from harness.api.records import Coverage, FamilyName, Sites, Steering
from harness.api.trial import INSPECT
from harness.attacks.autoattack import SENTINEL
from harness.attacks.square import Square
from harness.attacks.unit_test import run as run_attack
from harness.config.benchmark import parse_benchmark
from harness.datasets.digits import Digits
from harness.leaderboard.flags import MASKING
from harness.leaderboard.row import HEADLINES
from harness.models.loaded import Loaded
from harness.pipeline import run
from harness.util.hashing import sha256_of_weights

N, EPS = 24, 0.15
CROSS_ENTROPY = {"stages": ["apgd-ce"], "iterations": 10}
BRIEF = {"stages": ["apgd-ce", "apgd-t"], "iterations": 10, "targets": 2}

INFLATED = (
    "quantised", "jpeg", "thermometer", "steep_steps", "one_pixel", "wrong_sign", "decoyed", "stopped", "hash_signed",
    "shuffled", "checkered", "averaged", "late", "exploding", "sines", "members", "k_winners", "rounded_answers",
    "ensemble", "clipped", "rejecting",
)  # fmt: skip
"""Defences that a brief attack without Square believes."""
INFLATED_FOR_CROSS_ENTROPY = ("saturated",)
RANDOM = ("noise", "dropout", "shift")
HEALTHY = (
    "plain", "times_10", "times_100", "times_100000", "temperature", "float64", "far_below", "offset",
    "log_probabilities", "median",
)  # fmt: skip


class DefenceLoaded(Loaded):
    def steered(self, steering: Steering, example: Tensor | None = None) -> nn.Module:
        assert isinstance(self.network, Defence)
        if steering.is_baseline == (self.network.where == "baseline"):
            return self.network
        return Defence("plain").eval()

    def coverage(self, sites: Sites, example: Tensor, family: FamilyName = "relu") -> Coverage:
        return Loaded(self.network.get_submodule("network"), "").coverage(sites, example)


class DefenceModel(Model):
    """A defence everywhere, or at the baseline or the steered network alone."""

    kind: ClassVar[str] = "defence"
    name: str
    where: Literal["everywhere", "baseline", "steered"] = "everywhere"
    network: str = "digits_plain"

    @property
    def label(self) -> str:
        return f"{self.name} {self.network}"

    def load(self, *, offline: bool = False) -> Scorable:
        network = Defence(self.name, self.network, self.where).eval()
        return (Loaded if self.where == "everywhere" else DefenceLoaded)(network, sha256_of_weights(network))


def board(
    models: list[DefenceModel],
    runs: Path,
    attack: dict[str, Any],
    kind: str = "Linf",
    eps: float = EPS,
    beta: float = 1,
) -> pd.DataFrame:  # fmt: skip
    benchmark = {
        "name": "planted",
        "models": models,
        "dataset": Digits(n=N),
        "threat": {"kind": kind, "eps": eps, "attack": attack},
        "steering": {"beta": beta},
        "search": {"kind": "full"},
        "executor": {"kind": "inline"},  # the models of this module could not be imported by a worker
    }
    return run(parse_benchmark(benchmark), runs=runs)


def flags(cell: object) -> set[str]:
    return set(filter(None, str(cell).split(";")))


def baselines(table: pd.DataFrame) -> dict[str, pd.Series[Any]]:
    assert not table["status"].str.startswith("failed").any(), table["status"].tolist()
    return {str(row["model"]).split()[0]: row for _, row in table[table["method"] == "untouched"].iterrows()}


def truth(defence: Defence) -> float:
    """Accuracy after adaptive attacks: steps up the honest gradient of the surrogate (BPDA), and a long Square."""
    batch = Digits(n=N).open().read(tuple(range(N)))
    x, y = batch.x, batch.y
    with torch.no_grad():
        alive = defence(x).argmax(1) == y
    point = x
    for step in range(40):
        at = point.clone().requires_grad_()
        logits = defence.surrogate(at)
        others = logits.scatter(1, y[:, None], -torch.inf).logsumexp(1)
        (gradient,) = torch.autograd.grad((others - logits.gather(1, y[:, None])[:, 0]).sum(), at)
        point = point + EPS / (2 + step / 4) * gradient.sign()
        point = torch.minimum(torch.maximum(point, x - EPS), x + EPS).clamp(0, 1)
        with torch.no_grad():
            alive &= defence(point).argmax(1) == y
    square = Square(N, (1, 8, 8), norm="Linf", eps=EPS, queries=1000)

    def relabelled(images: Tensor) -> Tensor:
        """Return logits in which the label is class 0."""
        with torch.no_grad():
            logits = defence(images)
        answers: Tensor = logits.gather(1, (y[:, None] + torch.arange(10)) % 10)
        return answers

    run_attack(square, relabelled, x, torch.arange(N))
    return float((alive & ~square.fooled).float().mean())


pytestmark = pytest.mark.usefixtures("installed")


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pd.Series[Any]]:
    found: dict[str, pd.Series[Any]] = {}
    with pytest.MonkeyPatch.context() as patch:
        install(patch)
        for names, attack in ((INFLATED, BRIEF), (INFLATED_FOR_CROSS_ENTROPY, CROSS_ENTROPY)):
            models = [DefenceModel(name=name) for name in names]
            found |= baselines(board(models, tmp_path_factory.mktemp("runs"), attack))
    return found


def install(patch: pytest.MonkeyPatch) -> None:
    from helpers.packages import INSTALLED

    patch.syspath_prepend(str(INSTALLED))


@pytest.mark.parametrize("name", [*INFLATED, *INFLATED_FOR_CROSS_ENTROPY])
def test_a_defence_that_looks_more_robust_than_it_is_is_flagged(name: str, planted: dict[str, pd.Series[Any]]) -> None:
    row = planted[name]
    assert row["robust"] - truth(Defence(name).eval()) > 0.1, "not inflated: no test of a flag"
    assert flags(row["flags"]) & MASKING


def test_a_network_that_answers_by_chance_is_flagged(tmp_path: Path) -> None:
    rows = baselines(board([DefenceModel(name=name) for name in RANDOM], tmp_path, BRIEF))
    assert {name for name, row in rows.items() if "randomized" in flags(row["flags"])} == set(RANDOM)


def test_healthy_networks_are_not_flagged_whatever_the_scale_and_type_of_their_logits(tmp_path: Path) -> None:
    rows = baselines(board([DefenceModel(name=name) for name in HEALTHY], tmp_path, BRIEF))
    assert {name: flags(row["flags"]) for name, row in rows.items()} == {name: set() for name in HEALTHY}
    assert {row["unit_test"] for row in rows.values()} == {1.0}


@pytest.mark.parametrize(("kind", "eps"), [("L2", 0.5), ("L1", 2.0)])
def test_other_norms_flag_a_masked_network_and_no_healthy_one(kind: str, eps: float, tmp_path: Path) -> None:
    models = [
        DefenceModel(name="plain"),
        DefenceModel(name="plain", network="digits_robust"),
        DefenceModel(name="jpeg"),
    ]
    table = board(models, tmp_path, BRIEF, kind, eps)
    found = table.loc[table["method"] == "untouched", "flags"].tolist()
    assert found[:2] == ["", ""]
    assert {"zero_gradient", "unit_test"} <= flags(found[2])


def test_another_inspection_is_computed_beside_the_results_that_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results of attacks and sentinels stay, and the board is the same, unplanted images included."""

    def computed() -> tuple[pd.DataFrame, list[str]]:
        table = board([DefenceModel(name="plain")], tmp_path, BRIEF, eps=0.05)
        return table.drop(columns=["seconds"]), [json.loads(key)["stage"] for _, _, key in trials(tmp_path / "planted")]

    first, known = computed()
    again, same = computed()
    assert same == known
    monkeypatch.setattr(work, "INSPECTION_VERSION", -1)
    renewed, more = computed()
    pd.testing.assert_frame_equal(first, again)
    pd.testing.assert_frame_equal(first, renewed)
    assert Counter(more) == Counter(known) + Counter(stage for stage in known if stage == INSPECT)
    assert {"apgd-ce", SENTINEL, INSPECT} <= set(known)


@pytest.mark.parametrize("where", ["baseline", "steered"])
def test_what_is_masked_on_one_side_is_flagged_there_and_in_the_headline(
    where: Literal["baseline", "steered"], tmp_path: Path
) -> None:
    """The comparison stands on both: a baseline that looks too robust hides a gain."""
    table = board([DefenceModel(name="quantised", where=where)], tmp_path, BRIEF, beta=0.8)
    marks = {str(row["method"]): flags(row["flags"]) & MASKING for _, row in table[table["status"] == "ok"].iterrows()}
    masked, healthy = ("untouched", "ct") if where == "baseline" else ("ct", "untouched")
    assert {"unit_test", "replay", "zero_gradient"} <= marks[masked]
    assert not marks[healthy]
    headline = table[table["status"].isin(HEADLINES.values())].iloc[0]
    chosen_masked = where == "baseline" or "0.8" in str(headline["chosen"])
    assert (headline["status"] == "untrusted") == chosen_masked
    assert (flags(headline["flags"]) & MASKING == marks[masked]) == chosen_masked


def test_a_gain_that_only_a_blind_attack_sees_is_smaller_in_the_headline_and_not_to_be_trusted(tmp_path: Path) -> None:
    """β = 0.8 hides its gradients; what fooled β = 1 is shown to it too, and what is left of the gain is doubted."""
    table = board([DefenceModel(name="quantised", where="steered")], tmp_path, BRIEF, beta=0.8)
    headline, steered = table[table["status"].isin(HEADLINES.values())].iloc[0], table[table["beta"] == 0.8].iloc[-1]
    (baseline,) = table[(table["status"] == "ok") & (table["method"] == "untouched")].to_dict("records")
    assert steered["robust_aa"] - baseline["robust_aa"] > 0.3
    assert steered["robust"] - baseline["robust"] < 0.2
    assert headline["robust"] <= steered["robust"]
    assert headline["status"] == "untrusted"
