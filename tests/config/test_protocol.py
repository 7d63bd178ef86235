"""How the paper's numbers were made: against AutoAttack used by hand on normalised images, and that it is set apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.commands import Command, Run, trials
from helpers.library import perturb
from torch import Tensor, nn

from harness.api.attack import Trials
from harness.api.records import BASELINE, Steering
from harness.attacks import autoattack
from harness.attacks.apgd_losses import CE
from harness.config.benchmark import parse_benchmark
from harness.curvature.steering import steer
from harness.datasets.digits import Digits
from harness.engine.images import digest
from harness.engine.verification import verify
from harness.errors import InvalidAdversary, LeaderboardError, SpecError
from harness.leaderboard import csv_file, outcomes
from harness.leaderboard.compare import between
from harness.leaderboard.regression import Board, check
from harness.models.demo import MEAN, STD, Demo
from harness.models.normalisation import Normalised
from harness.threats.lp import Linf
from harness.util.noise import key_of

ATTACK = {"stages": ["apgd-ce"], "iterations": 10}
EPS = 0.1


def asked(**changes: Any) -> dict[str, Any]:
    return {
        "name": "tiny",
        "models": [{"kind": "demo", "name": "digits_plain", "normalised": True}],
        "dataset": {"kind": "digits", "per_class": 2},
        "threat": {"kind": "Linf", "eps": EPS, "attack": ATTACK},
        "steering": {"beta": 0.8},
        "batch_size": 20,
        "protocol": "paper",
        "search": {"kind": "full"},
        "executor": {"kind": "inline"},
        "device": "cpu",
    } | changes


@pytest.fixture
def paper(run: Run) -> pd.DataFrame:
    """The board of that benchmark; its outcomes lie beside it."""
    ended = run(asked())
    assert ended.code == 0, ended.err
    return pd.read_csv("leaderboards/tiny.csv")


def test_the_attack_is_autoattacks_on_normalised_images(paper: pd.DataFrame) -> None:
    """The same attack by hand, with the same noise, one image at a time: it loses the same images."""
    network = Demo(name="digits_plain", normalised=True).load().network
    assert isinstance(network, Normalised)
    source = Digits().open()
    images = Digits(per_class=2).chosen(source)
    batch = source.read(images)
    x = (batch.x - MEAN[0]) / STD[0]
    found = trials(Path("runs"))
    for steering in (BASELINE, Steering(0.8, sites="modules")):
        tuned: nn.Module = network.network
        if not steering.is_baseline:
            tuned = steer(tuned, 0.8, sites="modules", example=x[:1])
        with torch.no_grad():
            right = tuned(x).argmax(1) == batch.y
        lost = 0
        for image, own in enumerate(right.tolist()):
            sha256 = digest(batch.x[image].numpy(), batch.y[image].tolist())
            kept = [
                one for one in found.values()
                if one.context["steering"] == steering.identity() and one.image == sha256
                and one.attempt["stage"] == "apgd-ce"
            ]  # fmt: skip
            assert len(kept) == own
            if own:
                key = key_of(0, sha256, "apgd-ce", -1, 0)
                fooled = loses(tuned, x[image : image + 1], batch.y[image : image + 1], key)
                assert kept[0].value == (not fooled)
                lost += fooled
        assert 0 < lost < right.sum()


def loses(network: nn.Module, x: Tensor, y: Tensor, key: int) -> bool:
    """Return whether APGD, alone with one image and this key, finds an adversarial image."""
    attack = autoattack.machine(
        "apgd-ce", Linf(eps=EPS, attack=ATTACK).attack, norm="Linf", eps=EPS, slots=1, shape=tuple(x.shape[1:]),
        classes=10, device="cpu",
    )  # fmt: skip
    attack.start(torch.arange(1), Trials(x, y, torch.zeros_like(y), torch.tensor([key]), torch.tensor([CE])))
    while not attack.finished.all():
        attack.step(network)
    with torch.no_grad():
        return bool((network(attack.found).argmax(1) != y).item())


def test_every_row_is_set_apart(paper: pd.DataFrame) -> None:
    assert set(paper["protocol"]) == {"paper"}
    assert all("not_comparable" in flags.split(";") for flags in paper["flags"])
    assert "in-sample" in set(paper["status"])
    assert "selected" not in set(paper["status"])
    assert (paper["steered"] < paper["sites"]).all()  # registered modules alone


@pytest.mark.usefixtures("paper")
def test_it_stands_beside_no_board_in_pixels(run: Run, command: Command) -> None:
    assert run(asked(name="pixel", protocol="pixel")).code == 0
    ended = command("compare", "leaderboards/tiny.csv", "leaderboards/pixel.csv")
    assert "protocol: paper against pixel: robust accuracies are not compared" in " ".join(ended.out.split())
    tiny, pixel = (csv_file.read(Path(f"leaderboards/{name}.csv")) for name in ("tiny", "pixel"))
    found = between(tiny, pixel).table()
    assert len(found)
    assert found["robust_pp"].isna().all()
    with pytest.raises(LeaderboardError, match=r"^protocol: .*pixel.*paper"):
        check(Board(tiny, pd.DataFrame()), Board(pixel, pd.DataFrame()))


def test_corruptions_are_made_before_the_normalisation_under_either_protocol(here: Path, run: Run) -> None:
    """So the untouched network scores the same; what differs is marked all the same."""
    from coloured_networks import coloured

    mean, std = [0.5, 0.4, 0.45], [0.25, 0.2, 0.22]
    x = torch.rand(20, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    np.savez(here / "images.npz", x=x.numpy(), y=Normalised(coloured(), mean, std)(x).argmax(1).numpy())
    model = {"kind": "checkpoint", "builder": "coloured_networks:coloured", "mean": mean, "std": std}
    threat = {"kind": "corruptions", "source": "generated", "corruptions": ["contrast"], "severities": [3]}
    data = {"kind": "arrays", "path": "images.npz"}
    boards = []
    for protocol in ("paper", "pixel"):
        ended = run(asked(models=[model], dataset=data, threat=threat, protocol=protocol, name=protocol))
        assert ended.code == 0, ended.err
        boards.append(csv_file.read(Path(f"leaderboards/{protocol}.csv")))
    paper, pixel = (board[board["beta"] == 1].iloc[-1] for board in boards)
    assert paper["clean"] == pixel["clean"] == 1
    assert 0 < paper["robust"] == pixel["robust"] < 1
    assert all("not_comparable" in flags for flags in boards[0]["flags"])
    assert not any("not_comparable" in flags for flags in boards[1]["flags"])
    assert set(boards[0]["steered"]) == {1}
    assert set(boards[1]["steered"]) == {2}


def test_normalised_perturbations_leave_the_ball_in_pixels_and_ours_cannot() -> None:
    """On a linear classifier: ε there is ε · std in pixels, but its box [0, 1] moves pixels much further."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).eval().requires_grad_(False)
    x = torch.rand(16, 3, 2, 2)
    whole = Normalised(network, [0.5, 0.4, 0.45], [0.25, 0.2, 0.22])
    y = whole(x).argmax(1)
    threat = Linf(eps=8 / 255, attack={"stages": ["apgd-ce"], "iterations": 5})
    inside = (x - whole.mean) / whole.std
    found = perturb("apgd-ce", threat.attack, network, inside, y, norm="Linf", eps=threat.eps, seed=0)
    in_pixels = found * whole.std + whole.mean
    distance = (in_pixels - x).abs().amax().item()
    assert distance > 4 * threat.eps
    with pytest.raises(InvalidAdversary, match=r"Linf distance 0\.\d+ where eps is 0\.0313725"):
        verify(threat, x, in_pixels)
    ours = perturb("apgd-ce", threat.attack, whole, x, y, norm="Linf", eps=threat.eps, seed=0)
    verify(threat, x, ours)
    assert (ours - x).abs().amax().item() <= threat.eps * (1 + 1e-5)


def test_the_normalised_demo_network_is_the_same_function() -> None:
    x = Digits(n=20).open().read(tuple(range(20))).x
    plain, normalised = (Demo(name="digits_plain", normalised=how).load().network for how in (False, True))
    torch.testing.assert_close(normalised(x), plain(x), rtol=1e-5, atol=1e-4)


@pytest.mark.usefixtures("here")
def test_what_the_protocol_implies() -> None:
    benchmark = parse_benchmark(asked())
    assert benchmark.steering.sites == "modules"
    assert benchmark.selection.kind == "none"
    assert benchmark.normalised
    pixel = parse_benchmark(asked(protocol="pixel"))
    assert (pixel.steering.sites, pixel.selection.kind, pixel.normalised) == ("all", "cross_validation", False)
    corrupted = parse_benchmark(asked(threat={"kind": "corruptions", "corruptions": ["fog"], "severities": [1]},
                                 dataset={"kind": "cifar10"}))  # fmt: skip
    assert not corrupted.normalised  # there is no ε


@pytest.mark.parametrize(
    ("changes", "key", "expected", "found"),
    [
        ({"steering": {"beta": 0.8, "sites": "all"}}, "steering.sites", "sites: modules", "found 'all'"),
        ({"steering": {"beta": 0.8, "family": "smooth"}}, "steering.family", "family: relu", "found 'smooth'"),
        ({"selection": {"kind": "holdout"}}, "selection.kind", "kind: none", "found 'holdout'"),
    ],
)
def test_what_it_does_not_go_with(changes: dict[str, Any], key: str, expected: str, found: str) -> None:
    with pytest.raises(SpecError) as error:
        parse_benchmark(asked(**changes))
    assert str(error.value).startswith(f"{key}: ")
    for piece in ("protocol: paper", expected, found, "leave it out", "protocol=pixel"):
        assert piece in str(error.value)


def test_a_model_without_a_normalisation_fails(run: Run) -> None:
    ended = run(asked(models=[{"kind": "demo", "name": "digits_plain"}]))
    assert ended.code == 2
    assert "protocol: paper attacks normalised images, but this model does not say" in ended.err + ended.out


def test_nan_is_never_scored_here_either() -> None:
    x = torch.zeros(2, 1, 2, 2)
    bad: Tensor = x.clone()
    bad[0, 0, 0, 0] = torch.nan
    with pytest.raises(InvalidAdversary, match="NaN"):
        verify(Linf(eps=0.1), x, bad, normalised=True)
    verify(Linf(eps=0.1), x, x + 5, normalised=True)


def test_the_first_of_each_class(paper: pd.DataFrame) -> None:
    source = Digits().open()
    labels = source.read(tuple(range(len(source)))).y.tolist()
    first = sorted(image for label in range(10) for image in [i for i, y in enumerate(labels) if y == label][:2])
    assert Digits(per_class=2).chosen(source) == tuple(first)
    assert set(paper["dataset"]) == {"digits[2 per class]"}
    assert set(paper["n"]) == {20}
    table = outcomes.read(Path("leaderboards/tiny.csv"))
    assert table is not None
    assert set(table["outcomes"].str.len()) == {20}
