"""``ct-harness doctor``: what is there is called ready, and each planted fault is found, named and given a remedy."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from helpers import tiny
from helpers.commands import Command
from helpers.library import perturb
from torch import Tensor, nn

from harness import pipeline
from harness.analysis.task_types import TASK_TYPES
from harness.api.records import Batch
from harness.api.threat import Passes, Threat
from harness.attacks.autoattack import VERSIONS, Custom, passes
from harness.checks import cost, doctor, model_checks
from harness.checks.cost import Costs, available_memory, memory, process_memory, seconds, trials
from harness.checks.findings import Finding
from harness.config.benchmark import Benchmark, parse_benchmark
from harness.engine.verification import logits
from harness.errors import DataMissing
from harness.executors.local import Local
from harness.leaderboard import board_files
from harness.threats.lp import Linf
from harness.util.noise import Noise

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are checked in this process, where tests can plant faults."""
    monkeypatch.setattr(Local, "in_process", True)


def findings(benchmark: Benchmark | dict[str, Any], runs: str = "runs", out: str = "board.csv") -> list[Finding]:
    if not isinstance(benchmark, Benchmark):
        benchmark = parse_benchmark({"name": "tiny"} | benchmark)
    return list(doctor.doctor(benchmark, runs=Path(runs), out=[*board_files.paths_of(Path(out)).values()]))


def checkpoint(builder: str) -> dict[str, Any]:
    return {"kind": "checkpoint", "builder": builder}


def faults(found: list[Finding]) -> dict[str, Finding]:
    """Return the warnings and problems by check; each must have a remedy."""
    result = {finding.check: finding for finding in found if finding.level != "ok"}
    assert all(finding.remedy for finding in result.values())
    return result


# --- all is well ---


def test_the_digits_are_ready_and_nothing_is_written(here: Path, command: Command) -> None:
    before = sorted(here.rglob("*"))
    ended = command("doctor", str(BENCHMARKS / "digits_linf.yaml"), "--set", "batch_size=50")
    assert ended.code == 0, ended.out
    assert sorted(here.rglob("*")) == before
    checks = Counter(re.findall(r"^✓ ok +(\w+) ", ended.out, re.M))
    assert checks == {"device": 1, "data": 1, "weights": 2, "clean": 2, "steering": 2, "attack": 2, "folder": 2,
                      "disk": 1, "memory": 1, "duration": 1}  # fmt: skip
    assert re.search(r"digits\[:100\]: 100 images of 1×8×8; .*labels 0 … 9", ended.out)
    assert "digits_plain: 3 of 3 activations" in ended.out
    assert re.search(
        r"at most about \d+ min: [\d,]+ trials a second a worker, in batches of \d+.*\(an estimate from a few images\)",
        ended.out,
    )
    assert ended.out.splitlines()[-1].startswith("This benchmark is ready to run (0 problems, 0 warnings).")


def test_a_threat_of_a_third_party(here: Path) -> None:
    found = findings(tiny.mapping(threat={"kind": "dim"}))
    assert not faults(found)
    assert re.search("not known .*dim", found[-1].text)


# --- planted faults ---


def test_a_bad_file_is_the_one_finding(here: Path, command: Command) -> None:
    (here / "bad.yaml").write_text("models: []")
    ended = command("doctor", "bad.yaml")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("error: bad.yaml: ")


def test_a_model_that_is_not_there_does_not_hide_the_others(here: Path) -> None:
    models = [
        checkpoint("tiny_networks:mixed") | {"weights": "gone.pt", "name": "gone"},
        checkpoint("tiny_networks:mixed"),
    ]
    found = findings(tiny.mapping(models=models))
    (fault,) = faults(found).values()
    assert (fault.check, fault.subject, fault.level) == ("weights", "gone", "problem")
    assert fault.text.startswith("weights: ")
    assert str(here / "gone.pt") in fault.text
    assert "give a path" in fault.remedy
    assert [finding.check for finding in found if finding.subject == "gone"] == ["weights"]
    assert [finding.check for finding in found if finding.subject == "mixed"] == [
        "weights", "clean", "steering", "attack",
    ]  # fmt: skip


def test_a_web_page_in_place_of_a_checkpoint(here: Path) -> None:
    file = here / "models" / "cifar10" / "Linf" / "Standard.pt"
    file.parent.mkdir(parents=True)
    file.write_text("<!DOCTYPE html><html>quota exceeded</html>")
    fault = faults(findings(tiny.mapping(models=[{"kind": "robustbench", "name": "Standard"}])))["weights"]
    assert fault.level == "problem"
    assert fault.text.startswith(str(file))
    assert "web page" in fault.text
    assert "delete it" in fault.remedy


def test_data_that_are_not_there_leave_the_weights_to_be_looked_at(here: Path) -> None:
    (here / "images.npz").unlink()
    found = findings(tiny.mapping())
    fault = faults(found)["data"]
    assert fault.level == "problem"
    assert fault.text.startswith("dataset.path: ")
    assert str(here / "images.npz") in fault.text
    assert "numpy.savez" in fault.remedy
    assert [finding.check for finding in found if finding.subject == "mixed"] == ["weights"]
    assert not {"disk", "memory", "duration"} & {finding.check for finding in found}


def test_images_of_the_same_pixels_are_told_there_and_on_the_board(here: Path) -> None:
    x, y = tiny.images()
    x[2:6] = x[1]
    np.savez(here / "images.npz", x=x, y=y)
    fault = faults(findings(tiny.mapping()))["data"]
    assert fault.level == "warning"
    assert f"but only {len(x) - 4} are different" in fault.text
    board = pipeline.run(parse_benchmark({"name": "tiny"} | tiny.mapping(threat={"kind": "clean"})))
    assert all("repeated" in flags.split(";") for flags in board["flags"])


def test_more_images_than_there_are(here: Path) -> None:
    data = {"kind": "arrays", "path": "images.npz", "n": 25}
    assert faults(findings(tiny.mapping(dataset=data)))["data"].remedy == "lower n"


@pytest.mark.usefixtures("here")
def test_more_folds_than_images() -> None:
    fault = faults(findings(tiny.mapping(selection={"kind": "cross_validation", "folds": 25})))["data"]
    assert fault.text == "selection.folds: 25 folds of 24 images"
    assert "fewer folds" in fault.remedy


@pytest.mark.usefixtures("here")
def test_images_outside_the_box() -> None:
    assert "[0, 1]" in faults(findings(tiny.mapping(dataset={"kind": "normalised"})))["data"].text


PLANTED = [
    ("tiny_networks:smooth", "steering", "nothing to steer"),
    ("planted_networks:untrained", "weights", "others each time that it is loaded"),
    ("planted_networks:trains_to_nothing", "weights", r"train\(\) of its network returns nothing"),
    ("tiny_networks:nan", "clean", "NaN or infinite"),
    ("tiny_networks:probabilities", "clean", "probabilities, not logits"),
    ("tiny_networks:narrow", "clean", "2 logits"),
    ("planted_networks:shuffled", "clean", r"^0 of 24 images .*above chance \(1 in 4\)"),
    ("planted_networks:detached", "attack", "β = 0.5: .*gradient is zero"),
    ("planted_networks:nan_gradient", "attack", "β = 0.5: .*gradient is NaN or infinite"),
]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("builder", "check", "text"), PLANTED)
def test_a_network_that_cannot_be_scored(builder: str, check: str, text: str) -> None:
    fault = faults(findings(tiny.mapping(models=[checkpoint(builder)])))[check]
    assert (fault.level, fault.subject) == ("problem", builder.partition(":")[2])
    assert re.search(text, fault.text)


def test_only_a_part_is_steered() -> None:
    changes = {"steering": {"beta": [0.9], "sites": "modules"}, "models": [{"kind": "demo", "name": "digits_plain"}]}
    found = findings(digits(**changes))
    fault = faults(found)["steering"]
    assert (fault.level, fault.remedy) == ("warning", "set steering.sites: all")
    assert re.search("^2 of 3 activations .*relu ×3", fault.text)


def test_under_the_papers_protocol_a_part_is_all_there_is_to_steer() -> None:
    changes = {"protocol": "paper", "models": [{"kind": "demo", "name": "digits_plain", "normalised": True}]}
    (found,) = (finding for finding in findings(digits(**changes)) if finding.check == "steering")
    assert (found.level, found.remedy) == ("ok", "")
    assert re.search("^2 of 3 activations .*protocol: paper", found.text)


def digits(**changes: Any) -> dict[str, Any]:
    attack = {"stages": ["apgd-ce"], "iterations": 3}
    return {
        "models": [{"kind": "demo", "name": "digits_plain"}],
        "dataset": {"kind": "digits", "n": 40},
        "threat": {"kind": "Linf", "eps": 0.1, "attack": attack},
        "steering": {"beta": [0.9]},
        "executor": {"kind": "local", "workers": 1},
        "device": "cpu",
    } | changes


@pytest.mark.usefixtures("here")
def test_a_beta_at_which_nothing_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    def misled(net: nn.Module, x: Tensor) -> Tensor:  # asked of steered networks alone
        return logits(net, x).roll(1, 1)

    monkeypatch.setattr(model_checks, "logits", misled)
    fault = faults(findings(tiny.mapping(models=[checkpoint("tiny_networks:quadrants")])))["attack"]
    assert fault.level == "warning"
    assert "β = 0.5" in fault.text
    assert "steering.beta" in fault.remedy


@pytest.mark.parametrize(("beta", "words"), [(0.99, "leaves the network nearly as it is"), ("auto", "")])
def test_a_grid_that_lies_aside_is_told_with_one_to_try(here: Path, beta: float | str, words: str) -> None:
    found = faults(findings(digits(steering={"beta": beta})))
    assert set(found) == ({"grid"} if words else set())
    if words:
        assert (found["grid"].level, found["grid"].subject) == ("warning", "digits_plain")
        assert words in found["grid"].text
        assert re.match(r"try steering\.beta: \[0\.9[67]\d*, .*\], or auto", found["grid"].remedy)


def test_a_runs_folder_that_is_a_file(here: Path) -> None:
    (here / "runs").touch()
    fault = faults(findings(tiny.mapping()))["folder"]
    assert (fault.subject, fault.text) == ("runs", "runs/tiny cannot be written")
    assert "--runs" in fault.remedy


def test_a_board_that_is_a_folder(here: Path) -> None:
    (here / "board.csv").mkdir()
    fault = faults(findings(tiny.mapping()))["folder"]
    assert (fault.subject, fault.text) == ("out", "board.csv cannot be written")


@pytest.mark.usefixtures("here")
def test_a_board_whose_question_file_would_have_too_long_a_name() -> None:
    fault = faults(findings(tiny.mapping(), out="o" * 242 + ".csv"))["folder"]
    assert (fault.subject, fault.text) == ("out", "o" * 242 + ".question.yaml cannot be written")


@pytest.mark.usefixtures("here")
def test_a_disk_that_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 3 * 24 * 64 * 4  # steerings × images, all right × floats of 4 bytes
    usage = SimpleNamespace(free=needed)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    right = tiny.mapping(models=[checkpoint("tiny_networks:quadrants")])
    assert not faults(findings(right))
    usage.free = needed - 1
    assert faults(findings(right))["disk"].level == "problem"


def test_memory_that_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "process_memory", lambda _: 0)
    (found,) = (finding for finding in findings(digits(batch_size=32)) if finding.check == "memory")
    assert "for 1 workers, in batches of 32" in found.text
    known = costs(weights=100, working=10, width=32)
    monkeypatch.setattr(model_checks, "measure", lambda *_: known)
    monkeypatch.setattr(doctor, "available_memory", lambda _: memory(known, 20))
    fault = faults(findings(digits()))["memory"]
    assert (fault.level, fault.remedy) == ("problem", "set batch_size: 14")  # 240 of 80 % of 300
    monkeypatch.setattr(doctor, "available_memory", lambda _: memory(known, 32))
    assert faults(findings(digits()))["memory"].level == "warning"
    monkeypatch.setattr(doctor, "available_memory", lambda _: 100)
    assert "workers: 1" in faults(findings(digits()))["memory"].remedy
    monkeypatch.setattr(doctor, "available_memory", lambda _: None)
    assert not faults(findings(digits()))


@pytest.mark.parametrize(("gpus", "contexts"), [(1, 4), (2, 2), (4, 1)])
def test_each_worker_of_a_gpu_has_a_context_of_its_own(
    gpus: int, contexts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (79 * 10**9, 80 * 10**9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 4 * 10**8)
    benchmark = parse_benchmark({"name": "tiny"} | digits(executor={"kind": "local", "workers": 4}))
    model = model_checks.ModelCosts(costs(weights=10**8, working=10**6, width=300), 1.0, 3, 2)
    found = doctor._memory(benchmark, [model], "cuda")
    assert found.text.startswith(f"about {contexts * 1.0:.1f} GB for {contexts} workers, in batches of 300; 79.0 GB")


def test_a_context_is_what_is_in_use_and_not_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 3 * 10**9)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10 * 10**9 - 3_600_000_000, 10 * 10**9))
    assert process_memory("cuda:1") == 600_000_000
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10**9, 10 * 10**9))  # another process has 6 GB
    assert process_memory("cuda:1") == cost.CONTEXT


def test_on_a_cpu_no_gpu_is_asked_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", None)
    assert process_memory("cpu") == cost.WORKER
    available_memory("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there() -> None:
    fault = faults(findings(digits(device="cuda")))["device"]
    assert fault.level == "problem"
    assert fault.text == "device: cuda was asked for, but torch finds 0 GPUs here"
    assert "device: auto" in fault.remedy


class Foggy(Threat):
    """Corruptions whose file is there, or missing."""

    kind: ClassVar[str] = "foggy"
    reduction: ClassVar[Any] = "mean"
    stages: ClassVar[tuple[str, ...]] = ("fog-1", "fog-2")
    missing: bool = False

    def perturb(self, stage: str, network: nn.Module, batch: Batch, noise: Noise) -> Tensor:
        assert len(batch) == 2
        if self.missing:
            raise DataMissing("fog.npy: no such file; put it there")
        return batch.x / 2


def test_corruptions_that_are_missing_are_found() -> None:
    benchmark = parse_benchmark({"name": "tiny"} | digits())
    found = findings(benchmark.model_copy(update={"threat": Foggy()}))
    assert not faults(found)
    assert "at most about 1 min" in found[-1].text
    fault = faults(findings(benchmark.model_copy(update={"threat": Foggy(missing=True)})))["attack"]
    assert (fault.text, fault.remedy) == ("fog.npy: no such file", "put it there")


class Labelled(nn.Module):
    """Classifies by the first pixel: |10 x − k| is smallest for the class k."""

    def forward(self, x: Tensor) -> Tensor:
        off = 10 * x[:, 0, 0, :1] - torch.arange(10) + x.mean((1, 2, 3))[:, None] * 1e-3
        return -off.relu() - (-off).relu()


@pytest.mark.parametrize(("wrong", "level"), [(3, "ok"), (15, "warning")])
def test_a_model_of_the_zoo_is_held_against_its_published_accuracy(
    wrong: int, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.datasets.cifar import CIFAR10
    from harness.datasets.sources.in_memory import ArraySource
    from harness.models.loaded import Loaded
    from harness.models.robustbench import RobustBench

    y = np.arange(64) % 10
    x = np.full((64, 3, 32, 32), 0.5, np.float32)
    x[:, 0, 0, 0] = y / 10
    y[:wrong] = (y[:wrong] + 1) % 10
    monkeypatch.setattr(CIFAR10, "open", lambda self, *, offline: ArraySource(x, y))
    monkeypatch.setattr(RobustBench, "load", lambda self, *, offline: Loaded(Labelled().eval(), "0" * 64))
    changes = {"models": [{"kind": "robustbench", "name": "Standard"}], "dataset": {"kind": "cifar10"}}
    found = findings(digits(**changes))
    (clean,) = [finding for finding in found if finding.check == "clean"]
    assert (clean.level, clean.text.startswith(f"{64 - wrong} of 64 images")) == (level, True)
    assert "published: 94.78 %" in clean.text


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_benchmark_is_answered_truly(path: Path, here: Path, command: Command) -> None:
    ended = command("doctor", str(path))
    assert ended.code == (2 if "✗ problem" in ended.out or ended.err.startswith("error: ") else 0)
    missing = re.findall(r": (/\S+): no such file", ended.out)
    assert not [name for name in missing if Path(name).exists()]
    if path.stem.startswith(("cifar10_l", "cifar100_l")):
        models = path.read_text().count("- {kind: robustbench")
        assert len(re.findall(r"✗ problem weights .*: no such file", ended.out)) == models
        assert len(re.findall(r"✗ problem data .*: no such file", ended.out)) == 1
    assert "Traceback" not in ended.out + ended.err


# --- what it will take ---


def costs(**changes: Any) -> Costs:
    usual: dict[str, Any] = {
        "width": 64,
        "forward": 1.0,
        "gradient": 100.0,
        "attacks": {},
        "own_step": 1e4,
        "stage": 0.0,
        "working": 0,
        "kept": 1,
        "image": 256,
        "weights": 0,
    }
    return Costs(**(usual | {"classes": 10} | changes))


class Counting(nn.Module):
    """Counts its passes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 5)
        self.passed: Counter[str] = Counter()

    def forward(self, x: Tensor) -> Tensor:
        self.passed["gradients" if torch.is_grad_enabled() and x.requires_grad else "forwards"] += 1
        return self.linear(x.flatten(1))  # type: ignore[no-any-return]


def counted(attack: Any) -> Iterator[tuple[str, Counter[str]]]:
    for stage in attack.stages if isinstance(attack, Custom) else VERSIONS[attack]:
        torch.manual_seed(0)
        net = Counting().eval()
        x = torch.rand(2, 1, 4, 4)
        with torch.no_grad():
            y = net.linear(x.flatten(1)).argmax(1)
        net.passed.clear()
        perturb(stage, attack, net, x, y, norm="Linf", eps=1e-6, seed=0)
        yield stage, net.passed


@pytest.mark.parametrize(
    "attack", ["standard", "rand", "plus", Custom(stages=("apgd-t", "fab-t", "square", "fab"), iterations=7, queries=9)]
)
def test_passes_are_those_that_autoattack_makes(attack: Any) -> None:
    """Counted, but for a few forward passes in which the attacks look for surviving images."""
    for stage, passed in counted(attack):
        expected: Passes = passes(stage, attack, "Linf", classes=5)
        backward = 4 if stage == "fab" else 1  # for each other class, after one forward pass
        assert abs(passed["gradients"] - expected.gradients / backward) <= 1, stage
        assert 0 <= passed["forwards"] - expected.forwards <= 32, stage


def test_seconds_add_up() -> None:
    attack = Custom(stages=("apgd-ce", "fab-t", "square"), iterations=10, targets=2, queries=5)
    expected = 1 + 100 * 11 + 20 * (1 + 100 + 1e4) + 6
    assert seconds(Linf(eps=0.1, attack=attack), costs()) == expected
    assert seconds(Linf(eps=0.1, attack=attack), costs(attacks={"fab-t": 7.0})) == 1 + 100 * 11 + 7 + 6
    assert seconds(Foggy(), costs()) == 3


def test_trials_are_the_attempts_and_the_clean_one() -> None:
    attack = Custom(stages=("apgd-ce", "fab-t", "square"), targets=2, restarts=3)
    assert trials(Linf(eps=0.1, attack=attack), costs()) == 1 + 3 + 2 + 3
    assert trials(Foggy(), costs()) == 3


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"search": {"kind": "full"}}, "at most about 3 h 04 min: 0.12 trials"),
        ({}, "about 34 min if search: best_first finds a clear winner, at most 3 h 04 min: 0.12 trials"),
        ({"search": {"kind": "best_first", "top": 4}}, "about 1 h 24 min if search: best_first finds"),
        ({"search": {"kind": "best_first", "top": 40}}, "at most about 3 h 04 min: 0.12 trials"),
    ],
)
def test_the_duration_runs_from_a_clear_winner_to_the_whole_grid(
    changes: dict[str, Any], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten β and the baseline, 60 images that are all right, 16.7 s each: a forward pass, and ten of an attack."""
    monkeypatch.setattr(model_checks, "measure", lambda *_: costs(forward=6.7, attacks={"apgd-ce": 10.0}, width=48))
    monkeypatch.setattr(TASK_TYPES["class"], "outcome", lambda _, y: torch.ones(len(y)))
    beta = [0.9, 0.89, 0.88, 0.87, 0.86, 0.85, 0.84, 0.83, 0.82, 0.81]
    found = findings(digits(dataset={"kind": "digits", "n": 60}, steering={"beta": beta}, **changes))[-1]
    assert found.text.startswith(text)
    assert "a worker, in batches of 48 (an estimate from a few images)" in found.text


@pytest.mark.parametrize(("search", "trials_of_a_worker"), [("best_first", 14), ("full", 3 * 14)])
def test_a_worker_has_its_share_of_the_images_and_with_a_full_search_of_all_steerings(
    search: str, trials_of_a_worker: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def measured(*given: Any) -> Costs:
        asked.append(given[-1])
        return costs()

    monkeypatch.setattr(model_checks, "measure", measured)
    changes = {"executor": {"kind": "local", "workers": 3}, "steering": {"beta": [0.9, 0.8]}}
    findings(digits(search={"kind": search}, **changes))  # 40 images
    assert asked == [trials_of_a_worker]


def test_an_attack_that_would_be_compiled_is_said_to_be_timed_without() -> None:
    benchmark = parse_benchmark({"name": "tiny"} | digits(compile="always"))
    model = model_checks.ModelCosts(costs(attacks={"apgd-ce": 1.0}), 1.0, 2, 2)
    assert doctor._duration(benchmark, [model], 60, "cpu").text.endswith(
        "(an estimate from a few images, not compiled)"
    )


def test_free_memory_is_a_number_of_this_machine() -> None:
    free = available_memory("cpu")
    assert free is None or 10**6 < free < 10**14
