# SPDX-License-Identifier: Apache-2.0
"""How much a path between two network namespaces carries: iperf3, one stream of TCP.

Sender and receiver have a processor each, the same for all paths: where the scheduler moves them
to meanwhile would else decide more than the path.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from tests.integration.kernel.netns import Namespace
from tests.world.daemon import wait_until

_PORT = 5201


class Path(msgspec.Struct, frozen=True, kw_only=True):
    """A way to send. client, server: paths of namespaces; address: the server's."""

    name: str
    client: str
    server: str
    address: str


@contextmanager
def bare_veth_pair() -> Iterator[Path]:
    """Two namespaces with a veth pair between them, and nothing else."""
    with Namespace() as one, Namespace() as other:
        _run(one, "ip", "link", "add", "eth0", "type", "veth", *_peer(other))
        addresses = [_configure(one, "10.98.0.1"), _configure(other, "10.98.0.2")]
        yield _path("bare veth pair", one, other, addresses)


@contextmanager
def plain_bridge() -> Iterator[Path]:
    """Two namespaces on a bridge of ours, and no rule at all."""
    subprocess.run(["ip", "link", "add", "plain0", "type", "bridge"], check=True)
    try:
        subprocess.run(["ip", "link", "set", "plain0", "up"], check=True)
        with Namespace() as one, Namespace() as other:
            addresses = []
            for name, namespace, address in (
                ("one", one, "10.98.1.1"),
                ("two", other, "10.98.1.2"),
            ):
                pair = ["ip", "link", "add", f"plain-{name}", "type", "veth", *_peer(namespace)]
                subprocess.run(pair, check=True)
                up = ["ip", "link", "set", f"plain-{name}", "master", "plain0", "up"]
                subprocess.run(up, check=True)
                addresses.append(_configure(namespace, address))
            yield _path("two veth pairs on a plain bridge", one, other, addresses)
    finally:
        subprocess.run(["ip", "link", "delete", "plain0"], check=True)


def _peer(namespace: Namespace) -> list[str]:
    return ["peer", "name", "eth0", "netns", namespace.path]


def _configure(namespace: Namespace, address: str) -> str:
    _run(namespace, "ip", "address", "add", f"{address}/24", "dev", "eth0")
    _run(namespace, "ip", "link", "set", "eth0", "up")
    return address


def _path(name: str, one: Namespace, other: Namespace, addresses: list[str]) -> Path:
    return Path(name=name, client=one.path, server=other.path, address=addresses[1])


def measure(path: Path, duration_s: int) -> float:
    """Send for some seconds; return what the receiver counted, bits a second."""
    serve = ["iperf3", "--server", "--one-off", "--bind", path.address, "--json"]
    with subprocess.Popen(_inside(path.server, *serve), stdout=subprocess.DEVNULL) as server:
        try:
            wait_until(lambda: _listens(path), what="iperf3 listens")
            send = ["iperf3", "--client", path.address, "--time", str(duration_s), "--json"]
            processors = sorted(os.sched_getaffinity(0))
            send += ["--affinity", f"{processors[0]},{processors[-1]}"]
            done = subprocess.run(
                _inside(path.client, *send), capture_output=True, text=True, check=True
            )
            return float(json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"])
        finally:
            server.terminate()


def _listens(path: Path) -> bool:
    listening = _inside(path.server, "ss", "-Hltn", f"sport = :{_PORT}")
    return bool(subprocess.run(listening, capture_output=True, check=True).stdout)


def _inside(namespace: str, *command: str) -> list[str]:
    return ["nsenter", f"--net={namespace}", *command]


def _run(namespace: Namespace, *command: str) -> None:
    subprocess.run(_inside(namespace.path, *command), check=True)
