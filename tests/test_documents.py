"""What the README shows is what happens."""

import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

from harness.config.benchmark import parse_benchmark

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def block(language, containing):
    """The one fenced block of a language that contains a text."""
    found = [text for text in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if containing in text]
    assert len(found) == 1
    return found[0]


def test_the_plugin_in_the_readme_runs_as_it_stands(tmp_path):
    """Installed as any package is (a module and its metadata on the path), named in a YAML, run from the shell."""
    (tmp_path / "brightness.py").write_text(block("python", "class Brightness"), encoding="utf-8")
    metadata = tmp_path / "brightness-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: brightness\nVersion: 1.0\n")
    toml = block("toml", "brightness")
    (metadata / "entry_points.txt").write_text(
        toml.replace('[project.entry-points."ct_harness.threats"]', "[ct_harness.threats]").replace('"', "")
    )
    (tmp_path / "test_brightness.py").write_text(
        "import pytest\nfrom brightness import Brightness\nfrom harness.testing import ThreatContract\n\n"
        + block("python", "class TestBrightness")
    )
    (tmp_path / "bright.yaml").write_text(
        "models: [{kind: demo, name: digits_plain}]\ndataset: {kind: digits, n: 60}\n"
        "threat: {kind: brightness, delta: 0.45}\nsteering: {beta: 0.9}\nexecutor: {kind: local, workers: 1}\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}

    def run(*command):
        return subprocess.run(
            [sys.executable, "-m", *command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    done = run("harness", "run", "bright.yaml")
    assert done.returncode == 0, done.stderr
    rows = (tmp_path / "leaderboards" / "bright.csv").read_text().splitlines()
    header, first = (line.split(",") for line in rows[:2])
    row = dict(zip(header, first, strict=True))
    assert row["threat"] == "brightness"
    assert 0 < float(row["robust"]) < float(row["clean"])
    assert "brightness" in run("harness", "list", "threats").stdout
    refused = run("harness", "run", "bright.yaml", "--set", "threat.delt=1")
    assert refused.returncode == 2
    assert "threat.delt: unknown key (did you mean 'delta'?)" in refused.stderr
    contract = run("pytest", "-q", "-p", "no:cacheprovider", "test_brightness.py")
    assert contract.returncode == 0, contract.stdout


def test_the_yaml_in_the_readme_parses():
    benchmark = parse_benchmark({"name": "readme"} | yaml.safe_load(block("yaml", "my_package.networks")))
    assert len(benchmark.steering.beta) == 30
    assert benchmark.models[1].label == "mine"


def test_the_readme_names_only_files_that_exist():
    for path in re.findall(r"\]\(((?:harness|ci|leaderboards|benchmarks)/[^)]+)\)|`(benchmarks/[\w.]+)`", README):
        name = path[0] or path[1]
        assert (Path(__file__).parents[1] / name).exists(), name
