"""Ray cluster: joins it and counts the workers it has room for. The workers themselves are in `ray_workers`."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from pydantic import Field, PrivateAttr

from harness.errors import SpecError
from harness.executors.dispatch import ClusterExecutor, Dispatcher
from harness.executors.patience import TimeLimit

CLIENT_PORT = 10001
"""Port of a ``ray://`` address that names none."""


class Ray(ClusterExecutor):
    """Workers on a Ray cluster, one torch thread each.

    Every node needs the same versions of Python and of all packages, and datasets and checkpoints at the same paths.
    Relative paths start from a directory with the path of the run's working directory. Results come back over the
    network, so they need no shared file system.

    A lost worker or node costs only what it has not delivered; that is computed again by another worker.

    Args:
        address: address of the cluster: "auto" for the one that this machine belongs to, or ``RAY_ADDRESS``; otherwise
            ``host:port``, or ``ray://host:10001`` from a machine outside the cluster.
        gpus: number of GPUs per worker, a fraction to share one; 0 means one CPU each.
        time_limit: see `harness.executors.local.Local`.
    """

    kind = "ray"
    package = "ray"
    location_fields = frozenset({"address"})

    address: Annotated[str, Field(min_length=1)] = "auto"
    time_limit: TimeLimit = "auto"

    _capacity: int = PrivateAttr(default=1)

    @property
    def loading_limit(self) -> float:
        """See `Executor.loading_limit`."""
        return super().loading_limit if self.time_limit == "auto" else self.time_limit

    def capacity(self, device: str) -> int:
        """Return the number of workers that the cluster has room for; 1 before it is joined."""
        return self._capacity

    def __enter__(self) -> Ray:
        import ray

        from harness.executors.ray_workers import Workers

        with self._explain_failure():
            ray.init(address=self.address, log_to_driver=False, logging_level=logging.ERROR)
        try:
            self._capacity = self._room(ray.nodes())
        except BaseException:
            ray.shutdown()
            raise
        workers = Workers(self._capacity, self.gpus, self.time_limit)
        self._dispatcher = Dispatcher(workers.step, workers.kill)
        return self

    def __exit__(self, *exception: object) -> None:
        import ray

        super().__exit__(*exception)
        ray.shutdown()

    def _room(self, nodes: list[dict[str, Any]]) -> int:
        """Return the number of workers that the nodes have room for, whoever else uses them.

        Raises:
            SpecError: there is room for none.
        """
        resource, each = ("GPU", self.gpus) if self.gpus else ("CPU", 1)
        amounts = [node["Resources"].get(resource, 0) for node in nodes if node["Alive"]]
        room = sum(int(amount / each + 1e-6) for amount in amounts)
        if not room:
            raise SpecError(
                f"executor: a worker needs {each:g} {resource}, but the nodes of the Ray cluster at {self.address!r} "
                f"have {', '.join(f'{amount:g}' for amount in amounts)}; add a node, or change executor.gpus"
            )
        return room

    @contextmanager
    def _explain_failure(self) -> Iterator[None]:
        """Say what to do if no cluster answers; a connection is tried first, as Ray keeps trying for minutes."""
        try:
            if self.address not in ("auto", "local"):
                host, _, port = self.address.removeprefix("ray://").partition(":")
                socket.create_connection((host, int(port or CLIENT_PORT)), timeout=5).close()
            yield
        except (OSError, ValueError, RuntimeError) as error:
            raise SpecError(
                f"executor.address: no Ray cluster can be joined at {self.address!r}: {error}; start one with "
                "`ray start --head` and give its address (--address ray://host:10001, or auto on one of its nodes)"
            ) from error
