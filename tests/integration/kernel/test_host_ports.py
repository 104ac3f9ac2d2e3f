# SPDX-License-Identifier: Apache-2.0
"""Ports of the host that lead to pods, with real traffic from everywhere."""

import socket
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pycri import errors
from pycri.model.pod import PortMapping
from pycri.network.bridge import BridgeNetwork
from tests.integration.kernel.netns import Namespace
from tests.integration.kernel.networks import (
    DUAL,
    add_link,
    as_host,
    attach,
    exchange,
    ip,
    mapping,
    network,
    new_id,
    outside,
    ruleset,
)

POD = "10.88.0.2"
POD6 = "fd00:88::2"


def connect(address: str, port: int = 8080) -> socket.socket:
    return socket.create_connection((address, port), timeout=5)


def refused(client: Namespace, address: str, port: int = 8080) -> bool:
    try:
        client.connect(address, port).close()
    except (ConnectionRefusedError, TimeoutError):
        return True
    return False


def udp(address: str = "") -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(5)
    return sock


def udp_server(namespace: Namespace, address: str, port: int) -> socket.socket:
    def bind() -> socket.socket:
        sock = udp(address)
        sock.bind((address, port))
        return sock

    return namespace.run(bind)


@pytest.fixture(params=["routed", "bridged"])
def translation(request: pytest.FixtureRequest) -> Callable[[], None]:
    """Have the host translate the addresses of packets that it bridges, or not (br_netfilter)."""

    def switch() -> None:
        for name in ("iptables", "ip6tables"):
            file = Path(f"/proc/sys/net/bridge/bridge-nf-call-{name}")
            if file.exists():
                file.write_text("1" if request.param == "bridged" else "0")

    return switch


def test_a_host_port_leads_to_the_pod_from_everywhere(
    tmp_path: Path, translation: Callable[[], None]
) -> None:
    """From another host, the host by any address and by loopback, another pod, the pod itself."""

    @as_host
    async def body(folder: Path) -> None:
        translation()
        with Namespace() as pod, Namespace() as other:
            async with outside() as far, network(folder, DUAL) as bridge:
                await attach(bridge, pod, ports=(mapping(":8080"),))
                await attach(bridge, other)
                with pod.listen("0.0.0.0") as listener:
                    assert exchange(listener, lambda: far.connect("192.0.2.1", 8080)) == "192.0.2.2"
                    assert exchange(listener, lambda: connect("192.0.2.1")) == "192.0.2.1"
                    assert exchange(listener, lambda: connect("10.88.0.1")) == "10.88.0.1"
                    # Nobody can answer 127.0.0.1: the pod sees the gateway.
                    for loopback in ("127.0.0.1", "127.1.2.3", "localhost"):
                        assert exchange(listener, lambda: connect(loopback)) == "10.88.0.1"  # noqa: B023
                    for client in (other, pod):
                        for address in ("192.0.2.1", "10.88.0.1"):
                            seen = exchange(listener, lambda: client.connect(address, 8080))  # noqa: B023
                            assert seen == "10.88.0.1"

    body(tmp_path)


def test_a_host_port_of_ipv6_leads_to_the_pod_from_everywhere(
    tmp_path: Path, translation: Callable[[], None]
) -> None:
    """But not from [::1]: the kernel lets no answer in to it. It is refused at once."""

    @as_host
    async def body(folder: Path) -> None:
        translation()
        with Namespace() as pod, Namespace() as other:
            cable = outside("2001:db8::2/64", "2001:db8::1/64")
            async with cable as far, network(folder, DUAL) as bridge:
                await attach(bridge, pod, ports=(mapping(":8080"),))
                await attach(bridge, other)
                with pod.listen("::") as listener:
                    seen = exchange(listener, lambda: far.connect("2001:db8::1", 8080))
                    assert seen == "2001:db8::2"
                    assert exchange(listener, lambda: connect("2001:db8::1")) == "2001:db8::1"
                    assert exchange(listener, lambda: connect("fd00:88::1")) == "fd00:88::1"
                    for client in (other, pod):
                        seen = exchange(listener, lambda: client.connect("2001:db8::1", 8080))  # noqa: B023
                        assert seen == "fd00:88::1"
                    with pytest.raises(ConnectionRefusedError):
                        connect("::1")

    body(tmp_path)


@as_host
async def test_a_host_ip_is_the_only_one_that_leads_to_the_pod(folder: Path) -> None:
    with Namespace() as first, Namespace() as second:
        async with outside() as far, network(folder) as bridge:
            ip("address", "add", "192.0.2.7/24", "dev", "up0")
            await attach(bridge, first, ports=(mapping("192.0.2.1:8080"),))
            await attach(bridge, second, ports=(mapping("192.0.2.7:8080"),))
            with first.listen("0.0.0.0") as one, second.listen("0.0.0.0") as two:
                exchange(one, lambda: far.connect("192.0.2.1", 8080))
                exchange(two, lambda: far.connect("192.0.2.7", 8080))
                exchange(two, lambda: connect("192.0.2.7"))
                assert refused(far, "10.88.0.1")
            assert refused(far, "192.0.2.1", 8081)


@as_host
async def test_what_goes_through_the_host_to_others_is_not_led_astray(folder: Path) -> None:
    with Namespace() as pod, Namespace() as client:
        async with outside() as far, network(folder) as bridge:
            await attach(bridge, pod, ports=(mapping(":8080"),))
            await attach(bridge, client)
            with far.listen("192.0.2.2", 8080) as listener, pod.listen("0.0.0.0", 80):
                assert exchange(listener, lambda: client.connect("192.0.2.2", 8080)) == "192.0.2.1"
                assert exchange(listener, lambda: connect("192.0.2.2")) == "192.0.2.1"


@as_host
async def test_udp_of_a_host_port_is_answered(folder: Path) -> None:
    with Namespace() as pod:
        async with outside() as far, network(folder, DUAL) as bridge:
            await attach(bridge, pod, ports=(mapping(":5353/UDP", 53),))
            for here, target in (("0.0.0.0", "192.0.2.1"), ("::", "fd00:88::1")):
                client = far.run(udp) if target == "192.0.2.1" else udp(target)
                with udp_server(pod, here, 53) as server, client:
                    client.sendto(b"question", (target, 5353))
                    question, peer = server.recvfrom(100)
                    server.sendto(b"answer", peer)
                    answer, sender = client.recvfrom(100)
                    assert (question, answer) == (b"question", b"answer")
                    assert sender[:2] == (target, 5353)


def sctp_packet(source: int, destination: int, tag: int, chunk: bytes) -> bytes:
    """Return an SCTP packet (RFC 9260) of one chunk, with its checksum."""
    head = struct.pack("!HHI", source, destination, tag)
    return head + struct.pack("<I", crc32c(head + bytes(4) + chunk)) + chunk


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def sctp_init(kind: int) -> bytes:
    return struct.pack("!BBHIIHHI", kind, 0, 20, 1, 65536, 1, 1, 1)


@as_host
async def test_sctp_of_a_host_port_is_answered(folder: Path) -> None:
    """Raw sockets stand in for SCTP's own, which not every kernel has; the packets are real."""

    def raw() -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, 132)
        sock.settimeout(5)
        return sock

    with Namespace() as pod:
        async with outside() as far, network(folder) as bridge:
            await attach(bridge, pod, ports=(mapping(":7000/SCTP", 36412),))
            with pod.run(raw) as server, far.run(raw) as client:
                client.sendto(sctp_packet(1234, 7000, 0, sctp_init(1)), ("192.0.2.1", 0))
                packet, peer = server.recvfrom(1000)
                assert peer[0] == "192.0.2.2"
                sctp = packet[20:]
                assert struct.unpack_from("!HH", sctp) == (1234, 36412)
                assert sctp == sctp_packet(1234, 36412, 0, sctp_init(1)), (
                    "the checksum was made anew"
                )
                server.sendto(sctp_packet(36412, 1234, 1, sctp_init(2)), peer)
                packet, sender = client.recvfrom(1000)
                assert sender[0] == "192.0.2.1"
                assert struct.unpack_from("!HH", packet[20:]) == (7000, 1234)


@as_host
async def test_udp_clients_that_keep_their_port_follow_the_pods(folder: Path) -> None:
    """The kernel treats a flow's packets as its first: flows of before must be forgotten."""
    first_id = new_id()
    port = (mapping(":5353/UDP", 53),)
    async with outside() as far, network(folder) as bridge:
        with far.run(udp) as client:
            client.connect(("192.0.2.1", 5353))
            client.send(b"before any pod")  # a flow to the host itself
            with pytest.raises(ConnectionRefusedError):
                client.recv(100)
            with Namespace() as first:
                await attach(bridge, first, first_id, ports=port)
                with udp_server(first, "0.0.0.0", 53) as server:
                    client.send(b"to the first")
                    assert server.recv(100) == b"to the first"
                await bridge.detach(first_id)
                with Namespace() as second:
                    await attach(bridge, second, ports=port)
                    with udp_server(second, "0.0.0.0", 53) as server:
                        client.send(b"to the second")
                        assert server.recv(100) == b"to the second"


@as_host
async def test_flows_to_others_of_the_same_port_are_kept(folder: Path) -> None:
    with Namespace() as pod, Namespace() as client:
        async with outside() as far, network(folder) as bridge:
            await attach(bridge, client)
            with udp_server(far, "192.0.2.2", 5353) as server, client.run(udp) as sock:
                sock.sendto(b"1", ("192.0.2.2", 5353))
                _, before = server.recvfrom(10)
                pod_id = new_id()
                await attach(bridge, pod, pod_id, ports=(mapping(":5353/UDP"),))
                await bridge.detach(pod_id)
                sock.sendto(b"2", ("192.0.2.2", 5353))
                assert server.recvfrom(10) == (b"2", before)


@pytest.mark.parametrize(
    ("held", "wanted"),
    [
        (":8080", ":8080"),
        (":8080", "192.0.2.1:8080"),
        ("192.0.2.1:8080", ":8080"),
        ("0.0.0.0:8080", "192.0.2.1:8080"),
        ("192.0.2.1:8080", "192.0.2.1:8080"),
        ("[::]:8080", "[fd00::1]:8080"),
        (":8080", "[::]:8080"),
        ("[fd00:0::1]:8080", "[fd00::0:1]:8080"),
    ],
)
def test_a_port_that_another_pod_has_is_refused(tmp_path: Path, held: str, wanted: str) -> None:
    @as_host
    async def body(folder: Path) -> None:
        holder = new_id()
        with Namespace() as first, Namespace() as second:
            async with network(folder, DUAL) as bridge:
                await attach(bridge, first, holder, ports=(mapping(held),))
                before = ruleset()
                with pytest.raises(errors.AlreadyExists, match=f":8080/TCP: pod {holder} has"):
                    await attach(bridge, second, ports=(mapping(":81"), mapping(wanted)))
                assert ruleset() == before
                await bridge.detach(holder)
                await attach(bridge, second, ports=(mapping(wanted),))  # at once

    body(tmp_path)


@pytest.mark.parametrize(
    ("held", "wanted"),
    [
        (":8080", ":8080/UDP"),
        (":8080", ":8081"),
        ("192.0.2.1:8080", "192.0.2.2:8080"),
        ("0.0.0.0:8080", "[::]:8080"),
    ],
)
def test_ports_that_do_not_exclude_each_other_are_given(
    tmp_path: Path, held: str, wanted: str
) -> None:
    @as_host
    async def body(folder: Path) -> None:
        with Namespace() as first, Namespace() as second:
            async with network(folder, DUAL) as bridge:
                await attach(bridge, first, ports=(mapping(held),))
                await attach(bridge, second, ports=(mapping(wanted),))

    body(tmp_path)


async def check_refused(bridge: BridgeNetwork, pod: Namespace, *ports: PortMapping) -> str:
    with pytest.raises(errors.InvalidRequest) as caught:
        await attach(bridge, pod, ports=ports)
    return str(caught.value)


@as_host
async def test_a_pod_that_asks_twice_or_for_an_unknown_family_is_refused(folder: Path) -> None:
    with Namespace() as pod:
        async with network(folder) as bridge:
            said = await check_refused(bridge, pod, mapping(":80"), mapping("192.0.2.1:80", 81))
            assert "config.port_mappings[1].host_port: 192.0.2.1:80/TCP is asked for twice" in said
            said = await check_refused(bridge, pod, mapping("[fd00::1]:80"))
            assert "config.port_mappings.host_ip: fd00::1: pods have no IPv6 address" in said
            said = await check_refused(bridge, pod, mapping("[::1]:80"))
            assert "config.port_mappings[0].host_ip: the kernel leads nothing from ::1" in said
            await attach(bridge, pod, ports=(mapping(":0"), mapping(":0")))  # none of the host's


@as_host
async def test_the_hosts_loopback_is_closed_to_pods_and_to_others(folder: Path) -> None:
    """route_localnet lets the host reach pods by 127.0.0.1; it must not work the other way."""
    with Namespace() as pod:
        async with outside() as far, network(folder) as bridge:
            await attach(bridge, pod, ports=(mapping("127.0.0.1:8080"),))
            with pod.listen("0.0.0.0") as listener:
                exchange(listener, lambda: connect("127.0.0.1"))
            assert refused(far, "192.0.2.1")
            with socket.create_server(("127.0.0.1", 9999)) as secret:
                secret.settimeout(0.3)
                for client, gateway in ((pod, "10.88.0.1"), (far, "192.0.2.1")):
                    ip_in(client, "route", "add", "127.0.0.0/8", "via", gateway, "table", "main")
                    ip_in(client, "rule", "del", "from", "all", "lookup", "local")
                    ip_in(client, "rule", "add", "from", "all", "lookup", "local", "pref", "40000")
                    sock = client.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
                    with sock:
                        sock.setblocking(False)
                        sock.connect_ex(("127.0.0.1", 9999))
                        with pytest.raises(TimeoutError):
                            secret.accept()


def ip_in(namespace: Namespace, *arguments: str) -> None:
    namespace.run(lambda: subprocess.run(["ip", *arguments], check=True))


@as_host
async def test_ports_outlive_the_daemon_and_go_with_the_pod(folder: Path) -> None:
    pod_id = new_id()
    add_link("lan")
    ip("address", "add", "192.0.2.1/24", "dev", "lan")
    with Namespace() as pod:
        async with network(folder, DUAL) as bridge:
            await attach(bridge, pod, pod_id, ports=(mapping(":8080"), mapping("192.0.2.1:81/UDP")))
            before = ruleset()
        async with network(folder, DUAL) as bridge:
            await bridge.reconcile(frozenset({pod_id}))
            assert ruleset() == before
            with pod.listen("0.0.0.0") as listener:
                exchange(listener, lambda: connect("192.0.2.1"))
            await bridge.detach(pod_id)
            after = ruleset()
            assert "8080" not in after
            assert "192.0.2.1" not in after
