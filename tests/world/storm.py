# SPDX-License-Identifier: Apache-2.0
"""Storms: pods made, stopped and removed in any order while the daemon is killed now and then."""

import collections
import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from pycri.cri.api import runtime_v1_pb2 as cri
from tests.world.daemon import CALL_TIMEOUT_S, Node

WORKERS = 6
_NO_DAEMON = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
LONGEST_LIFE_S = 2.0
"""How long a daemon may live before it is killed."""


Fields = Callable[[random.Random], dict[str, Any]]
"""Further fields of a pod's config, made up from a source of chance."""


def storm(
    node: Node, source: random.Random, pods: int, fields: Fields = lambda _: {}
) -> collections.Counter[str]:
    """Make `pods` pods and remove them, and kill the daemon meanwhile; then remove what is left.

    Returns: how often each call succeeded, and how often the daemon was killed.
    """
    counts: collections.Counter[str] = collections.Counter()
    numbers = iter(range(pods))
    workers = [
        threading.Thread(
            target=_work, args=(node, numbers, random.Random(source.random()), fields, counts)
        )
        for _ in range(WORKERS)
    ]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        # The moment is what is varied, not something to wait for.
        time.sleep(source.uniform(0.1, LONGEST_LIFE_S))
        node.kill("daemon")
        node.start()
        counts["kill"] += 1
    for worker in workers:
        worker.join()
    for pod in node.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items:
        node.remove_pod(pod.id)
    return counts


def _work(
    node: Node,
    numbers: Iterator[int],
    source: random.Random,
    fields: Fields,
    counts: collections.Counter[str],
) -> None:
    """Make pods; stop and remove some of them, some more than once, in any order."""
    made: list[str] = []
    for number in numbers:
        made += _insist(node, f"storm-{number}", fields(source), counts)
        while made and source.random() < 0.6:
            pod = source.choice(made)
            name = source.choice(("stop", "remove"))
            with _whatever_happens():
                getattr(node, f"{name}_pod")(pod)
                counts[name] += 1
                if name == "remove":
                    made.remove(pod)


def _insist(
    node: Node, name: str, fields: dict[str, Any], counts: collections.Counter[str]
) -> list[str]:
    """Run a pod, as the kubelet does: again and again while no daemon answers."""
    deadline = time.monotonic() + CALL_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            pod = node.run_pod(name, **fields)
        except (grpc.RpcError, ValueError) as error:
            # A channel that was closed raises ValueError.
            if isinstance(error, grpc.Call) and error.code() not in _NO_DAEMON:
                counts[error.code().name] += 1
                return []
            time.sleep(0.01)
        else:
            counts["run"] += 1
            return [pod]
    raise AssertionError(f"no daemon took {name}")


@contextlib.contextmanager
def _whatever_happens() -> Iterator[None]:
    """Make a call whose daemon may be killed; a channel that was closed raises ValueError."""
    with contextlib.suppress(grpc.RpcError, ValueError):
        yield
