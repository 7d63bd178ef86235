"""A Ray cluster: which one, and how many workers it has room for. What they do is in `ray_workers`."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from pydantic import Field, PrivateAttr

from harness.errors import SpecError
from harness.executors.dispatch import Dispatcher, Distributed

CLIENT_PORT = 10001
"""Of a ``ray://`` address that names none."""


class Ray(Distributed):
    """Workers on a Ray cluster, one torch thread each.

    Every node needs the same version of Python and of all packages, and data sets and checkpoints at the same paths;
    a relative path is looked up in the folder of the same name as the one that the run was started in. Results
    come back over the network: no shared file system is needed for them.

    A worker or a node that is lost costs only the cells that it was computing: they are given to another one.

    Args:
        address: of the cluster: "auto" is the one that this machine belongs to, or ``RAY_ADDRESS``; otherwise
            ``host:port``, or ``ray://host:10001`` from a machine outside of it.
        gpus: GPUs a worker, a fraction to share one; 0 is a CPU each. Goes with the benchmark's ``device: cuda``.
    """

    kind = "ray"
    package = "ray"
    location_fields = frozenset({"address"})

    address: Annotated[str, Field(min_length=1)] = "auto"

    _slots: int = PrivateAttr(default=1)

    @property
    def slots(self) -> int:
        """One cell a worker, as many as the cluster has room for; 1 before it has been looked at."""
        return self._slots

    def __enter__(self) -> Ray:
        import ray

        from harness.executors.ray_workers import Workers

        with self._explained():
            ray.init(address=self.address, log_to_driver=False, logging_level=logging.ERROR)
        try:
            self._slots = self._room(ray.nodes())
        except BaseException:
            ray.shutdown()
            raise
        workers = Workers(self._slots, self.gpus)
        self._dispatcher = Dispatcher(workers.step, workers.dismiss)
        return self

    def __exit__(self, *exception: object) -> None:
        import ray

        super().__exit__(*exception)
        ray.shutdown()

    def _room(self, nodes: list[dict[str, Any]]) -> int:
        """How many workers the nodes have room for, whoever else uses them."""
        resource, each = ("GPU", self.gpus) if self.gpus else ("CPU", 1)
        alive = [node["Resources"].get(resource, 0) for node in nodes if node["Alive"]]
        room = sum(int(amount / each + 1e-6) for amount in alive)
        if not room:
            raise SpecError(
                f"executor: a worker needs {each:g} {resource}, but the nodes of the Ray cluster at {self.address!r} "
                f"have {', '.join(f'{amount:g}' for amount in alive)}; add a node, or change executor.gpus"
            )
        return room

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Say what to do where there is no cluster; Ray itself keeps trying for minutes."""
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
