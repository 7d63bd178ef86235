"""Results of trials: against closed forms, by a fresh look at every image, and the same whatever the company."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from helpers.networks import Wrong
from helpers.scored import Scored, attempts_of, bits, compute, results_of, score, task_of
from torch import Tensor, nn

from harness.api.attack import Attack, Network, Trials
from harness.api.dataset import Dataset, Source
from harness.api.model import Model, Scorable
from harness.api.records import BASELINE, Batch, Preprocessing, Steering, Target
from harness.api.threat import Threat
from harness.api.trial import CLEAN, INSPECT, REPLAY, TRAINING, Answer, Attempt, Cost, Result, Trial
from harness.api.work import Portion, Report, Task
from harness.datasets.digits import Digits
from harness.engine import evaluate as module
from harness.engine.evaluate import evaluate
from harness.engine.fingerprint import answers
from harness.engine.images import source
from harness.engine.session import model_session
from harness.errors import InvalidAdversary, ModelError
from harness.models.demo import Demo
from harness.models.loaded import Loaded
from harness.models.normalisation import Normalised
from harness.threats.lp import L1, L2, Linf, Lp
from harness.util.hashing import sha256_of_weights
from harness.util.noise import Noise

CLASSES, SIDE = 4, 6
PLAIN, DIGITS = Demo(name="digits_plain"), Digits()
BRIEF: dict[str, Any] = {
    "stages": ["apgd-ce", "apgd-t", "fab-t", "square"],
    "iterations": 10,
    "queries": 60,
    "targets": 3,
}
BALLS: list[tuple[type[Lp], float]] = [(Linf, 0.1), (L2, 0.5), (L1, 2.0)]


def clean_trials(images: Sequence[int], *steerings: Steering) -> list[Trial]:
    return [Trial(steering, image, Attempt(CLEAN)) for steering in steerings or (BASELINE,) for image in images]


# --- a linear network, whose robust accuracy has a closed form ---


class Affine(nn.Module):
    """Logits W·x + b with a ReLU that never acts, x ≥ 0 in pixel space: affine, and yet with something to steer."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.head = nn.Linear(SIDE * SIDE, CLASSES)
        with torch.no_grad():
            weight = torch.randn(CLASSES, SIDE * SIDE, generator=generator)
            self.head.weight.copy_(weight - weight.mean(1, keepdim=True))  # uniform grey is on every boundary
            self.head.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(x.flatten(1)))
        return logits


class AffineModel(Model):
    kind: ClassVar[str] = "affine"
    seed: int = 0

    @property
    def label(self) -> str:
        return "affine"

    def load(self, *, offline: bool = False) -> Scorable:
        network = Affine(self.seed).eval()
        return Loaded(network, sha256_of_weights(network))


class Middle(Source):
    """Images around ½, far enough from the box that it never binds, with the labels that a network gives them."""

    def __init__(self, network: nn.Module, n: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x = 0.4 + 0.2 * torch.rand(n, 1, SIDE, SIDE, generator=generator)
        with torch.no_grad():
            self.y = network(self.x).argmax(1)

    def __len__(self) -> int:
        return len(self.x)

    def read(self, indices: Sequence[int]) -> Batch:
        chosen = torch.tensor(indices)
        return Batch(self.x[chosen], self.y[chosen], chosen)


class MiddleData(Dataset):
    kind: ClassVar[str] = "middle"
    size: int = 40

    def open(self, *, offline: bool = False) -> Source:
        return Middle(Affine().eval(), self.size)


def exact_radius(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, order: str) -> Tensor:
    """The distance to the nearest boundary, min over classes of margin / dual norm of the difference of weights."""
    logits = x.flatten(1).double() @ weight.double().T + bias.double()
    radius = torch.full((len(x),), torch.inf, dtype=torch.float64)
    dual = {"Linf": 1, "L2": 2, "L1": torch.inf}[order]
    for k in range(CLASSES):
        margin = logits[torch.arange(len(x)), y] - logits[:, k]
        norm = torch.linalg.vector_norm((weight[y] - weight[k]).double(), dual, dim=1)
        radius = torch.where(y == k, radius, torch.minimum(radius, margin / norm))
    return radius


@pytest.mark.parametrize("beta", [1.0, 0.0])
@pytest.mark.parametrize(("cls", "eps"), [(Linf, 0.0045), (L2, 0.02), (L1, 0.1)])
def test_linear_network_has_its_exact_robust_accuracy(cls: type[Lp], eps: float, beta: float) -> None:
    """β = 1: affine where x ≥ 0. β = 0, c = 1: φ(x) = x/2, affine everywhere, so the radius is that of W/2."""
    attack = {"stages": ["apgd-ce", "apgd-t", "fab-t", "square"], "queries": 200, "iterations": 50}
    data = MiddleData()
    images = tuple(range(data.size))
    task = task_of(AffineModel(), data, cls.model_validate({"eps": eps, "attack": attack}), batch_size=64)
    scored = score(task, images, BASELINE if beta == 1.0 else Steering(beta, 1.0))
    batch = data.open().read(images)
    network = Affine()
    scale = 1.0 if beta == 1.0 else 0.5
    radius = exact_radius(batch.x, batch.y, scale * network.head.weight.detach(), network.head.bias.detach(), cls.norm)
    decided = (radius / eps - 1).abs() > 0.03  # attacks are not exact at the very boundary
    robust = np.array([image in scored.alive for image in images])
    assert all(scored.clean.values())
    assert 0.2 < (radius > eps).double().mean() < 0.8
    assert decided.sum() >= 30
    assert np.array_equal(robust[decided], (radius > eps)[decided].numpy())


# --- what a result says ---


@cache
def scored_digits(ball: int = 0, beta: float = 1.0, n: int = 40) -> Scored:
    return score(digits_task(ball), range(n), BASELINE if beta == 1 else Steering(beta))


def digits_task(ball: int = 0, **changes: Any) -> Task:
    cls, eps = BALLS[ball]
    return task_of(PLAIN, DIGITS, cls.model_validate({"eps": eps, "attack": BRIEF}), **{"batch_size": 16} | changes)


def judge(beta: float) -> nn.Module:
    loaded = PLAIN.load()
    x = DIGITS.open().read((0,)).x
    return loaded.steered(BASELINE if beta == 1 else Steering(beta), x)


@pytest.mark.parametrize("beta", [1.0, 0.7])
def test_clean_trials_tell_margin_and_ranking_of_the_plain_network(beta: float) -> None:
    scored = scored_digits(0, beta)
    batch = DIGITS.open().read(tuple(range(40)))
    with torch.no_grad():
        logits = judge(beta)(batch.x)
    for trial, result in scored.results.items():
        if trial.attempt.stage != CLEAN:
            continue
        own, y = logits[trial.image].tolist(), int(batch.y[trial.image])
        others = sorted((k for k in range(10) if k != y), key=lambda k: -own[k])
        assert result.answer.value == float(own[y] > own[others[0]])
        assert result.answer.margin == pytest.approx(own[y] - own[others[0]], abs=1e-4)
        assert result.answer.ranking == tuple(others)
        assert result.cost[:2] == (1, 0)
        assert result.adversarial is None


@pytest.mark.parametrize("ball", [0, 1, 2], ids=["Linf", "L2", "L1"])
@pytest.mark.parametrize("beta", [1.0, 0.7])
def test_a_fooled_images_adversarial_image_is_in_the_ball_and_misclassified(ball: int, beta: float) -> None:
    scored, (cls, eps) = scored_digits(ball, beta), BALLS[ball]
    network, batch = judge(beta), DIGITS.open().read(tuple(range(40)))
    attacked = {t: r for t, r in scored.results.items() if t.attempt.stage != CLEAN}
    fooled = {trial: result for trial, result in attacked.items() if result.answer.value == 0}
    assert 0 < len(scored.lost) < 40
    assert len(fooled) < len(attacked)
    assert {result.answer.value for result in attacked.values()} == {0.0, 1.0}
    for trial, result in attacked.items():
        assert (result.adversarial is not None) == (trial in fooled)
        assert result.answer.ranking == ()
    for trial, result in fooled.items():
        image = result.adversarial
        assert image is not None
        assert (image.dtype, image.shape, image.device.type) == (torch.float32, (1, 8, 8), "cpu")
        assert 0 <= image.min() <= image.max() <= 1
        order = {"Linf": torch.inf, "L2": 2, "L1": 1}[cls.norm]
        assert torch.linalg.vector_norm((image - batch.x[trial.image]).flatten(), order) <= eps * (1 + 1e-4) + 1e-6
        assert network(image[None]).argmax(1) != batch.y[trial.image]
    assert {trial.image for trial in fooled} == scored.lost


@pytest.mark.parametrize("ball", [0, 1, 2], ids=["Linf", "L2", "L1"])
def test_a_trial_costs_its_own_steps(ball: int) -> None:
    """A survivor spends the whole budget, whatever the batch; a fooled image no more, and one pass to be judged."""
    for trial, result in scored_digits(ball).results.items():
        stage, forwards, backwards = trial.attempt.stage, result.cost.forwards, result.cost.backwards
        if stage == CLEAN:
            continue
        fooled = result.answer.value == 0
        most = digits_task(ball).threat.passes(stage, 10)
        assert most is not None
        assert {"square": 0, "fab-t": (forwards - fooled) // 2}.get(stage, forwards - fooled) == backwards
        if stage == "square":
            spent = BRIEF["queries"] + 1
        elif stage.startswith("apgd"):
            spent = BRIEF["iterations"] + 1
        else:
            spent = 2 * BRIEF["iterations"]
        assert 0 < forwards - fooled <= spent + 2  # L1's APGD begins three times
        if not fooled and stage.startswith("apgd") and ball < 2:
            assert forwards == spent
        assert result.cost.seconds > 0


def test_seconds_are_shared_by_passes_and_add_up() -> None:
    task = digits_task()
    started = time.perf_counter()
    reports = list[Report]()
    for some in evaluate(Portion(task, tuple(clean_trials(range(40))))):
        reports += some
        time.sleep(0.3)  # whoever takes the results is not on the bill
    took = time.perf_counter() - started - 0.3
    spent = sum((result.cost.seconds for result in results_of(reports).values()), 0.0)
    assert 0 < spent <= took


def test_results_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """They come while others are still to be computed, and each once."""
    monkeypatch.setattr(module, "REPORT_EVERY", 0.0)
    monkeypatch.setattr("harness.engine.stages.JUDGE_EVERY", 0.0)
    task = digits_task()
    left = [scored_digits().results[trial] for trial in clean_trials(range(40))]
    trials = tuple(attempts_of(task, left, "apgd-ce"))
    deliveries = [[result for report in some for result in report.results] for some in evaluate(Portion(task, trials))]
    assert len(deliveries) > 3
    assert max(map(len, deliveries)) < len(trials)
    assert sorted(result.trial for some in deliveries for result in some) == sorted(trials)
    expected = {trial: scored_digits().results[trial] for trial in trials}
    assert bits({result.trial: result for some in deliveries for result in some}) == bits(expected)


def test_a_report_is_of_one_steering_and_says_with_what_it_was_computed() -> None:
    steerings = (BASELINE, Steering(0.7), Steering(0.9))
    reports = compute(digits_task(), clean_trials(range(5), *steerings))
    assert {report.steering for report in reports} == set(steerings)
    for report in reports:
        assert {result.trial.steering for result in report.results} == {report.steering}
        assert torch.__version__.startswith(report.provenance["torch"])
        assert report.flags == ()


# --- the same bits, whatever the width, the order and the company ---


@pytest.mark.parametrize("ball", [0, 1, 2], ids=["Linf", "L2", "L1"])
@pytest.mark.parametrize(("beta", "batch_size"), [(1.0, 7), (0.7, 7), (0.7, 48), (0.7, None)])
def test_another_batch_size_changes_no_bit(ball: int, beta: float, batch_size: int | None) -> None:
    steering = BASELINE if beta == 1 else Steering(beta)
    assert bits(score(digits_task(ball, batch_size=batch_size), range(40), steering).results) == bits(
        scored_digits(ball, beta).results
    )


@pytest.mark.parametrize("ball", [0, 1, 2], ids=["Linf", "L2", "L1"])
def test_an_image_alone_has_the_bits_that_it_has_among_forty(ball: int) -> None:
    among = scored_digits(ball, 0.7).results
    for image in (0, 7, 23):
        alone = score(digits_task(ball), [image], Steering(0.7)).results
        assert bits(alone) == bits({trial: result for trial, result in among.items() if trial.image == image})


@pytest.mark.parametrize("ball", [0, 1, 2], ids=["Linf", "L2", "L1"])
def test_neither_order_nor_other_steerings_change_a_bit(ball: int) -> None:
    """All of a stage's trials of four β in one portion, shuffled, against each β alone."""
    betas = (1.0, 0.95, 0.7, 0.5)
    expected = {beta: scored_digits(ball, beta) for beta in betas}
    for stage in BRIEF["stages"]:
        own = {t: r for scored in expected.values() for t, r in scored.results.items() if t.attempt.stage == stage}
        trials = list(own)
        order = torch.randperm(len(trials), generator=torch.Generator().manual_seed(ball)).tolist()
        mixed = results_of(compute(digits_task(ball, batch_size=48), [trials[place] for place in order]))
        assert bits(mixed) == bits(own)


def test_another_seed_is_another_noise_and_an_attempt_its_own() -> None:
    """By L∞'s APGD, which starts at a random point: the adversarial images of two seeds differ."""
    task = digits_task()
    trials = [trial for trial in scored_digits().results if trial.attempt.stage == "apgd-ce"]
    seeds = [results_of(compute(replace(task, seed=seed), trials)) for seed in (0, 1)]
    differ = [
        not torch.equal(a.adversarial, b.adversarial)
        for a, b in zip(*(found.values() for found in map(by_trial, seeds)), strict=True)
        if a.adversarial is not None and b.adversarial is not None
    ]
    assert differ
    assert all(differ)
    again = [trial._replace(attempt=trial.attempt._replace(restart=1)) for trial in trials]
    restarted = results_of(compute(task, again))
    assert all(
        not torch.equal(seeds[0][a].adversarial, restarted[b].adversarial)  # type: ignore[arg-type]
        for a, b in zip(trials, again, strict=True)
        if seeds[0][a].adversarial is not None and restarted[b].adversarial is not None
    )


def test_all_steerings_see_the_same_noise_and_no_two_trials_else() -> None:
    """Common random numbers: a draw belongs to seed, image and attempt, not to β (nor to batch, order or worker)."""
    seen: dict[tuple[float, int, str], float] = {}

    class Recording(Darker):
        def perturb(self, stage: str, network: nn.Module, batch: Batch, noise: Noise) -> Tensor:
            drawn = noise.uniform((1,))[:, 0].tolist()
            seen.update({(betas[-1], image, stage): x for image, x in zip(batch.indices.tolist(), drawn, strict=True)})
            return batch.x

    betas: list[float] = []
    for beta in (1.0, 0.7):
        betas.append(beta)
        for stage in Darker.stages:
            trials = [Trial(BASELINE if beta == 1 else Steering(beta), image, Attempt(stage)) for image in range(12)]
            compute(task_of(PLAIN, DIGITS, Recording(), batch_size=5), trials)
    assert len(seen) == 48
    baseline = {key[1:]: x for key, x in seen.items() if key[0] == 1.0}
    assert baseline == {key[1:]: x for key, x in seen.items() if key[0] == 0.7}
    assert len(set(baseline.values())) == 24


def by_trial(results: dict[Trial, Result]) -> dict[Trial, Result]:
    return dict(sorted(results.items()))


# --- an attack is not trusted ---


class Cheating(Lp):
    """Returns whatever it is told to, in or out of the ball: by a function, or by a step machine."""

    kind: ClassVar[str] = "cheating"
    norm: ClassVar[Literal["Linf"]] = "Linf"
    how: str
    by_steps: bool = False

    @property
    def stages(self) -> tuple[str, ...]:
        return ("cheat",)

    def attempts(self, stage: str, ranking: Sequence[int]) -> tuple[Attempt, ...]:
        return (Attempt(stage),)

    def variant(self, attempt: Attempt) -> int:
        return 0

    def stage_identity(self, stage: str) -> dict[str, Any]:
        return {"stage": stage, "how": self.how}

    def attack_machine(  # type: ignore[override]
        self, stage: str, slots: int, shape: tuple[int, ...], classes: int, device: str
    ) -> Attack | None:
        return CheatingMachine(self, slots, shape) if self.by_steps else None

    def perturb(self, stage: str, network: nn.Module, batch: Batch, noise: Noise) -> Tensor:
        return self.made_of(batch.x)

    def made_of(self, x: Tensor) -> Tensor:
        x = x.clone()
        if self.how == "far":
            return (x + 0.2).clamp(0, 1)
        if self.how == "outside":
            return x - 0.05
        if self.how == "nan":
            x[0] = torch.nan
        if self.how == "shape":
            return x[:, :, :4]
        if self.how == "rounding":
            return (x + self.eps + 1e-7).clamp(0, 1)
        return x


class CheatingMachine(Attack):
    """Claims that every image fools the network, after one step."""

    forwards, backwards = 1, 0

    def __init__(self, threat: Cheating, slots: int, shape: tuple[int, ...]) -> None:
        self.threat = threat
        self.x = torch.zeros(slots, *shape)
        self.fooled, self.finished = torch.zeros(slots, dtype=torch.bool), torch.ones(slots, dtype=torch.bool)

    def start(self, slots: Tensor, trials: Trials) -> None:
        self.x[slots] = trials.x
        self.finished[slots], self.fooled[slots] = False, False

    def step(self, network: Network) -> None:
        network(self.x)
        self.fooled = ~self.finished
        self.finished = torch.ones_like(self.finished)
        self.found = self.threat.made_of(self.x)


def cheat(how: str, n: int, by_steps: bool) -> Scored:
    return score(task_of(PLAIN, DIGITS, Cheating(eps=0.1, how=how, by_steps=by_steps)), range(n))


@pytest.mark.parametrize("by_steps", [False, True])
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("far", r"Linf distance 0\.2 where eps is 0\.1"),
        ("outside", r"pixels in \[-0\.05, .*\], not \[0, 1\]"),
        ("nan", "NaN or infinite pixels"),
        ("shape", r"images of shape \[2, 1, 4, 8\] for \[2, 1, 8, 8\]"),
    ],
)
def test_invalid_adversaries_are_never_scored(how: str, message: str, by_steps: bool) -> None:
    with pytest.raises(InvalidAdversary, match=message) as caught:
        cheat(how, 2, by_steps)
    assert caught.value.flag == "invalid"


@pytest.mark.parametrize("by_steps", [False, True])
def test_an_image_that_fools_nobody_is_not_lost(by_steps: bool) -> None:
    """Whatever the attack claims, the harness asks the network."""
    scored = cheat("nothing", 3, by_steps)
    assert scored.alive == {image for image, value in scored.clean.items() if value}
    assert all(result.adversarial is None for result in scored.results.values())


@pytest.mark.parametrize("by_steps", [False, True])
def test_rounding_is_forgiven(by_steps: bool) -> None:
    cheat("rounding", 1, by_steps)


def test_what_an_attack_does_to_its_batch_is_not_believed() -> None:
    """It overwrites the clean images that it was given; the next trials see them as they were."""

    class Overwriting(Cheating):
        def perturb(self, stage: str, network: nn.Module, batch: Batch, noise: Noise) -> Tensor:
            batch.x.fill_(0.5)
            return batch.x

    threat = Overwriting(eps=0.1, how="overwrites")
    with pytest.raises(InvalidAdversary, match="Linf distance"):
        score(task_of(PLAIN, DIGITS, threat), range(3))
    x = source(DIGITS, Preprocessing(), False).read((0, 1, 2)).x
    assert not (x == 0.5).all()


# --- networks that cannot be scored, or not be trusted ---


class Odd(Model):
    """A network with one fault."""

    kind: ClassVar[str] = "odd"
    fault: str

    @property
    def label(self) -> str:
        return self.fault

    def load(self, *, offline: bool = False) -> Scorable:
        network = Demo(name="digits_plain").load().network
        wrapped = OddNetwork(network, self.fault).eval()
        if self.fault == "training":
            wrapped.train()
        return Loaded(wrapped, sha256_of_weights(wrapped))


FAULTS: dict[str, Callable[[Tensor], Any]] = {
    "nan": lambda logits: logits / 0 * 0,
    "probabilities": lambda logits: logits.softmax(1),
    "few": lambda logits: logits[:, :5],
    "shape": lambda logits: logits[None],
    "tuple": lambda logits: (logits, logits),
    "squeezed": lambda logits: logits.squeeze(0),
    "one": lambda logits: logits[:, :1],
    "classes": lambda logits: logits.argmax(1, keepdim=True).expand_as(logits),
    "company": lambda logits: logits - logits.mean(0),
    "randomized": lambda logits: logits + 0.01 * torch.randn_like(logits),
}


class OddNetwork(nn.Module):
    def __init__(self, network: nn.Module, fault: str) -> None:
        super().__init__()
        self.network, self.fault = network, fault

    def forward(self, x: Tensor) -> Any:
        logits = self.network(x)
        return FAULTS[self.fault](logits) if self.fault in FAULTS else logits


SHORT = {"stages": ["apgd-ce"], "iterations": 2}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("nan", "logits are NaN"),
        ("probabilities", "probabilities, not logits"),
        ("few", r"labels up to \d, but the network yields 5 logits"),
        ("shape", r"expected logits of shape \[\d+, classes\], found \[1, \d+, 10\]"),
        ("tuple", r"expected logits of shape \[\d+, classes\], found tuple"),
        ("squeezed", r"found \[10\]; it drops the dimension of the batch"),
        ("one", "one logit an image"),
        ("classes", "in floating point, found torch.int64"),
        ("training", "training mode"),
    ],
)
def test_networks_that_cannot_be_scored(fault: str, message: str) -> None:
    threat = Linf.model_validate({"eps": 0.1, "attack": SHORT})
    with pytest.raises(ModelError, match=message):
        score(task_of(Odd(fault=fault), DIGITS, threat), range(20))


def test_a_randomised_network_is_flagged_and_an_honest_one_is_not() -> None:
    threat = Linf.model_validate({"eps": 0.1, "attack": SHORT})
    for fault, flags in (("randomized", {"randomized"}), ("none", set())):
        scored = score(task_of(Odd(fault=fault), DIGITS, threat), range(20), inspected=True)
        assert scored.flags == flags


def test_flags_are_raised_by_the_inspection_of_the_steering_that_they_are_about() -> None:
    threat = Linf.model_validate({"eps": 0.1, "attack": SHORT})

    class Masked(Loaded):
        def steered(self, steering: Steering, example: Tensor | None = None) -> nn.Module:
            return OddNetwork(self.network, "none" if steering.is_baseline else "randomized")

    class MaskedModel(Odd):
        kind: ClassVar[str] = "masked"

        def load(self, *, offline: bool = False) -> Scorable:
            network = PLAIN.load().network
            return Masked(network, sha256_of_weights(network))

    steerings = (Steering(0.7), BASELINE)
    trials = [Trial(steering, image, Attempt(INSPECT)) for steering in steerings for image in range(10)]
    reports = compute(task_of(MaskedModel(fault="none"), DIGITS, threat), trials)
    assert {report.steering.beta: report.flags for report in reports} == {0.7: ("randomized",), 1.0: ()}
    for result in results_of(reports).values():
        assert result.answer.value == 1
        assert result.cost.forwards > 0


def test_a_network_that_looks_at_its_company_is_flagged_where_it_does() -> None:
    """Steered, its answers depend on the batch's mean; the baseline's do not."""

    class Together(Loaded):
        def steered(self, steering: Steering, example: Tensor | None = None) -> nn.Module:
            return OddNetwork(self.network, "none" if steering.is_baseline else "company")

    class TogetherModel(Odd):
        kind: ClassVar[str] = "together"

        def load(self, *, offline: bool = False) -> Scorable:
            network = PLAIN.load().network
            return Together(network, sha256_of_weights(network))

    task = task_of(TogetherModel(fault="none"), DIGITS, Linf.model_validate({"eps": 0.1, "attack": SHORT}))
    reports = compute(task, clean_trials(range(10), Steering(0.7), BASELINE))
    assert {report.steering.beta: report.flags for report in reports} == {0.7: ("batch_dependent",), 1.0: ()}


def test_few_classes_are_flagged_and_the_targets_fitted() -> None:
    threat = Linf.model_validate({"eps": 0.02, "attack": "standard"})
    task = task_of(AffineModel(), MiddleData(), threat)
    clean = compute(task, clean_trials(range(3)))
    flags = {flag for report in compute(task, [t._replace(attempt=Attempt(INSPECT)) for t in clean_trials(range(3))])
             for flag in report.flags}  # fmt: skip
    assert "few_classes" in flags
    for result in results_of(clean).values():
        assert len(result.answer.ranking) == CLASSES - 1
        assert len(task.threat.attempts("apgd-t", result.answer.ranking)) == CLASSES - 1


def test_weights_that_have_changed_since_the_run_began_are_refused() -> None:
    task = replace(digits_task(), weights_sha256="0" * 64)
    with pytest.raises(ModelError, match="weights changed while the benchmark ran"):
        compute(task, clean_trials([0]))


# --- replay ---


def test_a_replay_asks_the_judge_about_each_candidate() -> None:
    """Images that fooled the baseline, shown to β = 0.5, and by hand; verified once more."""
    fooled: dict[int, list[Tensor]] = {}
    for trial, result in scored_digits().results.items():
        if result.adversarial is not None:
            fooled.setdefault(trial.image, []).append(result.adversarial)
    steering, network = Steering(0.5), judge(0.5)
    shown = {Trial(steering, image, Attempt(REPLAY, of="x")): torch.stack(found) for image, found in fooled.items()}
    results = results_of(compute(digits_task(), shown, shown))
    y = DIGITS.open().read(tuple(range(40))).y
    for trial, images in shown.items():
        survives = bool((network(images).argmax(1) == y[trial.image]).all())
        assert results[trial].answer.value == float(survives)
        assert results[trial].cost[:2] == (len(images), 0)
    assert {result.answer.value for result in results.values()} == {0.0, 1.0}
    first = next(iter(shown))
    with pytest.raises(InvalidAdversary, match="Linf distance"):
        compute(digits_task(), [first], {first: (shown[first] + 0.3).clamp(0, 1)})


# --- threats of kind "mean", graded answers, other methods, training images ---


class Darker(Threat):
    """As a third party writes it: every pixel darker, in two stages, and a note of how many images came together."""

    kind: ClassVar[str] = "darker"
    reduction: ClassVar[Literal["worst", "mean"]] = "mean"
    stages: ClassVar[tuple[str, ...]] = ("darker-1", "darker-2")

    def perturb(self, stage: str, network: nn.Module, batch: Batch, noise: Noise) -> Tensor:
        strength = 0.45 * int(stage[-1]) + 0.09 * noise.uniform((1, 1, 1))
        return batch.x * (1 - strength)


@pytest.mark.parametrize("batch_size", [5, 16, None])
def test_threats_of_kind_mean_run_as_trials(batch_size: int | None) -> None:
    """By hand: each image alone, with the noise of its own trial."""
    task = task_of(PLAIN, DIGITS, Darker(), batch_size=batch_size)
    assert task.attacks == ()
    for stage in Darker.stages:
        trials = [Trial(Steering(0.7), image, Attempt(stage)) for image in range(40)]
        results = results_of(compute(task, trials))
        assert bits(results) == bits(results_of(compute(task, trials[::-1])))
        assert {result.answer.value for result in results.values()} == {0.0, 1.0}
        for trial in trials[:8]:
            assert bits(results_of(compute(task, [trial]))) == bits({trial: results[trial]})
        assert all(result.adversarial is None for result in results.values())
        assert all(result.cost[:2] == (1, 0) for result in results.values())
    weakest = results_of(compute(task, [Trial(BASELINE, image, Attempt("darker-1")) for image in range(40)]))
    batch = DIGITS.open().read(tuple(range(40)))
    bounds = [(judge(1.0)(batch.x * (1 - s)).argmax(1) == batch.y).tolist() for s in np.linspace(0.45, 0.54, 41)]
    for trial, result in weakest.items():  # the noise is between the bounds
        assert result.answer.value in {float(column[trial.image]) for column in bounds}


class GradedData(Dataset):
    """Digits with two attributes: its pixels sum to more than 18, and to more than 20."""

    kind: ClassVar[str] = "graded_digits"

    @property
    def target(self) -> Target:
        return "attributes"

    def open(self, *, offline: bool = False) -> Source:
        return GradedSource()


class GradedSource(Source):
    def __len__(self) -> int:
        return 40

    def read(self, indices: Sequence[int]) -> Batch:
        batch = DIGITS.open().read(tuple(indices))
        total = batch.x.flatten(1).sum(1)
        return Batch(batch.x, torch.stack([total > 18, total > 20], 1).long(), batch.indices)


class Summing(nn.Module):
    """Is right about sums above 18 and 19."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        total = self.relu(x.flatten(1)).sum(1)
        return torch.stack([total - 18, total - 19], 1)


class SummingModel(Odd):
    kind: ClassVar[str] = "summing"

    def load(self, *, offline: bool = False) -> Scorable:
        network = Summing().eval()
        return Loaded(network, sha256_of_weights(network))


def test_graded_answers_are_scored_by_their_share() -> None:
    """Clean: 1, or ½ where the sum lies between 19 and 20; darker: as the sums say."""
    task = task_of(SummingModel(fault="none"), GradedData(), Darker())
    sums = DIGITS.open().read(tuple(range(40))).x.flatten(1).sum(1)
    clean = results_of(compute(task, clean_trials(range(40))))
    for trial, result in clean.items():
        total = float(sums[trial.image])
        assert result.answer.value == (0.5 if 19 < total <= 20 else 1.0)
        assert np.isnan(result.answer.margin)
        assert result.answer.ranking == ()
    darker = results_of(compute(task, [trial._replace(attempt=Attempt("darker-2")) for trial in clean]))
    for trial, result in darker.items():  # at least 0.9 darker: no sum is above 18 any more
        truth = [sums[trial.image] > 18, sums[trial.image] > 20]
        assert result.answer.value == sum(not above for above in truth) / 2


@dataclass(frozen=True)
class Adapted(Loaded):
    """With another method than steering, and training images."""

    seen: ClassVar[list[str]] = []

    @property
    def training(self) -> Any:
        from harness.api.dataset import Data

        return Data({3: "a", 5: "b", 9: "c"}, np.zeros(3), frozenset())

    def steered(self, steering: Steering, example: Tensor | None = None) -> nn.Module:
        self.seen.append(steering.method)
        return nn.Sequential(self.network, Negative()) if steering.method else super().steered(steering, example)

    def training_scores(self, steering: Steering) -> np.ndarray:
        return np.array([0.25, 0.5, 1.0]) * (0.5 if steering.method else 1)

    def fitted(self, steering: Steering) -> dict[str, str]:
        return {"scikit_learn": "1"} if steering.method else {}


class Negative(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return -x


class AdaptedModel(Odd):
    kind: ClassVar[str] = "adapted"

    @property
    def training(self) -> Dataset:
        return DIGITS

    def load(self, *, offline: bool = False) -> Scorable:
        network = PLAIN.load().network
        return Adapted(network, sha256_of_weights(network))


def test_another_method_is_scored_like_a_steering() -> None:
    task = task_of(AdaptedModel(fault="none"), DIGITS, Linf.model_validate({"eps": 0.1, "attack": SHORT}))
    method = BASELINE._replace(method="negative")
    reports = compute(task, clean_trials(range(20), BASELINE, method))
    clean = {(r.trial.steering.method, r.trial.image): r.answer.value for r in results_of(reports).values()}
    assert {image for (name, image), value in clean.items() if name == "" and value} != set()
    assert not any(value for (name, _), value in clean.items() if name == "negative")
    fitted = {report.steering.method: report.provenance.get("scikit_learn") for report in reports}
    assert fitted == {"": None, "negative": "1"}


def test_training_images_have_the_scores_of_their_cross_validation() -> None:
    task = task_of(AdaptedModel(fault="none"), DIGITS, Linf.model_validate({"eps": 0.1, "attack": SHORT}))
    trials = [Trial(steering, image, Attempt(TRAINING, of="x"))
              for steering in (BASELINE, BASELINE._replace(method="negative")) for image in (9, 3, 5)]  # fmt: skip
    found = results_of(compute(task, trials))
    assert [found[trial].answer.value for trial in trials] == [1.0, 0.25, 0.5, 0.5, 0.125, 0.25]


# --- protocol: paper ---


def test_under_the_papers_protocol_everything_is_in_the_networks_own_space() -> None:
    """ε and the box are those of normalised images; the judge is the network inside."""
    model = Demo(name="digits_plain", normalised=True)
    network = model.load().network
    assert isinstance(network, Normalised)
    task = task_of(model, DIGITS, Linf.model_validate({"eps": 0.1, "attack": BRIEF}), normalised=True)
    scored = score(task, range(20))
    batch = DIGITS.open().read(tuple(range(20)))
    x = network.normalise(batch.x)
    assert [scored.clean[image] for image in range(20)] == (network(batch.x).argmax(1) == batch.y).float().tolist()
    images = {trial: r.adversarial for trial, r in scored.results.items() if r.adversarial is not None}
    assert images
    for trial, image in images.items():
        assert image is not None
        assert network.network(image[None]).argmax(1) != batch.y[trial.image]
        assert (image - x[trial.image].clamp(0, 1)).abs().max() <= 0.1 + 1e-5 or x[trial.image].min() < 0
    flags = {f for r in compute(task, [Trial(BASELINE, 0, Attempt(INSPECT))]) for f in r.flags}
    assert flags == set()


# --- half precision ---


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("beta", [1.0, 0.7])
def test_attacks_in_half_precision_are_judged_in_float32(precision: str, beta: float) -> None:
    task = digits_task(precision=precision)
    scored = score(task, range(20), BASELINE if beta == 1 else Steering(beta))
    network, batch = judge(beta), DIGITS.open().read(tuple(range(20)))
    attacked = [result for trial, result in scored.results.items() if trial.attempt.stage != CLEAN]
    assert any(result.answer.value == 0 for result in attacked)
    for result in attacked:
        if result.adversarial is not None:
            assert network(result.adversarial[None]).argmax(1) != batch.y[result.trial.image]


def test_a_network_that_is_wrong_only_under_attack_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """In half precision every answer is wrong, so every attack ends at once; in so small a ball no image really is."""
    model_session.cache_clear()
    monkeypatch.setattr("harness.engine.acceleration.with_low_weights", lambda network, precision: network)
    monkeypatch.setattr("harness.engine.acceleration.half_precision", lambda network, precision: Wrong(network))
    task = task_of(PLAIN, DIGITS, Linf.model_validate({"eps": 0.004, "attack": BRIEF}), precision="bfloat16")
    scored = score(task, range(20))
    fooled_at_once = [r for t, r in scored.results.items() if t.attempt.stage == "apgd-ce" and r.cost.backwards == 1]
    assert len(fooled_at_once) > 10
    assert scored.alive == {image for image, value in scored.clean.items() if value}
    model_session.cache_clear()


def test_what_a_batch_may_be_is_asked_of_each_task() -> None:
    """Another benchmark in the same process may ask for narrower batches."""
    widths: list[int] = []

    class Watched(OddNetwork):
        def forward(self, x: Tensor) -> Any:
            widths.append(len(x))
            return super().forward(x)

    class WatchedModel(Odd):
        kind: ClassVar[str] = "watched"

        def load(self, *, offline: bool = False) -> Scorable:
            network = Watched(PLAIN.load().network, "none").eval()
            return Loaded(network, sha256_of_weights(network))

    threat = Linf.model_validate({"eps": 0.1, "attack": SHORT})
    for size in (64, 16):
        task = task_of(WatchedModel(fault="none"), DIGITS, threat, batch_size=size)
        score(task, range(100))
        widths.clear()
        score(task, range(100))
        assert 16 <= max(widths) <= size


class FewClasses(nn.Module):
    """The affine network cut to its first logits."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.network, self.classes = Affine(), classes

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits[:, : self.classes]


class FewClassesModel(Model):
    kind: ClassVar[str] = "few_classes"
    classes: int

    @property
    def label(self) -> str:
        return f"{self.classes} classes"

    def load(self, *, offline: bool = False) -> Scorable:
        network = FewClasses(self.classes).eval()
        return Loaded(network, sha256_of_weights(network))


class FewClassesData(MiddleData):
    kind: ClassVar[str] = "few_classes_data"
    classes: int

    def open(self, *, offline: bool = False) -> Source:
        return Middle(FewClasses(self.classes).eval(), self.size)


@pytest.mark.parametrize(
    ("classes", "stages"), [(2, {"fab-t", "square", "apgd-ce"}), (3, {"fab-t", "square", "apgd-ce"})]
)
def test_attacks_that_need_more_classes_are_left_out_and_the_row_is_flagged(classes: int, stages: set[str]) -> None:
    attack = {"stages": ["apgd-ce", "apgd-t", "fab-t", "square"], "iterations": 4, "queries": 20}
    threat = Linf.model_validate({"eps": 0.001, "attack": attack})
    task = task_of(FewClassesModel(classes=classes), FewClassesData(classes=classes), threat)
    scored = score(task, range(8), inspected=True)
    assert "few_classes" in scored.flags
    assert {trial.attempt.stage for trial in scored.results} - {CLEAN, INSPECT} == stages


def test_an_operation_without_a_deterministic_kernel_flags_what_follows_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that is repeated as a CUDA graph warns no more."""

    def stage(computation: Any) -> Any:
        for number, trial in enumerate(computation.portion.trials):
            if not number:
                warnings.warn("put_ does not have a deterministic implementation", stacklevel=2)
            yield [Result(trial, Answer(1.0), Cost(1))]

    monkeypatch.setattr(module, "run", stage)
    other = BASELINE._replace(beta=0.5)
    reports = compute(task_of(PLAIN, DIGITS, Linf(eps=0.1)), clean_trials([0], BASELINE, other))
    assert [report.flags for report in reports] == [("nondeterministic",)] * 2


# --- the network is the one that was prepared ---


@pytest.mark.parametrize(("factor", "is_the_same"), [(1.0, True), (-1.0, False)])
def test_a_network_that_answers_otherwise_than_where_the_run_was_started_is_refused(
    factor: float, is_the_same: bool
) -> None:
    model_session.cache_clear()
    task = task_of(Demo(name="digits_plain"), Digits(n=2), Linf(eps=0.1))
    known = answers(model_session(task.model, "cpu", True).loaded.network, (1, 8, 8))
    told = tuple(tuple(factor * number for number in row) for row in known)
    portion = Portion(replace(task, answers=told), tuple(clean_trials([0, 1], BASELINE)))
    if is_the_same:
        assert sum(len(report.results) for reports in evaluate(portion) for report in reports) == 2
    else:
        with pytest.raises(ModelError, match=r"answers otherwise in a worker than where the run was started"):
            list(evaluate(portion))


def test_a_network_of_other_code_than_where_the_run_was_started_is_refused() -> None:
    task = task_of(Demo(name="digits_plain"), Digits(n=2), Linf(eps=0.1))
    portion = Portion(replace(task, network="edited"), tuple(clean_trials([0], BASELINE)))
    with pytest.raises(ModelError, match=r"its code, or what it holds besides its weights, is not what it was when"):
        list(evaluate(portion))


def test_a_threat_of_other_code_than_where_the_run_was_started_is_refused() -> None:
    task = task_of(Demo(name="digits_plain"), Digits(n=2), Linf(eps=0.1))
    portion = Portion(replace(task, code="edited"), tuple(clean_trials([0], BASELINE)))
    with pytest.raises(ModelError, match=r"the code of the threat Linf changed while the benchmark ran"):
        list(evaluate(portion))
