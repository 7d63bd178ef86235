"""The Ray executor, on a cluster of two nodes: whoever computes a portion and whoever is lost, the same numbers."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import Run, csv_of, untimed
from helpers.packages import INSTALLED, python_path
from helpers.portions import Delivered, portion
from helpers.tiny import few_cells, mapping

from harness.api.work import Portion
from harness.errors import ModelError, SpecError
from harness.executors.dispatch import Dispatcher
from harness.executors.ray import Ray
from harness.executors.submission import ATTEMPTS, Submission
from harness.testing import ExecutorContract

library = pytest.importorskip("ray")
pytestmark = pytest.mark.slow  # a cluster has to be started, and each worker imports torch


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
def nodes() -> Iterator[Any]:
    """A head of one CPU, and room for more nodes; they find the tiny networks, and tell nobody that they run."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", python_path(INSTALLED))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # otherwise 15: on a busy machine, workers would hardly start
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        session = Path(made.head_node.get_session_dir_path()).name
        try:
            yield made
        finally:
            made.shutdown()
            left = not gone(lambda: processes_of(session))
            for pid in processes_of(session):
                os.kill(pid, signal.SIGKILL)
            assert not left


@pytest.fixture
def cluster(nodes: Any) -> Any:
    """Two nodes of one CPU each; the second one may be killed."""
    if not nodes.worker_nodes:
        nodes.add_node(num_cpus=1)
    return nodes


def on(cluster: Any, **fields: Any) -> dict[str, Any]:
    return {"kind": "ray", "address": cluster.address} | fields


def model(builder: str) -> dict[str, Any]:
    return {"kind": "checkpoint", "builder": f"worker_networks:{builder}"}


def clean(builder: str = "mixed") -> Portion:
    return portion(mapping(models=[model(builder)]))


def dim(builder: str) -> Portion:
    """24 trials in three batches."""
    return portion(mapping(models=[model(builder)], threat={"kind": "dim"}), stage="dim-1", images=range(24))


def idle(ray: Ray) -> list[Any]:
    return list(ray._dispatcher._step.__self__._idle)  # type: ignore[attr-defined]


def losses(monkeypatch: pytest.MonkeyPatch) -> list[Submission]:
    """The submissions whose worker is lost from now on."""
    lost: list[Submission] = []
    retry = Dispatcher.retry

    def noted(dispatcher: Dispatcher, submission: Submission, reason: str, remedy: str) -> None:
        lost.append(submission)
        retry(dispatcher, submission, reason, remedy)

    monkeypatch.setattr(Dispatcher, "retry", noted)
    return lost


class TestRay(ExecutorContract):
    @pytest.fixture
    def part(self, cluster: Any) -> Ray:
        return Ray(address=cluster.address)


def test_what_kills_every_worker_is_a_failed_row_and_the_others_go_on(driver: Path, run: Run, cluster: Any) -> None:
    both = [model("dies_always"), *mapping()["models"]]
    local = few_cells(models=both, executor={"kind": "local", "workers": 1})
    assert run(local, "--executor", "ray", "--address", cluster.address).code == 1
    lines = untimed((driver / "leaderboards" / "tiny.csv").read_text())
    assert len(Path("died.always").read_text()) >= ATTEMPTS == 3
    told = (
        r"failed: its worker was lost 3 times on stage \w+ with \d+ trials left \(out of memory\?\); "
        r"lower batch_size\. \w+"
    )
    assert re.search(told, lines[1])
    assert lines[2:] == untimed(csv_of(few_cells(), driver / "alone"))[1:]


@pytest.mark.usefixtures("driver")
def test_a_worker_that_is_stuck_is_given_up_and_the_next_portion_is_computed(cluster: Any) -> None:
    good, delivered = clean(), Delivered()
    with Ray(address=cluster.address, time_limit=20) as ray:
        stuck = ray.submit(dim("stuck"), Delivered())
        with pytest.raises(ModelError, match=r"^stage dim-1: no answer for 20 s; look .* executor\.time_limit$"):
            stuck.result(120)
        ray.submit(good, delivered).result(60)
    assert delivered.is_each_once(good)


@pytest.mark.usefixtures("driver")
def test_results_arrive_while_the_portion_is_computed_and_a_lost_worker_costs_only_the_rest(
    cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    dripping, dying = dim("drips"), dim("dies_halfway")
    drops, rest = Delivered(), Delivered()
    lost = losses(monkeypatch)
    with Ray(address=cluster.address) as ray:
        ray.submit(dripping, drops).result(60)
        ray.submit(dying, rest).result(60)
    assert len(drops.deliveries) == 3
    assert drops.times[-1] - drops.times[0] > 0.2
    assert drops.agrees_with_evaluate(dripping)
    assert len(lost) == 1
    assert rest.is_each_once(dying)
    assert rest.agrees_with_evaluate(dying)


@pytest.mark.usefixtures("driver")
def test_errors_idle_deaths_and_leaving(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    good, other, slow, bad, odd = map(clean, ("mixed", "quadrants", "slow", "narrow", "raises"))
    session = Path(cluster.head_node.get_session_dir_path()).name
    lost = losses(monkeypatch)
    with Ray(address=cluster.address) as ray:
        # an error is told as it is, after another worker has raised it that has computed nothing else, which lives on
        with pytest.raises(ModelError, match=r"^the data have labels up to 3, but the network yields 2 logits"):
            ray.submit(bad, Delivered()).result(60)
        with pytest.raises(ModelError, match=r"_Unpicklable: salt and pepper$"):
            ray.submit(odd, Delivered()).result(60)
        before = idle(ray)
        lost.clear()
        delivered = Delivered()
        ray.submit(good, delivered).result(60)
        assert delivered.is_each_once(good)
        assert idle(ray) == before
        # when all have died idle, the first that is found dead warns of the others
        for future in [ray.submit(slow, Delivered()), ray.submit(other, Delivered())]:
            future.result(60)
        assert gone(lambda: [0] * (2 - len(idle(ray))))
        for worker in idle(ray):
            library.kill(worker)
        delivered = Delivered()
        ray.submit(other, delivered).result(60)
        assert delivered.is_each_once(other)
        assert len(lost) == 1
        # leaving lets go at once
        assert processes_of(session, "ray::Worker")
        in_flight = ray.submit(slow, Delivered())
        started = time.monotonic()
    assert time.monotonic() - started < 5
    assert in_flight.done()
    assert gone(lambda: processes_of(session, "ray::Worker"), 5)


class Refuses:
    def __init__(self, folder: str) -> None:
        raise ImportError("no harness here")

    def ready(self) -> None: ...


@pytest.mark.usefixtures("driver")
def test_workers_that_cannot_be_started_are_not_tried_for_ever(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.executors import ray_workers

    monkeypatch.setattr(ray_workers, "Worker", Refuses)
    work = clean()
    told = "no worker could be started on the Ray cluster, 3 times: .*; install the same version of ct-harness"
    with Ray(address=cluster.address) as ray:
        for _ in range(2):
            with pytest.raises(ModelError, match=told):
                ray.submit(work, Delivered()).result(60)


@pytest.mark.usefixtures("driver")
def test_a_cluster_without_room_for_a_worker_says_so(cluster: Any) -> None:
    told = "executor: a worker needs 0.5 GPU, but .* Ray cluster at .* have 0, 0; add a node"
    with pytest.raises(SpecError, match=told), Ray(address=cluster.address, gpus=0.5):
        pass


@pytest.mark.usefixtures("driver")
def test_a_worker_that_loses_its_device_is_replaced(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    work, delivered = clean("loses_device_once"), Delivered()
    lost = losses(monkeypatch)
    with Ray(address=cluster.address) as ray:
        ray.submit(work, delivered).result(60)
    assert len(lost) == 1
    assert len(set(Path("built").read_text().split())) == 2
    assert delivered.agrees_with_evaluate(work)


def test_a_model_goes_to_the_idle_worker_that_has_it_loaded() -> None:
    from harness.executors.ray_workers import Workers

    workers = Workers(3, gpus=0, time_limit="auto")
    workers._idle, workers._models = ["one", "two", "three"], {"one": "resnet", "two": "vit"}
    assert workers._idle_one("resnet") == "one"
    assert workers._idle_one("swin") == "three"  # the last one started or used
    assert workers._idle_one("swin") == "two"
    assert workers._idle == []


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:2", "nonsense"])
def test_no_cluster_at_the_address(run: Run, address: str) -> None:
    started = time.monotonic()
    ended = run(mapping(), "--executor", "ray", "--address", address)
    assert time.monotonic() - started < 20
    assert ended.code == 2
    assert ended.err.startswith("error: tiny.yaml: executor.address: ")
    assert repr(address) in ended.err
    assert "ray start --head" in ended.err
    assert "--address ray://host:10001" in ended.err


@pytest.mark.parametrize(
    ("arguments", "pieces"),
    [
        (["--address", "auto"], ["error: --address auto", "--executor ray", "found no --executor"]),
        (
            ["--executor", "local", "--address", "auto"],
            ["error: --address auto", "--executor ray", "found local"],
        ),
        (["--executor", "rya"], ["executor.kind", "'rya'", "did you mean 'ray'?"]),
    ],
)
def test_options_that_do_not_fit(run: Run, arguments: list[str], pieces: list[str]) -> None:
    ended = run(mapping(), *arguments)
    assert ended.code == 2
    assert [piece for piece in pieces if piece not in ended.err] == []


@pytest.mark.usefixtures("driver")
def test_a_node_killed_in_the_middle_costs_its_portion_alone(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last test, since another node takes seconds to start."""
    caught = [portion(mapping(models=[model("caught")]), images=images) for images in (range(8), range(8, 24))]
    delivered = [Delivered(), Delivered()]
    (victim,) = cluster.worker_nodes
    Path("victim").write_text(victim.node_id)
    lost = losses(monkeypatch)
    with Ray(address=cluster.address) as ray:
        futures = [ray.submit(work, each) for work, each in zip(caught, delivered, strict=True)]
        assert gone(lambda: [] if Path("caught").exists() else [0], 60)
        cluster.remove_node(victim, allow_graceful=False)
        for future in futures:
            future.result(120)
    assert len(lost) == 1
    for work, each in zip(caught, delivered, strict=True):
        assert each.agrees_with_evaluate(work)
