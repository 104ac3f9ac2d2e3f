# SPDX-License-Identifier: Apache-2.0
"""A client in a process of its own that lists, and prints what each call took: JSON, milliseconds.

    python -m tests.performance.lister SOCKET SECONDS INTERVAL

Its own process, so that it does not wait for whoever makes the load.
"""

import json
import sys
import time
from collections.abc import Callable

import grpc

from pycri.cri.api import runtime_v1_pb2 as cri
from pycri.cri.api import runtime_v1_pb2_grpc as cri_grpc


def main(socket: str, seconds: float, interval: float) -> None:
    """List until the time is over, each call `interval` seconds after the one before."""
    with grpc.insecure_channel(f"unix:{socket}") as channel:
        runtime = cri_grpc.RuntimeServiceStub(channel)
        calls: dict[str, Callable[[], object]] = {
            "ListPodSandbox": lambda: runtime.ListPodSandbox(cri.ListPodSandboxRequest()),
            "ListContainers": lambda: runtime.ListContainers(cri.ListContainersRequest()),
        }
        times: dict[str, list[float]] = {name: [] for name in calls}
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for name, call in calls.items():
                start = time.perf_counter_ns()
                call()
                times[name].append((time.perf_counter_ns() - start) / 1e6)
            time.sleep(interval)
    json.dump(times, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]))
