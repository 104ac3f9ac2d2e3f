# SPDX-License-Identifier: Apache-2.0
"""How much a path between two network namespaces carries: iperf3, one stream of TCP."""

import json
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
        _run(one, "ip", "link", "add", "bare0", "type", "veth", "peer", "name", "bare1")
        _run(one, "ip", "link", "set", "bare1", "netns", other.path)
        for namespace, name, address in ((one, "bare0", "1"), (other, "bare1", "2")):
            _run(namespace, "ip", "address", "add", f"10.98.0.{address}/24", "dev", name)
            _run(namespace, "ip", "link", "set", name, "up")
        yield Path(name="bare veth pair", client=one.path, server=other.path, address="10.98.0.2")


def measure(path: Path, duration_s: int) -> float:
    """Send for some seconds; return what the receiver counted, bits a second."""
    serve = ["iperf3", "--server", "--one-off", "--bind", path.address, "--json"]
    with subprocess.Popen(_inside(path.server, *serve), stdout=subprocess.DEVNULL) as server:
        try:
            wait_until(lambda: _listens(path), what="iperf3 listens")
            send = ["iperf3", "--client", path.address, "--time", str(duration_s), "--json"]
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
