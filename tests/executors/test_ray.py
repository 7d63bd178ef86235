"""The Ray executor, on a cluster of two nodes: whoever computes a cell and whoever is lost, the same numbers."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Ended, csv_of

from harness.api.work import Cell, Task
from harness.config.benchmark import parse_benchmark
from harness.errors import ModelError, SpecError
from harness.executors.dispatch import Dispatcher
from harness.executors.local import ATTEMPTS
from harness.executors.ray import Ray
from harness.scheduling.trials import chains, grid, shards
from harness.testing import ExecutorContract

library = pytest.importorskip("ray")
pytestmark = pytest.mark.slow  # a cluster has to be started, and each worker imports torch

Mapping = Callable[..., dict[str, Any]]
Untimed = Callable[[str], list[str]]

NETWORKS = '''
import os
import signal
import time
from pathlib import Path

from torch import nn

from tiny_networks import mixed, narrow, quadrants


def _elsewhere():
    return os.getpid() != int(Path("driver.pid").read_text())


def _as(cls):
    network = mixed()
    network.__class__ = cls  # the same weights under the same names
    return network


class _Caught(nn.Sequential):
    """On the node that is to be killed it never ends; elsewhere it waits until it has begun there."""

    def forward(self, x):
        if _elsewhere():
            import ray

            if ray.get_runtime_context().get_node_id() == Path("victim").read_text():
                Path("caught").touch()
                time.sleep(600)
            while not Path("caught").exists():
                time.sleep(0.02)
        return super().forward(x)


def caught():
    return _as(_Caught)


class _Slow(nn.Sequential):
    def forward(self, x):
        time.sleep(0.1 if _elsewhere() else 0)
        return super().forward(x)


def slow():
    return _as(_Slow)


def dies_elsewhere():
    if _elsewhere():
        with Path("died.elsewhere").open("a") as log:
            log.write("x")
        os.kill(os.getpid(), signal.SIGKILL)
    return mixed()


class _Unpicklable(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


class _Raises(nn.Sequential):
    def forward(self, x):
        if _elsewhere():
            raise _Unpicklable("salt", "pepper")
        return super().forward(x)


def raises():
    return _as(_Raises)
'''


def processes_of(session: str, called: str = "") -> list[int]:
    """The pids of whatever holds a file of a Ray session open, or was started for it; workers included."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name = (folder / "cmdline").read_bytes().decode(errors="replace")
            told = name + "".join(os.readlink(file) for file in (folder / "fd").iterdir())
        except OSError:
            continue
        if session in told and name.startswith(called) and int(folder.name) != os.getpid():
            found.append(int(folder.name))
    return found


def gone(pids: Callable[[], list[int]], seconds: float = 15) -> bool:
    deadline = time.monotonic() + seconds
    while pids() and time.monotonic() < deadline:
        time.sleep(0.1)
    return not pids()


@pytest.fixture(scope="module")
def cluster(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two nodes of one CPU each; they find the tiny networks, and tell nobody that they run."""
    from ray.cluster_utils import Cluster

    networks = tmp_path_factory.mktemp("networks")
    (networks / "ray_networks.py").write_text(NETWORKS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, [networks, site])))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.syspath_prepend(str(networks))
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        session = Path(made.head_node.get_session_dir_path()).name
        try:
            made.add_node(num_cpus=1)
            yield made
        finally:
            made.shutdown()
            left = not gone(lambda: processes_of(session))
            for pid in processes_of(session):
                os.kill(pid, signal.SIGKILL)
            assert not left


@pytest.fixture
def driver(here: Path) -> Path:
    """`here`, where a network can tell whether it is loaded in this process."""
    (here / "driver.pid").write_text(str(os.getpid()))
    return here


def on(cluster: Any, **fields: Any) -> dict[str, Any]:
    return {"kind": "ray", "address": cluster.address} | fields


def model(builder: str, **fields: Any) -> dict[str, Any]:
    return {"kind": "checkpoint", "builder": f"ray_networks:{builder}"} | fields


def some_cells(mapping: Mapping, builder: str = "mixed", device: str = "cpu") -> list[Cell]:
    from harness.engine.session import model_session

    benchmark = parse_benchmark({"name": "tiny"} | mapping(models=[model(builder)]))
    (one,) = benchmark.models
    weights = model_session(one, "cpu", True).loaded.sha256
    task = Task(one.label, one, benchmark.dataset, benchmark.threat, 0, device, weights)
    cut = shards(dict.fromkeys(range(24), "d"), 8)
    every = [chain.next([]) for chain in chains(task, grid([0.5], [0.5], "all"), cut)]
    return [cell for cell in every if cell]


def idle(ray: Ray) -> list[Any]:
    return list(ray._dispatcher._step.__self__._idle)  # type: ignore[attr-defined]


def watched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of the cells whose worker is lost from now on."""
    lost: list[str] = []
    retry = Dispatcher.retry

    def noted(dispatcher: Dispatcher, work: Any, *told: str) -> None:
        lost.append(work.cell.key)
        retry(dispatcher, work, *told)

    monkeypatch.setattr(Dispatcher, "retry", noted)
    return lost


class TestRay(ExecutorContract):
    @pytest.fixture
    def part(self, cluster: Any) -> Ray:
        return Ray(address=cluster.address)


def test_a_node_killed_in_the_middle_costs_its_cell_alone(
    driver: Path, cluster: Any, mapping: Mapping, untimed: Untimed, monkeypatch: pytest.MonkeyPatch
) -> None:
    caught = mapping(models=[model("caught")])
    alone = csv_of(caught, driver / "alone")
    victim = cluster.add_node(num_cpus=1)
    Path("victim").write_text(victim.node_id)
    lost = watched(monkeypatch)

    def kill() -> None:
        while not (driver / "caught").exists():
            time.sleep(0.02)
        cluster.remove_node(victim, allow_graceful=False)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    csv = csv_of(caught | {"executor": on(cluster)}, driver / "runs")
    killer.join(30)
    assert len(lost) == 1
    assert untimed(csv) == untimed(alone)


def test_what_kills_every_worker_is_a_failed_row_and_the_others_go_on(
    driver: Path, run: Callable[..., Ended], cluster: Any, mapping: Mapping, untimed: Untimed
) -> None:
    both = [model("dies_elsewhere"), *mapping()["models"]]
    local = mapping(models=both, batch_size=24, executor={"kind": "local", "workers": 1})
    assert run(local, "--executor", "ray", "--address", cluster.address).code == 1
    lines = untimed((driver / "leaderboards" / "tiny.csv").read_text())
    assert len(Path("died.elsewhere").read_text()) >= ATTEMPTS == 3
    told = r"failed: its worker was lost 3 times on stage \w+ of 24 images \(out of memory\?\); lower batch_size\. "
    assert re.search(told + r"\w+", lines[1])
    assert lines[2:] == untimed(csv_of(mapping(batch_size=24), driver / "alone"))[1:]


@pytest.mark.usefixtures("driver")
def test_errors_idle_deaths_and_leaving(cluster: Any, mapping: Mapping, monkeypatch: pytest.MonkeyPatch) -> None:
    good, other, slow, bad, odd = (
        some_cells(mapping, builder)[0] for builder in ("mixed", "quadrants", "slow", "narrow", "raises")
    )
    session = Path(cluster.head_node.get_session_dir_path()).name
    lost = watched(monkeypatch)
    with Ray(address=cluster.address) as ray:
        # an error is told as it is, and the worker lives on
        with pytest.raises(ModelError, match=r"^the data have labels up to 3, but the network yields 2 logits"):
            ray.submit(bad).result(60)
        before = idle(ray)
        with pytest.raises(ModelError, match=r"^stage clean: _Unpicklable: salt and pepper$"):
            ray.submit(odd).result(60)
        assert ray.submit(good).result(60).key == good.key
        assert idle(ray) == before
        # when all have died idle, the first that is found dead warns of the others
        for promise in [ray.submit(slow), ray.submit(other)]:
            promise.result(60)
        assert gone(lambda: [0] * (2 - len(idle(ray))))
        for worker in idle(ray):
            library.kill(worker)
        assert ray.submit(other).result(60).key == other.key
        assert len(lost) == 1
        # leaving lets go at once
        assert processes_of(session, "ray::Worker")
        in_flight = ray.submit(slow)
        started = time.monotonic()
    assert time.monotonic() - started < 5
    assert in_flight.done()
    assert gone(lambda: processes_of(session, "ray::Worker"), 5)


class Refuses:
    def __init__(self, folder: str) -> None:
        raise ImportError("no harness here")

    def ready(self) -> None: ...


def test_workers_that_cannot_be_started_are_not_tried_for_ever(
    driver: Path, cluster: Any, mapping: Mapping, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.executors import ray_workers

    assert driver.is_dir()
    monkeypatch.setattr(ray_workers, "Worker", Refuses)
    first, *_ = some_cells(mapping)
    told = "^no worker could be started on the Ray cluster, 3 times: .*; install the same version of ct-harness on"
    with Ray(address=cluster.address) as ray:
        for _ in range(2):
            with pytest.raises(ModelError, match=told):
                ray.submit(first).result(60)


def test_gpus_and_device_go_together(driver: Path, cluster: Any, mapping: Mapping) -> None:
    assert driver.is_dir()
    told = "executor: a worker needs 0.5 GPU, but the nodes of the Ray cluster at .* have 0, 0; add a node"
    with pytest.raises(SpecError, match=told), Ray(address=cluster.address, gpus=0.5):
        pass
    first, *_ = some_cells(mapping, device="cuda")
    with Ray(address=cluster.address) as ray, pytest.raises(SpecError, match="need device: cpu, found device: cuda"):
        ray.submit(first)
    told = r"need device: cuda, found device: cuda:1; set device=cuda, or executor.gpus=0"
    with pytest.raises(SpecError, match=told):
        Ray(gpus=1).submit(some_cells(mapping, device="cuda:1")[0])


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:2", "nonsense"])
def test_no_cluster_at_the_address(run: Callable[..., Ended], mapping: Mapping, address: str) -> None:
    started = time.monotonic()
    ended = run(mapping(), "--executor", "ray", "--address", address)
    assert time.monotonic() - started < 20
    assert ended.code == 2
    assert ended.err.startswith(f"error: tiny.yaml: executor.address: no Ray cluster can be joined at {address!r}: ")
    assert "start one with `ray start --head` and give its address (--address ray://host:10001" in ended.err


def test_options_that_do_not_fit(run: Callable[..., Ended], mapping: Mapping) -> None:
    ended = run(mapping(), "--address", "auto")
    assert (ended.code, ended.err) == (
        2,
        "error: --address auto: goes with --executor ray, found no --executor; add it\n",
    )
    assert "--address auto: goes with --executor ray, found local" in (
        run(mapping(), "--executor", "local", "--address", "auto").err
    )
    assert "executor.kind: unknown kind 'rya' (did you mean 'ray'?)" in run(mapping(), "--executor", "rya").err
