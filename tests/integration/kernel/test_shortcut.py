# SPDX-License-Identifier: Apache-2.0
"""The short way from pod to pod, with real traffic: when it is taken, and what does not take it.

Others' rules are the witness: where they drop all that bridges carry of a protocol, it arrives
only by the short way.
"""

import contextlib
import socket
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path

import msgspec
import pytest

from pycri.model.ids import PodId
from pycri.model.network import Attachment
from pycri.network.annotations import ADDRESSES, INGRESS, MAC
from pycri.network.bridge import BridgeNetwork
from tests.integration.kernel.netns import Namespace
from tests.integration.kernel.networks import (
    DUAL,
    as_host,
    attach,
    exchange,
    host_end,
    ip,
    network,
    new_id,
    nft,
    sysctl,
    until,
)
from tests.integration.kernel.test_spoofing import IPV4, IPV6, STRANGER, Speaker, frame, ipv4

IP_TABLES, IP6_TABLES = (f"net/bridge/bridge-nf-call-{name}" for name in ("iptables", "ip6tables"))
SENT_BYTES = 4 << 20
WANTED_BITS = 40_000_000


class Pod(msgspec.Struct, frozen=True):
    """A pod that is attached."""

    inside: Namespace
    id: PodId
    attachment: Attachment

    @property
    def addresses(self) -> tuple[str, ...]:
        return self.attachment.addresses

    @property
    def mac(self) -> str:
        return self.attachment.interfaces[0].mac


def open_way(value: str = "0") -> None:
    """Say whether this host's IP tables are to see what bridges carry."""
    if has_br_netfilter():
        sysctl(IP_TABLES, value)
        sysctl(IP6_TABLES, value)


def has_br_netfilter() -> bool:
    return Path("/proc/sys", IP_TABLES).exists()


@asynccontextmanager
async def two_pods(folder: Path, *annotations: dict[str, str]) -> AsyncIterator[tuple[Pod, Pod]]:
    """Yield two pods of a host that does not look at what bridges carry."""
    open_way()
    async with pods_on(folder, *annotations) as (_, one, other):
        yield one, other


@asynccontextmanager
async def pods_on(
    folder: Path, *annotations: dict[str, str]
) -> AsyncIterator[tuple[BridgeNetwork, Pod, Pod]]:
    wishes = [*annotations, {}, {}]
    with Namespace() as first, Namespace() as second:
        async with network(folder, DUAL) as bridge:
            pods = []
            for inside, wish in zip((first, second), wishes, strict=False):
                pod_id = new_id()
                attached = await attach(bridge, inside, pod_id, annotations=wish)
                pods.append(Pod(inside, pod_id, attached))
            yield bridge, pods[0], pods[1]


def drop_what_bridges_carry(protocols: str = "tcp, udp, sctp") -> None:
    rules = f"add rule bridge witness carried meta l4proto {{ {protocols} }} drop"
    chain = "{ type filter hook prerouting priority -500; }"
    nft("add table bridge witness")
    nft(f"add chain bridge witness carried {chain}")
    nft(rules)


def run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def talk(one: Pod, other: Pod, address: str) -> None:
    with other.inside.listen(address) as listener:
        exchange(listener, lambda: one.inside.connect(address))


def talks(one: Pod, other: Pod, address: str) -> bool:
    """Tell whether a connection to the other's address comes about, in half a second."""
    with other.inside.listen(address):
        try:
            one.inside.run(lambda: socket.create_connection((address, 80), timeout=0.5)).close()
        except TimeoutError:
            return False
    return True


def datagram_socket(pod: Pod, address: str) -> socket.socket:
    def make() -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM)
        sock.bind((address, 0))
        sock.settimeout(5)
        return sock

    return pod.inside.run(make)


def hear_to_end(listener: socket.socket) -> bytes:
    """Return all that comes before a packet with "end" in it."""
    heard = b""
    while b"end" not in (packet := listener.recv(2000)):
        heard += packet
    return heard


@as_host
async def test_tcp_and_udp_of_both_families_take_the_short_way(folder: Path) -> None:
    async with two_pods(folder) as (one, other):
        drop_what_bridges_carry()
        for ours, theirs in zip(one.addresses, other.addresses, strict=True):
            talk(one, other, theirs)
            talk(other, one, ours)
            with datagram_socket(one, ours) as client, datagram_socket(other, theirs) as server:
                client.sendto(b"ping", server.getsockname())
                assert server.recvfrom(10) == (b"ping", client.getsockname())
                server.sendto(b"pong", client.getsockname())
                assert client.recv(10) == b"pong"


@as_host
async def test_packets_take_the_bridge_while_the_hosts_ip_tables_are_to_see_them(
    folder: Path,
) -> None:
    if not has_br_netfilter():
        pytest.skip("this kernel has no br_netfilter")
    open_way()
    sysctl(IP6_TABLES, "1")
    async with pods_on(folder) as (bridge, one, other):
        talk(one, other, other.addresses[0])
        drop_what_bridges_carry()
        pods = frozenset({one.id, other.id})
        assert not talks(one, other, other.addresses[0])
        for value in ("0", "1", "0"):
            sysctl(IP6_TABLES, value)
            assert await bridge.check() == [
                "the short way between pods is not as the host asks for it"
            ]
            await bridge.reconcile(pods)
            assert await bridge.check() == []
            for address in other.addresses:
                assert talks(one, other, address) == (value == "0")
        open_way("1")
        with Namespace() as third:
            await attach(bridge, third)  # which looks, too
            assert not talks(one, other, other.addresses[0])


@as_host
async def test_a_service_between_pods_of_one_node_is_translated_back_either_way(
    folder: Path,
) -> None:
    service = "10.96.0.10"
    async with pods_on(folder) as (bridge, one, other):
        # As kube-proxy does it. Nothing of it is in the pods.
        nft("add table ip proxy")
        nft("add chain ip proxy services { type nat hook prerouting priority -100; }")
        nft(f"add rule ip proxy services ip daddr {service} dnat to {other.addresses[0]}")
        for value in ("1", "0", "1"):
            open_way(value)
            await bridge.reconcile(frozenset({one.id, other.id}))
            with other.inside.listen(other.addresses[0]) as listener:
                exchange(listener, lambda: one.inside.connect(service))


@as_host
async def test_what_is_not_the_pods_own_does_not_take_it(folder: Path) -> None:
    async with two_pods(folder) as (one, other):
        to = bytes.fromhex(other.mac.replace(":", ""))
        with (
            contextlib.closing(Speaker(one.inside, one.attachment)) as speaker,
            contextlib.closing(other.inside.run(eth0_socket)) as listener,
        ):
            mac, own4, own6 = speaker.mac, speaker.address, speaker.address6
            inner = IPV4.to_bytes(2, "big") + ipv4(own4, b"marker")
            for sent in (
                frame(IPV4, ipv4("10.88.0.9", b"marker"), mac, to),
                frame(IPV4, ipv4(own4, b"marker"), STRANGER, to),
                frame(IPV6, udp6("fd00:88::9", b"marker"), mac, to),
                frame(IPV6, udp6(own6, b"marker"), STRANGER, to),
                frame(0x8100, b"\0\1" + inner, mac, to),
                frame(0x88CC, b"marker", mac, to),
            ):
                speaker.send(sent)
            drop_what_bridges_carry()
            speaker.send(frame(IPV6, udp6(own6, b"end"), mac, to))
            assert b"marker" not in hear_to_end(listener)


@as_host
async def test_redirects_of_ipv6_are_left_to_the_bridge_which_drops_them(folder: Path) -> None:
    async with two_pods(folder) as (one, other):
        to = bytes.fromhex(other.mac.replace(":", ""))
        with (
            contextlib.closing(Speaker(one.inside, one.attachment)) as speaker,
            contextlib.closing(other.inside.run(eth0_socket)) as listener,
        ):
            redirect = b"\x89\0\0\0" + b"marker".ljust(40, b"\0")
            own6 = speaker.address6
            hop_by_hop = b"\x3a\0" + bytes(6)
            speaker.send(frame(IPV6, packet6(own6, 58, redirect), speaker.mac, to))
            speaker.send(frame(IPV6, packet6(own6, 0, hop_by_hop + redirect), speaker.mac, to))
            speaker.send(frame(IPV6, udp6(own6, b"end"), speaker.mac, to))
            assert b"marker" not in hear_to_end(listener)


@as_host
async def test_an_address_that_another_pod_gets_leads_there(folder: Path) -> None:
    chosen = {MAC: "02:00:00:00:00:50"}
    open_way()
    first_id = new_id()
    with Namespace() as client, Namespace() as first, Namespace() as second:
        async with network(folder, DUAL) as bridge:
            ours = Pod(client, new_id(), await attach(bridge, client))
            before = Pod(first, first_id, await attach(bridge, first, first_id, annotations=chosen))
            drop_what_bridges_carry()
            talk(ours, before, before.addresses[0])
            await bridge.detach(first_id)
            first.close()
            await until(lambda: not bridge.releasing(), "released")
            wishes = chosen | {ADDRESSES: ",".join(before.addresses)}
            after = Pod(second, new_id(), await attach(bridge, second, annotations=wishes))
            assert after.addresses == before.addresses
            assert after.mac == before.mac
            for address in after.addresses:
                talk(ours, after, address)
            assert await bridge.check() == []


@as_host
async def test_a_network_that_was_made_ahead_of_its_pod_has_it_too(folder: Path) -> None:
    open_way()
    pod_id = new_id()
    with Namespace() as first, Namespace() as second:
        async with network(folder, DUAL) as bridge:
            await bridge.prepare(pod_id, first.path, first.netlink_fd)
            ours = Pod(first, pod_id, await attach(bridge, first, pod_id))
            theirs = Pod(second, new_id(), await attach(bridge, second))
            drop_what_bridges_carry()
            for address in theirs.addresses:
                talk(ours, theirs, address)


@as_host
async def test_a_limit_of_what_a_pod_receives_holds(folder: Path) -> None:
    limit = {INGRESS: str(WANTED_BITS)}
    async with two_pods(folder, {}, limit) as (one, other):
        drop_what_bridges_carry()
        with other.inside.listen(other.addresses[0]) as listener:
            client = one.inside.connect(other.addresses[0])
            server, _ = listener.accept()
            with client, server:
                begin = time.monotonic()
                client.setblocking(False)
                received = sent = 0
                data = bytes(1 << 16)
                while received < SENT_BYTES:
                    with contextlib.suppress(BlockingIOError):
                        sent += client.send(data)
                    with contextlib.suppress(BlockingIOError):
                        received += len(server.recv(1 << 16, socket.MSG_DONTWAIT))
                bits = received * 8 / (time.monotonic() - begin)
        assert WANTED_BITS * 0.5 < bits < WANTED_BITS * 1.3


@as_host
async def test_the_host_counts_what_goes_the_short_way(folder: Path) -> None:
    async with two_pods(folder) as (one, other):
        drop_what_bridges_carry()
        with other.inside.listen(other.addresses[0]) as listener:
            client = one.inside.connect(other.addresses[0])
            server, _ = listener.accept()
            with client, server:
                client.sendall(bytes(50_000))
                received = 0
                while received < 50_000:
                    received += len(server.recv(50_000))
        for name, counter in (
            (host_end(one.attachment), "rx_bytes"),
            (host_end(other.attachment), "tx_bytes"),
        ):
            assert counted(name, counter) > 50_000


@as_host
async def test_a_program_that_others_took_away_is_told_of_and_comes_back(folder: Path) -> None:
    open_way()
    async with pods_on(folder) as (bridge, one, other):
        pods = frozenset({one.id, other.id})
        assert await bridge.check() == []
        name = host_end(one.attachment)
        run("tc", "qdisc", "delete", "dev", name, "clsact")
        assert await bridge.check() == [f"the link {name} lacks its program"]
        nft("flush", "ruleset")
        await bridge.reconcile(pods)
        assert await bridge.check() == []
        drop_what_bridges_carry()
        talk(one, other, other.addresses[0])


@as_host
async def test_a_new_daemon_takes_over_and_pods_do_not_need_one_meanwhile(folder: Path) -> None:
    open_way()
    ids = [new_id(), new_id()]
    with Namespace() as first, Namespace() as second:
        async with network(folder, DUAL) as bridge:
            one = Pod(first, ids[0], await attach(bridge, first, ids[0]))
            other = Pod(second, ids[1], await attach(bridge, second, ids[1]))
        drop_what_bridges_carry()
        talk(one, other, other.addresses[0])
        with Namespace() as third:
            async with network(folder, DUAL) as bridge:
                await bridge.reconcile(frozenset(ids))
                newcomer = Pod(third, new_id(), await attach(bridge, third))
                talk(one, other, other.addresses[1])
                talk(one, newcomer, newcomer.addresses[0])
                talk(newcomer, other, other.addresses[1])
                open_way("1")
                await bridge.reconcile(frozenset({*ids, newcomer.id}))
                if has_br_netfilter():
                    assert not talks(one, other, other.addresses[0])


@as_host
async def test_a_kernel_that_refuses_the_program_has_pods_on_the_bridge(folder: Path) -> None:
    open_way()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pycri.network.shortcut._PROG_TYPE_SCHED_CLS", 0)
        async with pods_on(folder) as (bridge, one, other):
            assert await bridge.check() == []
            await bridge.reconcile(frozenset({one.id, other.id}))
            for address in other.addresses:
                talk(one, other, address)
            drop_what_bridges_carry()
            assert not talks(one, other, other.addresses[0])


@as_host
async def test_the_bridge_knows_pods_without_having_heard_of_them(folder: Path) -> None:
    async with pods_on(folder) as (bridge, one, other):
        name = host_end(one.attachment)
        assert f"{one.mac} master pct-br static" in run("bridge", "fdb", "show", "dev", name)
        ip("link", "set", name, "nomaster")
        await bridge.reconcile(frozenset({one.id, other.id}))
        assert f"{one.mac} master pct-br static" in run("bridge", "fdb", "show", "dev", name)


def counted(name: str, counter: str) -> int:
    for line in Path("/proc/thread-self/net/dev").read_text().splitlines():
        interface, _, numbers = line.partition(":")
        if interface.strip() == name:
            return int(numbers.split()[0 if counter == "rx_bytes" else 8])
    raise AssertionError(f"no interface {name}")


def eth0_socket() -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    sock.bind(("eth0", 3))
    sock.settimeout(5)
    return sock


def packet6(source: str, following: int, payload: bytes) -> bytes:
    """Return a packet of IPv6 to the second pod."""
    head = (6 << 28).to_bytes(4, "big") + len(payload).to_bytes(2, "big") + bytes([following, 255])
    return head + ip_address(source).packed + ip_address("fd00:88::3").packed + payload


def udp6(source: str, payload: bytes) -> bytes:
    head = b"".join(n.to_bytes(2, "big") for n in (9, 9, 8 + len(payload), 0))
    return packet6(source, 17, head + payload)
