# SPDX-License-Identifier: Apache-2.0
"""A client in a process of its own that lists, and prints what each call took: JSON, milliseconds.

    python -m tests.performance.lister SECONDS INTERVAL NAME=SOCKET...

Its own process, so that it does not wait for whoever makes the load; and of a real-time priority
above the servers' where it may, so that what is measured is how long they take to answer, not how
long their client takes to look. Servers are asked in turns.
"""

import collections
import contextlib
import json
import os
import sys
import time

import grpc

from pycri.cri.api import runtime_v1_pb2 as cri
from pycri.cri.api import runtime_v1_pb2_grpc as cri_grpc


def main(seconds: float, interval: float, servers: dict[str, str]) -> None:
    """List until the time is over, and wait `interval` seconds after each turn."""
    # Threads that gRPC starts inherit it.
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(2))
    with contextlib.ExitStack() as stack:
        stubs = {
            name: cri_grpc.RuntimeServiceStub(
                stack.enter_context(grpc.insecure_channel(f"unix:{socket}"))
            )
            for name, socket in servers.items()
        }
        times: dict[str, dict[str, list[float]]] = {name: {} for name in servers}
        deadline = time.monotonic() + seconds
        turn = collections.deque(stubs.items())
        while time.monotonic() < deadline:
            for name, stub in turn:
                _list(stub, times[name])
            turn.rotate()  # the first finds the processor's caches full of others' work
            time.sleep(interval)
    json.dump(times, sys.stdout)


def _list(stub: cri_grpc.RuntimeServiceStub, times: dict[str, list[float]]) -> None:
    start = time.perf_counter_ns()
    stub.ListPodSandbox(cri.ListPodSandboxRequest())
    between = time.perf_counter_ns()
    stub.ListContainers(cri.ListContainersRequest())
    end = time.perf_counter_ns()
    times.setdefault("ListPodSandbox", []).append((between - start) / 1e6)
    times.setdefault("ListContainers", []).append((end - between) / 1e6)


if __name__ == "__main__":
    named = dict(argument.split("=", 1) for argument in sys.argv[3:])
    main(float(sys.argv[1]), float(sys.argv[2]), named)
