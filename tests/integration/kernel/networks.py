# SPDX-License-Identifier: Apache-2.0
"""The built-in network in a host of a test's own: fixtures, traffic, and what is to be seen."""

import asyncio
import secrets
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any

import msgspec

from pycri.config import NetworkSettings
from pycri.model.ids import PodId
from pycri.model.network import Attachment
from pycri.model.pod import PodMetadata, PodSpec, PortMapping, Protocol
from pycri.network.bridge import BridgeNetwork
from pycri.network.netlink import Netlink
from pycri.state.database import Database
from tests.integration.kernel.netns import Namespace, run_as_host
from tests.world.witness import look

SETTINGS = NetworkSettings(bridge="pct-br", range="10.88.0.0/24", table="pct")
OUTSIDE_MAC = "02:00:00:00:00:02"
SPEC = PodSpec(metadata=PodMetadata(name="pod", uid="uid", namespace="tests"))
DUAL = NetworkSettings(bridge="pct-br", range="10.88.0.0/24,fd00:88::/64", table="pct")
DEADLINE_S = 10.0


def new_id() -> PodId:
    return PodId(secrets.token_hex(32))


def links() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


def pod_links() -> set[str]:
    return {name for name in links() if name.startswith("pc") and name != SETTINGS.bridge}


def addresses(interface: str) -> set[str]:
    """Return an interface's addresses but the link-local ones."""
    return {a for a in look().addresses.get(interface, set()) if not a.startswith("fe80:")}


def ruleset() -> str:
    listed = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True)
    return listed.stdout


def nft(*arguments: str) -> None:
    subprocess.run(["nft", *arguments], check=True)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def add_link(name: str) -> None:
    """Make an interface that is none of pycri's (a veth: not every kernel has the dummy)."""
    ip("link", "add", name, "type", "veth", "peer", "name", "far-end")


def address_of(attachment: Attachment) -> str:
    return attachment.addresses[0]


def host_end(attachment: Attachment) -> str:
    return attachment.interfaces[0].host_interface


async def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        await asyncio.sleep(0.01)


@asynccontextmanager
async def network(
    folder: Path, settings: NetworkSettings = SETTINGS, *, start: bool = True
) -> AsyncIterator[BridgeNetwork]:
    database = await Database.open(folder / "pycri.db")
    bridge = BridgeNetwork(settings, database)
    try:
        if start:
            await bridge.start()
        yield bridge
    finally:
        await bridge.close()
        await database.close()


async def attach(
    bridge: BridgeNetwork,
    pod: Namespace,
    pod_id: PodId | None = None,
    *,
    ports: tuple[PortMapping, ...] = (),
    annotations: dict[str, str] | None = None,
) -> Attachment:
    spec = msgspec.structs.replace(SPEC, port_mappings=ports, annotations=annotations or {})
    return await bridge.attach(pod_id or new_id(), spec, pod.path, pod.netlink_fd)


def mapping(text: str, container_port: int = 80) -> PortMapping:
    """Return the mapping of "HOST_IP:PORT/PROTOCOL", of which only the port must be there."""
    port, _, protocol = text.partition("/")
    host_ip, _, host_port = port.rpartition(":")
    return PortMapping(
        protocol=Protocol[protocol or "TCP"],
        host_port=int(host_port),
        host_ip=host_ip.strip("[]"),
        container_port=container_port,
    )


def as_host(body: Callable[[Path], Coroutine[Any, Any, None]]) -> Callable[[Path], None]:
    """Make a coroutine a test that runs in a host of its own."""

    def test(tmp_path: Path) -> None:
        run_as_host(lambda: body(tmp_path))

    test.__name__, test.__doc__ = body.__name__, body.__doc__
    return test


def exchange(listener: socket.socket, connect: Callable[[], socket.socket]) -> str:
    """Connect to `listener`, pass a line each way, return the address the listener saw."""
    with connect() as client:
        server, (peer, *_) = listener.accept()
        with server:
            client.sendall(b"ping")
            assert server.recv(4) == b"ping"
            server.sendall(b"pong")
            assert client.recv(4) == b"pong"
    return str(peer)


@asynccontextmanager
async def outside(
    address: str = "192.0.2.2/24", host: str = "192.0.2.1/24", *, name: str = "up0"
) -> AsyncIterator[Namespace]:
    """Yield another host on a cable of its own; its way to everybody else is this host.

    Addresses are of one family. The cable's end here is called `name`.
    """
    with Namespace() as other:
        ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", other.path)
        ip("address", "add", host, "dev", name, *nodad(host))
        ip("link", "set", name, "up")
        with Netlink.borrow_route(other.netlink_fd) as netlink:
            gateway = ip_address(host.partition("/")[0])
            netlink.configure_pod([ip_interface(address)], [gateway], OUTSIDE_MAC)
        with Netlink.open_route() as netlink:
            netlink.wait_running(name)
        yield other


def nodad(address: str) -> tuple[str, ...]:
    """Return what makes an address of IPv6 good at once."""
    return ("nodad",) if ":" in address else ()


def sysctl(name: str, value: str | None = None) -> str:
    """Read a setting of the thread's network namespace, or write it."""
    file = Path("/proc/sys", name)
    if value is not None:
        file.write_text(value)
    return file.read_text().strip()
