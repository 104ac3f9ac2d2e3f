# SPDX-License-Identifier: Apache-2.0
"""CNI with Debian's plugins and real traffic: host and pods are network namespaces."""

import secrets
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pycri import errors
from pycri.model.ids import PodId
from pycri.model.network import Attachment
from pycri.model.pod import PodMetadata, PodSpec, PortMapping, Protocol
from pycri.network.annotations import ADDRESSES, EGRESS, INGRESS, MAC
from pycri.network.cni.arguments import NETWORKS
from pycri.network.cni.network import CniNetwork
from pycri.state.database import Database
from tests.integration.kernel.netns import Namespace, run_as_host, until
from tests.world.cni import DEBIAN_PLUGINS, CniFolders

SPEC = PodSpec(metadata=PodMetadata(name="web", uid="web-uid", namespace="shop"))
PORTS = (PortMapping(container_port=80, host_port=8080, protocol=Protocol.TCP),)

pytestmark = pytest.mark.skipif(
    not Path(DEBIAN_PLUGINS, "bridge").exists() or shutil.which("iptables") is None,
    reason="needs Debian's containernetworking-plugins and iptables; see scripts/setup",
)


def new_id() -> PodId:
    return PodId(secrets.token_hex(32))


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout


@asynccontextmanager
async def network(folders: CniFolders) -> AsyncIterator[CniNetwork]:
    database = await Database.open(folders.folder / "pycri.db")
    cni = CniNetwork(folders.settings(), database, mark=str(folders.folder))
    try:
        await cni.start()
        yield cni
    finally:
        await cni.close()
        await database.close()


async def attach(
    cni: CniNetwork, pod: Namespace, pod_id: PodId | None = None, **fields: Any
) -> Attachment:
    spec = msgspec.structs.replace(SPEC, **fields)
    return await cni.attach(pod_id or new_id(), spec, pod.path, pod.netlink_fd)


def as_host(body: Callable[[CniFolders], Coroutine[Any, Any, None]]) -> Callable[[Path], None]:
    """Make a coroutine a test that runs in a host of its own."""

    def test(tmp_path: Path) -> None:
        run_as_host(lambda: body(CniFolders(tmp_path / "cni")))

    test.__name__, test.__doc__ = body.__name__, body.__doc__
    return test


def write_bridge(
    folders: CniFolders,
    *chain: dict[str, Any],
    name: str = "pods",
    file: str = "10-pods.conflist",
    subnets: tuple[str, ...] = ("10.77.1.0/24",),
    version: str = "1.0.0",
    capabilities: dict[str, bool] | None = None,
) -> Path:
    """Write a conflist of the bridge plugin; return the folder of the addresses in use."""
    ipam = {
        "type": "host-local",
        "dataDir": str(folders.folder / "addresses"),
        "ranges": [[{"subnet": subnet}] for subnet in subnets],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {
        "type": "bridge",
        "bridge": f"ct-{name}",
        "isGateway": True,
        "hairpinMode": True,
        "ipam": ipam,
        "capabilities": capabilities or {},
    }
    folders.write(file, {"cniVersion": version, "name": name, "plugins": [bridge, *chain]})
    return folders.folder / "addresses" / name


def held_addresses(folder: Path) -> list[str]:
    """Return the addresses that host-local has given."""
    return sorted(p.name for p in folder.iterdir() if p.name[0].isdigit())


def exchange(listener: socket.socket, connect: Callable[[], socket.socket]) -> None:
    """Connect to `listener` and pass a line each way."""
    with connect() as client:
        server, _ = listener.accept()
        with server:
            client.sendall(b"ping")
            assert server.recv(4) == b"ping"
            server.sendall(b"pong")
            assert client.recv(4) == b"pong"


PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}}


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0"])
def test_pods_on_debians_plugins_reach_each_other_and_leave_nothing(
    tmp_path: Path, version: str
) -> None:
    async def body() -> None:
        folders = CniFolders(tmp_path / "cni")
        chain: list[dict[str, Any]] = [
            {"type": "loopback"},
            {"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}},
            PORTMAP,
        ]
        if version != "0.3.1":  # which the firewall plugin does not speak
            chain.append({"type": "firewall", "backend": "iptables"})
        given = write_bridge(folders, *chain, version=version)
        with Namespace() as first, Namespace() as second:
            async with network(folders) as cni:
                ids = new_id(), new_id()
                one = await attach(cni, first, ids[0], port_mappings=PORTS)
                two = await attach(cni, second, ids[1])
                assert (one.addresses, two.addresses) == (("10.77.1.2",), ("10.77.1.3",))
                assert one.interfaces[0].host_interface.startswith("veth")
                assert one.interfaces[0].mac
                with first.listen("0.0.0.0") as listener:
                    exchange(listener, lambda: second.connect("10.77.1.2"))
                    exchange(listener, lambda: first.connect("127.0.0.1"))
                    exchange(listener, lambda: socket.create_connection(("10.77.1.1", 8080), 5))
                assert second.run(lambda: read("/proc/sys/net/core/somaxconn")) == "500"
                assert held_addresses(given) == ["10.77.1.2", "10.77.1.3"]
                for pod_id in ids:
                    await cni.detach(pod_id)
        assert held_addresses(given) == []
        assert "8080" not in run("iptables-save")
        assert "10.77.1.2" not in run("iptables-save")

    run_as_host(body)


def read(path: str) -> str:
    return Path(path).read_text().strip()


@as_host
async def test_a_pod_has_the_addresses_of_both_families_ipv4_first(folders: CniFolders) -> None:
    write_bridge(folders, subnets=("fd77:1::/64", "10.77.1.0/24"))
    with Namespace() as pod:
        async with network(folders) as cni:
            pod_id = new_id()
            made = await attach(cni, pod, pod_id)
            assert made.addresses == ("10.77.1.2", "fd77:1::2")
            assert [ip_interface(a).network.prefixlen for a in made.interfaces[0].addresses] == [
                24,
                64,
            ]
            await cni.detach(pod_id)


@as_host
async def test_a_pod_on_several_networks_has_an_interface_on_each(folders: CniFolders) -> None:
    write_bridge(folders, PORTMAP)
    given = write_bridge(
        folders, PORTMAP, name="store", file="20-store.conflist", subnets=("10.77.2.0/24",)
    )
    with Namespace() as first, Namespace() as second:
        async with network(folders) as cni:
            ids = new_id(), new_id()
            wanted = {"annotations": {NETWORKS: "store, pods"}, "port_mappings": PORTS}
            one = await attach(cni, first, ids[0], **wanted)
            await attach(cni, second, ids[1])
            assert [entry.name for entry in one.interfaces] == ["eth0", "eth1", "eth2"]
            assert one.addresses == ("10.77.1.2", "10.77.2.2", "10.77.1.3")
            with first.listen("0.0.0.0") as listener:
                exchange(listener, lambda: second.connect("10.77.1.2"))
                exchange(listener, lambda: socket.create_connection(("10.77.2.2", 80), 5))
            for pod_id in ids:
                await cni.detach(pod_id)
    assert held_addresses(given) == []


@as_host
async def test_a_network_that_is_not_there_is_refused_by_its_name(folders: CniFolders) -> None:
    given = write_bridge(folders)
    folders.conf_dir.joinpath("20-bad.conflist").write_text("{")
    with Namespace() as pod:
        async with network(folders) as cni:
            with pytest.raises(errors.InvalidRequest) as caught:
                await attach(cni, pod, annotations={NETWORKS: "store"})
    assert caught.value.field == f"config.annotations[{NETWORKS}]"
    assert "there is no network 'store'" in caught.value.reason
    assert "20-bad.conflist: not JSON" in caught.value.reason
    assert not given.exists()


@as_host
async def test_bandwidth_is_limited_as_the_annotations_say(folders: CniFolders) -> None:
    write_bridge(folders, {"type": "bandwidth", "capabilities": {"bandwidth": True}})
    with Namespace() as pod:
        async with network(folders) as cni:
            pod_id = new_id()
            limits = {INGRESS: "20M", EGRESS: "1Gi"}
            made = await attach(cni, pod, pod_id, annotations=limits)
            host_end = made.interfaces[0].host_interface
            assert "rate 20Mbit" in run("tc", "qdisc", "show", "dev", host_end)
            assert "rate 1073Mbit" in run("tc", "qdisc", "show").replace("1073741Kbit", "1073Mbit")
            await cni.detach(pod_id)
            assert "rate" not in run("tc", "qdisc", "show")


@as_host
async def test_a_pod_may_ask_for_an_address_and_a_mac(folders: CniFolders) -> None:
    write_bridge(folders, capabilities={"ips": True, "mac": True})
    with Namespace() as pod:
        async with network(folders) as cni:
            pod_id = new_id()
            wish = {ADDRESSES: "10.77.1.50", MAC: "02:00:00:00:00:50"}
            (interface,) = (await attach(cni, pod, pod_id, annotations=wish)).interfaces
            assert interface.addresses == ("10.77.1.50/24",)
            assert interface.mac == "02:00:00:00:00:50"
            await cni.detach(pod_id)


@as_host
async def test_a_check_finds_what_others_took_away(folders: CniFolders) -> None:
    write_bridge(folders)
    with Namespace() as pod:
        async with network(folders) as cni:
            pod_id = new_id()
            await attach(cni, pod, pod_id)
            assert await cni.check() == []
            pod.run(lambda: run("ip", "address", "flush", "dev", "eth0"))
            (finding,) = await cni.check()
            assert finding.startswith(f"pod {pod_id}: eth0: CNI CHECK of plugin bridge")
            await cni.detach(pod_id)
            assert await cni.check() == []


@as_host
async def test_an_address_comes_back_though_the_namespace_has_gone(folders: CniFolders) -> None:
    given = write_bridge(folders, PORTMAP)
    async with network(folders) as cni:
        pod_id = new_id()
        with Namespace() as pod:
            await attach(cni, pod, pod_id, port_mappings=PORTS)
        await cni.detach(pod_id)
        await until(lambda: cni.idle, "freed")
    assert held_addresses(given) == []
    assert "8080" not in run("iptables-save")


@as_host
async def test_an_exhausted_range_is_the_plugins_own_word(folders: CniFolders) -> None:
    given = write_bridge(folders, subnets=("10.77.1.0/30",))
    with Namespace() as first, Namespace() as second:
        async with network(folders) as cni:
            pod_id = new_id()
            await attach(cni, first, pod_id)
            with pytest.raises(errors.SetupFailed, match="no IP addresses available in range"):
                await attach(cni, second)
            assert held_addresses(given) == ["10.77.1.2"]
            await cni.detach(pod_id)
