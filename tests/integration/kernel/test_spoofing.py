# SPDX-License-Identifier: Apache-2.0
"""What a pod may not do on the bridge: speak in another's name, be a router, listen to others.

Frames are sent as they are from a packet socket in the pod, which a container with CAP_NET_RAW has.
"""

import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv6Address, ip_address
from pathlib import Path

import pytest

from pycri.model.network import Attachment
from tests.integration.kernel.netns import Namespace
from tests.integration.kernel.networks import DUAL, as_host, attach, network

BROADCAST = b"\xff" * 6
STRANGER = bytes.fromhex("020000000099")
ETH_P_ALL, IPV4, ARP, IPV6 = 3, 0x0800, 0x0806, 0x86DD
ROUTER_ADVERT, NEIGHBOUR_ADVERT, REDIRECT, ECHO = 134, 136, 137, 128


def frame(kind: int, payload: bytes, source: bytes, to: bytes = BROADCAST) -> bytes:
    return to + source + struct.pack("!H", kind) + payload


def arp(sender_mac: bytes, sender: str) -> bytes:
    """Return an announcement: I have `sender`, at `sender_mac`."""
    packed = ip_address(sender).packed
    return struct.pack("!HHBBH", 1, IPV4, 6, 4, 2) + sender_mac + packed + BROADCAST + packed


def ipv4(source: str, payload: bytes) -> bytes:
    addresses = ip_address(source).packed + ip_address("10.88.0.3").packed
    head = struct.pack("!BBHHHBB", 0x45, 0, 20 + len(payload), 0, 0, 64, 253)
    total = sum(struct.unpack("!9H", head + addresses))
    total = (total & 0xFFFF) + (total >> 16)
    return head + struct.pack("!H", ~total & 0xFFFF) + addresses + payload


def icmpv6(source: str, kind: int, target: str, marker: bytes, extension: bytes = b"") -> bytes:
    body = struct.pack("!BBHI", kind, 0, 0, 0) + ip_address(target).packed + marker
    following = 0 if extension else 58
    payload = extension + body
    head = struct.pack("!IHBB", 6 << 28, len(payload), following, 255)
    return head + IPv6Address(source).packed + ip_address("ff02::1").packed + payload


class Listener:
    """Everything that arrives at a pod's eth0."""

    def __init__(self, pod: Namespace) -> None:
        self._socket = pod.run(packet_socket)
        self._number = 0

    def hears(self, pod: "Speaker", sent: bytes, marker: bytes) -> bool:
        """Tell whether `sent` arrives; it holds `marker`. A frame that may pass is sent after."""
        self._number += 1
        end = b"end %d" % self._number
        pod.send(sent)
        pod.send(frame(IPV4, ipv4(pod.address, end), pod.mac))
        found = False
        while end not in (packet := self._socket.recv(2000)):
            found |= marker in packet
        return found

    def close(self) -> None:
        self._socket.close()


class Speaker:
    """A pod that sends whatever it likes."""

    def __init__(self, pod: Namespace, attachment: Attachment) -> None:
        self._socket = pod.run(packet_socket)
        self.address, self.address6 = attachment.addresses
        self.mac = bytes.fromhex(attachment.interfaces[0].mac.replace(":", ""))

    def send(self, data: bytes) -> None:
        self._socket.send(data.ljust(60, b"\0"))

    def close(self) -> None:
        self._socket.close()


def packet_socket() -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    sock.bind(("eth0", ETH_P_ALL))
    sock.settimeout(5)
    return sock


@asynccontextmanager
async def two_pods(folder: Path) -> AsyncIterator[tuple[Speaker, Listener]]:
    with Namespace() as first, Namespace() as second:
        async with network(folder, DUAL) as bridge:
            attachment = await attach(bridge, first)
            await attach(bridge, second)
            with (
                contextlib.closing(Speaker(first, attachment)) as speaker,
                contextlib.closing(Listener(second)) as listener,
            ):
                yield speaker, listener


@as_host
async def test_what_is_a_pods_own_passes(folder: Path) -> None:
    async with two_pods(folder) as (pod, listener):
        own6, link_local = pod.address6, "fe80::858:aff:fe58:2"
        for sent in (
            frame(ARP, arp(pod.mac, pod.address) + b"marker", pod.mac),
            frame(IPV4, ipv4(pod.address, b"marker"), pod.mac),
            frame(IPV6, icmpv6(own6, ECHO, "::", b"marker"), pod.mac),
            frame(IPV6, icmpv6(own6, NEIGHBOUR_ADVERT, own6, b"marker"), pod.mac),
            frame(IPV6, icmpv6(link_local, NEIGHBOUR_ADVERT, link_local, b"marker"), pod.mac),
        ):
            assert listener.hears(pod, sent, b"marker"), sent.hex()


@pytest.mark.parametrize("address", ["10.88.0.1", "10.88.0.3", "192.0.2.9", "127.0.0.1", "0.0.0.0"])
def test_no_packet_of_ipv4_leaves_a_pod_with_anothers_address(tmp_path: Path, address: str) -> None:
    @as_host
    async def body(folder: Path) -> None:
        async with two_pods(folder) as (pod, listener):
            sent = frame(IPV4, ipv4(address, b"marker"), pod.mac)
            assert not listener.hears(pod, sent, b"marker")

    body(tmp_path)


@as_host
async def test_no_arp_tells_of_anothers_address_or_mac(folder: Path) -> None:
    async with two_pods(folder) as (pod, listener):
        for sent in (
            frame(ARP, arp(pod.mac, "10.88.0.1") + b"marker", pod.mac),
            frame(ARP, arp(STRANGER, pod.address) + b"marker", pod.mac),
            frame(ARP, arp(pod.mac, pod.address) + b"marker", STRANGER),
            frame(ARP, arp(STRANGER, "10.88.0.1") + b"marker", STRANGER),
        ):
            assert not listener.hears(pod, sent, b"marker"), sent.hex()


@as_host
async def test_no_packet_of_ipv6_is_anothers_and_no_pod_is_a_router(folder: Path) -> None:
    async with two_pods(folder) as (pod, listener):
        own6 = pod.address6
        hop_by_hop = struct.pack("!BB6x", 58, 0)
        for sent in (
            frame(IPV6, icmpv6("fd00:88::1", ECHO, "::", b"marker"), pod.mac),
            frame(IPV6, icmpv6("fe80::1", ECHO, "::", b"marker"), pod.mac),
            frame(IPV6, icmpv6(own6, ECHO, "::", b"marker"), STRANGER),
            frame(IPV6, icmpv6(own6, NEIGHBOUR_ADVERT, "fd00:88::1", b"marker"), pod.mac),
            frame(
                IPV6, icmpv6(own6, NEIGHBOUR_ADVERT, "fd00:88::1", b"marker", hop_by_hop), pod.mac
            ),
            frame(IPV6, icmpv6(own6, ROUTER_ADVERT, "::", b"marker"), pod.mac),
            frame(IPV6, icmpv6("fe80::858:aff:fe58:2", ROUTER_ADVERT, "::", b"marker"), pod.mac),
            frame(IPV6, icmpv6(own6, REDIRECT, "::", b"marker"), pod.mac),
        ):
            assert not listener.hears(pod, sent, b"marker"), sent.hex()


@as_host
async def test_no_other_protocol_leaves_a_pod(folder: Path) -> None:
    async with two_pods(folder) as (pod, listener):
        inner = struct.pack("!HH", 1, IPV4) + ipv4(pod.address, b"marker")
        for kind, payload in (
            (0x88CC, b"marker"),
            (0x8100, inner),
            (0x88A8, inner),
            (0x0027, b"marker"),
        ):
            assert not listener.hears(pod, frame(kind, payload, pod.mac), b"marker"), hex(kind)
