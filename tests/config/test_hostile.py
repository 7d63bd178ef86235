"""Benchmarks that are meant to hurt: each is refused in one message, soon, and in little memory."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.config.benchmark import MOST_SCORES, MOST_STEERINGS, Benchmark, load_benchmark
from harness.config.yaml_text import parse_yaml
from harness.engine.prepare import check_number_of_images
from harness.errors import DataError, SpecError

SECONDS, MEGABYTES = 2, 300
LONGEST_LINE = 1000

# --- one by one, in a process of its own ---

PARTS = {
    "models": "[{kind: demo, name: digits_plain}]",
    "dataset": "{kind: digits, n: 20}",
    "threat": "{kind: Linf, eps: 0.1}",
    "steering": "{beta: 0.9}",
}


def good(**changes: str) -> str:
    return "".join(f"{key}: {value}\n" for key, value in (PARTS | changes).items())


def laughs(base: str, levels: int = 9) -> str:
    """Return ten times ten times … this value, nine times over, in a few hundred bytes."""
    lines = [f"l0: &l0 {base}"]
    lines += [f"l{level}: &l{level} [{', '.join([f'*l{level - 1}'] * 10)}]" for level in range(1, levels + 1)]
    return "\n".join(lines) + "\n"


HOSTILE = {
    "billion laughs": (good() + laughs("lol"), "too many values"),
    "laughs of merges": (good() + laughs("{a: 1}") + "m: {<<: *l9}", "too many values"),
    "long text many times": (good() + f"a: &a [{'x' * 240}]\nb: [{'*a, ' * 9000}]", "too many values"),
    "nested lists": (good(name="[" * 4000 + "]" * 4000), "more than 30 lists and mappings within each other"),
    "nested mappings": (good(name="{a: " * 4000 + "}" * 4000), "more than 30 lists and mappings within each other"),
    "nested blocks": (good() + "a:\n" + "- " * 9000 + "x", "more than 30 lists and mappings within each other"),
    "tiny step": (good(steering="{beta: {from: 0, to: 1, step: 1e-300}}"), "steering.beta: expected at most 10,000"),
    "small step": (good(steering="{beta: {from: 0, to: 1, step: 1e-5}}"), "steering.beta: expected at most 10,000"),
    "grid": (
        good(steering="{beta: {from: 0, to: 1, step: 1e-3}, c: {from: 0, to: 1, step: 1e-3}}"),
        "steering: beta and c make 1,002,001 steerings, expected at most 10,000",
    ),
    "images": (good(dataset="{kind: digits, n: 10000000}"), "dataset.n: expected a number of at most 1,000,000"),
    "training images": (
        good(models="[{kind: probe, backbone: {kind: demo, name: digits_plain}, train: {kind: digits, n: 1e12}}]"),
        "models[0].train.n: expected a number of at most 1,000,000",
    ),
    "scores": (
        good(dataset="{kind: digits, n: 100000}", steering="{beta: {from: 0, to: 1, step: 1e-3}}"),
        "dataset: 100,000 images × 1,001 steerings × 1 models are 100,100,000 scores, expected at most 20,000,000",
    ),
    "beta": (good(steering=f"{{beta: [{'0.12345, ' * 100_000}]}}"), "larger than 100 kB"),
    "short beta": (good(steering=f"{{beta: [{'1,' * 12_000}]}}"), "steering.beta: expected a list of at most 10,000"),
    "bad beta": (good(steering=f"{{beta: [{'2,' * 12_000}]}}"), "steering.beta[0]: expected a number of at most 1"),
    "eps that moves no pixel": (good(threat="{kind: Linf, eps: 1e-300}"), "threat.eps: eps is finer than float32"),
    "tiny eps": (good(threat="{kind: Linf, eps: 1e-999999999}"), "threat.eps: expected a number in pixels"),
    "huge eps": (good(threat="{kind: Linf, eps: 1e999999999}"), "threat.eps: expected a number in pixels"),
    "workers": (good(executor="{kind: local, workers: 1000000000}"), "executor.workers: expected a number of at most"),
    "iterations": (
        good(threat="{kind: Linf, eps: 0.1, attack: {stages: [square], queries: 1000000000}}"),
        "threat.attack.queries: expected a number of at most 1,000,000",
    ),
    "restarts": (
        good(threat="{kind: Linf, eps: 0.1, attack: {stages: [apgd-t], restarts: 1000000, targets: 1000000}}"),
        "threat.attack.restarts: expected a number of at most 1,000",
    ),
    "strengths": (
        good(
            models="[{kind: probe, backbone: {kind: demo, name: digits_plain}, train: {kind: digits}, probe: {C: ["
            + "1," * 9000
            + "]}}]"
        ),
        "models[0].probe.C: expected a list of at most 100",
    ),
    "date": (good(seed="2024-99-99"), "seed: expected an integer, found '2024-99-99'"),
    "digits": (good(seed="9" * 200), "seed: expected an integer, found '999"),
    "comments": ("# nothing\n" * 5_000_000 + good(), "larger than 100 kB"),
    "keys": (good() + "".join(f"k{number}: 1\n" for number in range(5000)), "k0: unknown key"),
    "models": (good(models=f"[{PARTS['models'][1:-1]}{', {kind: demo, name: x}' * 3000}]"), "models: expected at most"),
    "name": (good(name="x" * 250), "name: expected text of at most 100 characters"),
    "path": (good(dataset=f"{{kind: arrays, path: {'x' * 300}}}"), "dataset.path: line 2: text of 300 characters"),
    "spaces": (good(name="a b"), "name: expected letters, digits and _, with . and - after the first"),
    "device": (good(device="'cuda:٣'"), "device: expected auto, cpu, cuda, or one GPU by its number, such as cuda:1"),
    "memory": (good(executor="{kind: slurm, memory: 8g}"), "executor.memory: expected a number and its unit"),
    "tag": (good(name="!!python/object/apply:os.system [ls]"), "name: line 5: found the tag"),
    "escape": (good(name='"\\e[31m"'), "name: line 5: found the control character '\\x1b'"),
    "no character": (good(name='"\\UFFFFFFFF"'), "not valid YAML: an escaped character"),
}

MEASURED = """
import sys
from harness.cli.app import main
sys.argv = ["ct-harness", "run", "bench.yaml"]
try:
    main()
finally:
    peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
    import resource
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(int(peak) / 1000, usage.ru_utime + usage.ru_stime)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux, which says what a process has used")
@pytest.mark.parametrize(("text", "message"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_benchmark_costs_a_message(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bench.yaml").write_text(text)
    ended = subprocess.run(
        [sys.executable, "-c", MEASURED], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    first, *others = ended.stderr.splitlines()
    assert ended.returncode == 2
    assert first.startswith("error: bench.yaml: ")
    assert message in first
    assert all(line.startswith("bench.yaml: ") for line in others)
    assert len(others) <= 10
    assert max(map(len, [first, *others])) < LONGEST_LINE
    megabytes, seconds = map(float, ended.stdout.split())  # of the processor: of a busy machine, a clock says nothing
    assert megabytes < MEGABYTES
    assert seconds < SECONDS


@pytest.mark.parametrize("key", [".".join("a" * 5000), "seed\x1b[31m", "models." + "9" * 5000 + ".name"])
def test_a_hostile_key_to_set(tmp_path: Path, key: str) -> None:
    (tmp_path / "bench.yaml").write_text(good())
    with pytest.raises(SpecError) as error:
        load_benchmark(tmp_path / "bench.yaml", [f"{key}=1"])
    assert str(error.value).startswith(f"{tmp_path / 'bench.yaml'}: --set {key[:4]}")
    assert "\x1b" not in str(error.value)
    assert len(str(error.value)) < LONGEST_LINE


def test_the_images_that_a_data_set_turns_out_to_have_are_bounded_too(tmp_path: Path) -> None:
    (tmp_path / "bench.yaml").write_text(
        good(dataset="{kind: digits}", steering="{beta: {from: 0, to: 1, step: 1e-3}}")
    )
    benchmark = load_benchmark(tmp_path / "bench.yaml")
    most = MOST_SCORES // 1_001
    check_number_of_images(benchmark, most)
    with pytest.raises(SpecError, match=f"dataset: {most + 1:,} images × 1,001 steerings × 1 models"):
        check_number_of_images(benchmark, most + 1)


# --- many, at random ---

SHIPPED = [
    path.read_text(encoding="utf-8") for path in sorted((Path(__file__).parents[2] / "benchmarks").glob("*.yaml"))
]
MUTATIONS = settings(
    max_examples=500, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)

FRAGMENTS = (
    "&a ", "*a", "<<: *a", "? ", "- ", ": ", ", ", "{", "}", "[", "]", "[" * 60, "- " * 60, "'", '"', "|", ">", "#",
    "!", "!!int ", "!!python/name:os.system ", "---\n", "...\n", "\t", "\r", "\x00", "\x1b", "\x85", "\ufeff", "\ud7ff",
    "β", "1e-999999999", "8/0", "2024-99-99", "\\", '"\\x00"', '"\\ud800"', "%YAML 9.9\n---\n",
)  # fmt: skip

STRANGE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 0.5, 1.5, -0.0, 10**9, 10**30, 1e300, 1e-300, float("nan"), float("inf"), "", " ", "x",
    "auto", "8/255", "1e-2", "9" * 500, "x" * 500, "../..", "a\nb", "β", [], [[]], [None], {}, {"kind": None}, {"": 1},
    {"kind": "digits"}, {"kind": "nothing"}, {"from": 0, "to": 1, "step": 1e-300}, list(range(3000)), [0.5] * 3000,
    {f"k{number}": number for number in range(500)},
)  # fmt: skip


@st.composite
def texts(draw: st.DrawFn) -> str:
    """Return the text of a shipped benchmark with some of its characters or lines changed."""
    text = draw(st.sampled_from(SHIPPED))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        stop = min(len(text), start + draw(st.integers(0, 8)))
        lines = text.splitlines(keepends=True)
        line = draw(st.integers(0, max(len(lines) - 1, 0)))
        text = draw(
            st.sampled_from([
                text[:start] + draw(st.sampled_from(FRAGMENTS) | st.text(max_size=3)) + text[stop:],
                "".join([*lines[: line + 1], *lines[line:]]),
                "".join([*lines[:line], *lines[line + 1 :]]),
                "".join([*lines[:line], " " * draw(st.integers(1, 5)), *lines[line:]]),
            ])
        )  # fmt: skip
    return text


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of each value within this one."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield (*path, key)
        yield from places(entry, (*path, key))


@st.composite
def structures(draw: st.DrawFn) -> tuple[Any, tuple[Any, ...]]:
    """Return a shipped benchmark of which one value is another, another's, deeper or gone; and that value's path."""
    data = parse_yaml(draw(st.sampled_from(SHIPPED)))
    path = draw(st.sampled_from(list(places(data))))
    *above, last = path
    parent = data
    for step in above:
        parent = parent[step]
    match draw(st.sampled_from(["strange", "another", "deeper", "gone", "renamed"])):
        case "strange":
            parent[last] = draw(st.sampled_from(STRANGE))
        case "another":
            parent[last] = copy.deepcopy(data[draw(st.sampled_from(list(data)))])
        case "deeper":
            for _ in range(draw(st.sampled_from([1, 2, 40]))):
                parent[last] = draw(st.sampled_from([[parent[last]], {"kind": parent[last]}]))
        case "gone":
            del parent[last]
        case "renamed" if isinstance(parent, dict):
            parent[draw(st.sampled_from(["kinds", "n", "indices", "x" * 300, "beta", "__class__"]))] = parent.pop(last)
    return data, path


class WithoutAliases(yaml.SafeDumper):
    """Writes a value again where it is used again."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


LIBRARY = re.compile(
    r"pydantic|that matches|function-|Input should|Value error|validation error|Traceback|object at 0x|yaml\.org"
)
KEYED = re.compile(
    r"(not valid YAML: |expected a mapping with models|larger than|line \d+: |([\w<.\[\]-]|'.*'|\".*\")+: |: )"
)


def refused(folder: Path, text: str) -> str | None:
    """Parse a benchmark twice; return the message if it is refused, after a look at either outcome."""
    path = folder / "bench.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    started = time.process_time()
    found = outcome(path)
    assert time.process_time() - started < SECONDS
    if isinstance(found, Benchmark):
        assert found == outcome(path)
        assert 0 < len(found.steering.beta) * len(found.steering.c) <= MOST_STEERINGS
        assert all(0 <= value <= 1 for value in (*found.steering.beta, *found.steering.c))
        assert re.fullmatch(r"\w[\w.-]{,99}", found.name)
        return None
    for line in found.splitlines():
        assert line.startswith(f"{path}: ")
        said = line.removeprefix(f"{path}: ")
        assert KEYED.match(said), said
        assert not LIBRARY.search(said.replace("found the tag 'tag:yaml.org", "")), said
        assert len(said) < LONGEST_LINE
        assert said.isprintable(), said
    return found


def outcome(path: Path) -> Benchmark | str:
    try:
        return load_benchmark(path)
    except (SpecError, DataError) as error:
        return str(error)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for the mutations."""
    return tmp_path_factory.mktemp("mutations")


@MUTATIONS
@given(text=texts())
def test_a_text_with_other_characters_is_a_benchmark_or_told_what_is_wrong(folder: Path, text: str) -> None:
    refused(folder, text)


@MUTATIONS
@given(structure=structures())
def test_a_value_of_another_kind_is_a_benchmark_or_told_where_it_is(
    folder: Path, structure: tuple[Any, tuple[Any, ...]]
) -> None:
    data, path = structure
    message = refused(folder, yaml.dump(data, Dumper=WithoutAliases, allow_unicode=True))
    elsewhere = r"line \d+: text of 300 characters|threat\.eps: missing"  # a name too long; a default of the data's
    assert message is None or str(path[0]) in message or re.search(elsewhere, message)
