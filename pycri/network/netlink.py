# SPDX-License-Identifier: Apache-2.0
"""Links, addresses and routes over rtnetlink (rtnetlink(7)): the only user of pyroute2.

pyroute2's classes encode and decode the messages; the sockets are our own, because its high-level
calls fork for another namespace and wait for one answer after the other. Here several requests go
out in one packet and their acknowledgements are read together.

All calls block, for as long as others hold the kernel's RTNL lock; every failure is an OSError with
the kernel's own words. A socket is for one thread at a time.
"""

import errno
import fcntl
import os
import socket
import struct
import time
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Interface
from typing import Any, Final, Self

import msgspec

# TID251: this module is pyroute2's one home.
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg  # noqa: TID251
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg  # noqa: TID251
from pyroute2.netlink.rtnl.rtmsg import rtmsg  # noqa: TID251

POD_INTERFACE: Final = "eth0"
ANSWER_TIMEOUT_S: Final = 10.0
RUNNING_TIMEOUT_S: Final = 5.0
RUNNING_INTERVAL_S: Final = 0.001

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_RECEIVE_BYTES = 1 << 16
_SIOCGIFINDEX = 0x8933
_LOOPBACK_INDEX = 1
_IFF_UP, _IFF_RUNNING = 0x1, 0x40
_RTEXT_FILTER_SKIP_STATS = 8

_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK, _RTM_SETLINK = 16, 17, 18, 19
_RTM_NEWADDR, _RTM_DELADDR, _RTM_GETADDR = 20, 21, 22
_RTM_NEWROUTE = 24

_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP = 0x1, 0x4, 0x300
_NLM_F_CREATE_NEW = 0x600  # NLM_F_CREATE | NLM_F_EXCL
_NLM_F_ACK_TLVS = 0x200
_NLMSGERR_ATTR_MSG = 1
_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK = 270, 10, 11


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """A network interface. kind: "bridge", "veth" ..., "" for hardware."""

    index: int
    name: str
    kind: str
    mtu: int
    up: bool


class Netlink:
    """A NETLINK_ROUTE socket: what it shows and changes is the namespace it was opened in."""

    def __init__(self, sock: socket.socket) -> None:
        """Takes `sock`."""
        self._socket = sock
        self._sequence = 0
        sock.settimeout(ANSWER_TIMEOUT_S)
        sock.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        sock.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)

    @classmethod
    def open(cls) -> Self:
        """Open a socket in the caller's network namespace."""
        return cls(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE))

    @classmethod
    def borrow(cls, netlink_fd: int) -> Self:
        """Use a socket opened elsewhere, through a duplicate; borrows `netlink_fd`."""
        # Named in full: asking the kernel would cost three calls.
        duplicate = os.dup(netlink_fd)
        return cls(
            socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE, fileno=duplicate
            )
        )

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def create_bridge(self, name: str, *, mac: str, mtu: int) -> None:
        """Make a bridge. One without a MAC of its own would take on its ports', and change it."""
        info = {"attrs": [("IFLA_INFO_KIND", "bridge")]}
        attributes = [("IFLA_ADDRESS", mac), ("IFLA_MTU", mtu), ("IFLA_LINKINFO", info)]
        self._change((_RTM_NEWLINK, _NLM_F_CREATE_NEW, _link(name, attributes)))

    def set_up(self, name: str, *, mtu: int) -> None:
        self._change((_RTM_SETLINK, 0, _link(name, [("IFLA_MTU", mtu)], up=True)))

    def set_loopback_up(self) -> None:
        self._change((_RTM_SETLINK, 0, _link("lo", [], up=True)))

    def create_veth(self, name: str, *, master: int, netns_fd: int, mac: str, mtu: int) -> None:
        """Make a pair: `name` here, up and in the bridge `master`, and eth0 in another namespace.

        mac: of the other end. Borrows `netns_fd`. The other end cannot be brought up in the same
        message (the kernel answers ENOTCONN); see `configure_pod`.
        """
        peer = {
            "attrs": [
                ("IFLA_IFNAME", POD_INTERFACE),
                ("IFLA_ADDRESS", mac),
                ("IFLA_MTU", mtu),
                ("IFLA_NET_NS_FD", netns_fd),
            ],
        }
        data = {"attrs": [("VETH_INFO_PEER", peer)]}
        info = {"attrs": [("IFLA_INFO_KIND", "veth"), ("IFLA_INFO_DATA", data)]}
        attributes = [("IFLA_MASTER", master), ("IFLA_MTU", mtu), ("IFLA_LINKINFO", info)]
        self._change((_RTM_NEWLINK, _NLM_F_CREATE_NEW, _link(name, attributes, up=True)))

    def configure_pod(self, address: IPv4Interface, gateway: IPv4Address) -> None:
        """Bring lo and eth0 up, with an address and a default route, in one packet."""
        loopback, interface, route = ifinfmsg(), ifinfmsg(), rtmsg()
        index = self._find_index(POD_INTERFACE)
        loopback["index"], interface["index"] = _LOOPBACK_INDEX, index
        for link in (loopback, interface):
            link["flags"] = link["change"] = _IFF_UP
        route["family"], route["table"] = socket.AF_INET, 254  # RT_TABLE_MAIN
        route["proto"], route["type"] = 3, 1  # RTPROT_BOOT, RTN_UNICAST
        route["attrs"] = [("RTA_GATEWAY", str(gateway)), ("RTA_OIF", index)]
        self._change(
            (_RTM_SETLINK, 0, loopback),
            (_RTM_NEWADDR, _NLM_F_CREATE_NEW, _address(index, address)),
            (_RTM_SETLINK, 0, interface),
            (_RTM_NEWROUTE, _NLM_F_CREATE_NEW, route),
        )

    def delete_link(self, name: str) -> None:
        """Raises: OSError with ENODEV if there is no such link. Waits for RCU: about 20 ms."""
        self._change((_RTM_DELLINK, 0, _link(name, [])))

    def add_address(self, index: int, address: IPv4Interface) -> None:
        self._change((_RTM_NEWADDR, _NLM_F_CREATE_NEW, _address(index, address)))

    def remove_address(self, index: int, address: IPv4Interface) -> None:
        self._change((_RTM_DELADDR, 0, _address(index, address)))

    def read_link(self, name: str) -> Link:
        """Raises: OSError with ENODEV if there is no such link."""
        for answer in self._ask(_RTM_GETLINK, 0, _link(name, [])):
            message = _decoded(ifinfmsg, answer)
            info = message.get_attr("IFLA_LINKINFO")
            return Link(
                index=message["index"],
                name=message.get_attr("IFLA_IFNAME"),
                kind=(info.get_attr("IFLA_INFO_KIND") if info else None) or "",
                mtu=message.get_attr("IFLA_MTU"),
                up=bool(message["flags"] & _IFF_UP),
            )
        raise OSError(0, "no answer to RTM_GETLINK", name)

    def list_addresses(self) -> list[tuple[int, IPv4Interface]]:
        """Return every IPv4 address of the namespace with the index of its interface."""
        request = ifaddrmsg()
        request["family"] = socket.AF_INET
        answers = self._ask(_RTM_GETADDR, _NLM_F_DUMP, request)
        messages = [_decoded(ifaddrmsg, answer) for answer in answers]
        return [
            (message["index"], IPv4Interface((message.get_attr("IFA_LOCAL"), message["prefixlen"])))
            for message in messages
        ]

    def wait_running(self, name: str) -> None:
        """Wait until the link carries traffic, which is some time after both ends are up.

        The kernel takes note of a carrier in a worker; until then a bridge drops the port's
        packets, and a first connection loses a second to its retry. Since Linux 6.8 being asked
        makes it take note at once; an older one is asked again and again.
        Raises: OSError with ENODEV if the link has gone; TimeoutError.
        """
        deadline = time.monotonic() + RUNNING_TIMEOUT_S
        while not self._read_flags(name) & _IFF_RUNNING:
            if time.monotonic() > deadline:
                raise TimeoutError(errno.ETIMEDOUT, "the link does not come up", name)
            time.sleep(RUNNING_INTERVAL_S)

    def _read_flags(self, name: str) -> int:
        request = _link(name, [("IFLA_EXT_MASK", _RTEXT_FILTER_SKIP_STATS)])
        (answer,) = self._ask(_RTM_GETLINK, 0, request)
        return int(struct.unpack_from("=I", answer, _HEADER.size + 8)[0])  # struct ifinfomsg

    def _find_index(self, name: str) -> int:
        """Return a link's index. Not by netlink: any socket will do for netdevice(7), in 2 us."""
        request = struct.pack("=16si20x", name.encode(), 0)  # struct ifreq
        answer = fcntl.ioctl(self._socket, _SIOCGIFINDEX, request)
        return int(struct.unpack_from("=i", answer, 16)[0])

    def _change(self, *requests: tuple[int, int, Any]) -> None:
        """Send (type, flags, message) requests in one packet; raise the first that is refused."""
        first = self._sequence + 1
        self._socket.send(b"".join(self._encoded(*request) for request in requests))
        failures = []
        for kind, flags, body in self._receive(first):
            if kind == _NLMSG_ERROR:
                failures.append(_failure(flags, body))
            if len(failures) == len(requests):
                break
        for failure in filter(None, failures):
            raise failure

    def _ask(self, kind: int, flags: int, request: Any) -> list[bytes]:
        """Send a query; return the messages of the answer, with their headers."""
        self._socket.send(self._encoded(kind, flags, request))
        answers = []
        for answer, answer_flags, body in self._receive(self._sequence):
            if answer in (_NLMSG_DONE, _NLMSG_ERROR):  # an error of 0 is the acknowledgement
                failure = _failure(answer_flags, body) if answer == _NLMSG_ERROR else None
                if failure is not None:
                    raise failure
                break
            header = _HEADER.pack(_HEADER.size + len(body), answer, answer_flags, 0, 0)
            answers.append(header + body)
        return answers

    def _encoded(self, kind: int, flags: int, message: Any) -> bytes:
        self._sequence += 1
        header = message["header"]
        header["type"] = kind
        header["flags"] = flags | _NLM_F_REQUEST | _NLM_F_ACK
        header["sequence_number"] = self._sequence
        message.encode()
        return bytes(message.data) + bytes(-len(message.data) % 4)

    def _receive(self, first: int) -> Iterator[tuple[int, int, bytes]]:
        """Yield (type, flags, body) of messages as they come; the caller knows which is the last.

        first: answers to earlier requests, left over from one that timed out, are dropped.
        """
        while True:
            packet = self._socket.recv(_RECEIVE_BYTES)
            offset = 0
            while offset < len(packet):
                length, kind, flags, sequence, _ = _HEADER.unpack_from(packet, offset)
                if sequence >= first:
                    yield kind, flags, packet[offset + _HEADER.size : offset + length]
                offset += (length + 3) & ~3


def _link(name: str, attributes: list[tuple[str, Any]], *, up: bool = False) -> Any:
    message = ifinfmsg()
    if up:
        message["flags"] = message["change"] = _IFF_UP
    message["attrs"] = [("IFLA_IFNAME", name), *attributes]
    return message


def _address(index: int, address: IPv4Interface) -> Any:
    message = ifaddrmsg()
    message["family"] = socket.AF_INET
    message["index"] = index
    message["prefixlen"] = address.network.prefixlen
    message["attrs"] = [
        ("IFA_LOCAL", str(address.ip)),
        ("IFA_ADDRESS", str(address.ip)),
        ("IFA_BROADCAST", str(address.network.broadcast_address)),
    ]
    return message


def _decoded(message_class: Any, answer: bytes) -> Any:
    message = message_class(answer)
    message.decode()
    return message


def _failure(flags: int, body: bytes) -> OSError | None:
    """Decode struct nlmsgerr, and the kernel's explanation behind it if there is one."""
    (error,) = struct.unpack_from("=i", body)
    if error == 0:
        return None
    reason = os.strerror(-error)
    offset = 4 + _HEADER.size  # NETLINK_CAP_ACK: only the header of the request comes back
    while flags & _NLM_F_ACK_TLVS and offset + 4 <= len(body):
        length, kind = struct.unpack_from("=HH", body, offset)
        if kind == _NLMSGERR_ATTR_MSG:
            text = body[offset + 4 : offset + length].rstrip(b"\0").decode(errors="replace")
            reason = f"{reason}: {text}"
        offset += max((length + 3) & ~3, 4)
    return OSError(-error, reason)
