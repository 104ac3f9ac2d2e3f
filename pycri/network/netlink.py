# SPDX-License-Identifier: Apache-2.0
"""Links, addresses and routes over rtnetlink (rtnetlink(7)), and what a pod's interface needs.

The messages are made here, from the headers <linux/rtnetlink.h>, <linux/if_link.h> and
<linux/if_addr.h>, whose names the constants have. Each call takes the kernel's RTNL lock, for which
it may have to wait; failures are OSErrors.
"""

import errno
import fcntl
import os
import socket
import struct
import time
from collections.abc import Sequence
from ipaddress import (
    IPv4Interface,
    IPv4Network,
    IPv6Interface,
    IPv6Network,
)
from typing import Final, Self

import msgspec

from pycri.model.ranges import Address, InterfaceAddress, Network
from pycri.network import sockets
from pycri.network.attributes import address as ip
from pycri.network.attributes import attribute, mac, nested, parse, parse_text, text, u8, u32
from pycri.network.sockets import NetlinkSocket, Request

POD_INTERFACE: Final = "eth0"
RUNNING_TIMEOUT_S: Final = 5.0
RUNNING_INTERVAL_S: Final = 0.001

_SIOCGIFINDEX = 0x8933
_LOOPBACK_INDEX = 1
_IFF_UP, _IFF_RUNNING = 0x1, 0x40
_NEW = sockets.CREATE | sockets.EXCLUSIVE

_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK, _RTM_SETLINK = 16, 17, 18, 19
_RTM_NEWADDR, _RTM_DELADDR, _RTM_GETADDR = 20, 21, 22
_RTM_NEWROUTE, _RTM_GETROUTE = 24, 26
_RTM_NEWNEIGH = 28

_IFINFO = struct.Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, change
_IFADDR = struct.Struct("=BBBBi")  # struct ifaddrmsg: family, prefix length, flags, scope, index
_ROUTE = struct.Struct("=BBBBBBBBI")  # struct rtmsg: family, dst_len ... table, protocol ... type

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER = 1, 3, 4, 10
_IFLA_LINKINFO, _IFLA_AF_SPEC, _IFLA_NET_NS_FD, _IFLA_EXT_MASK = 18, 26, 28, 29
_INFO_KIND, _INFO_DATA, _INFO_SLAVE_KIND, _INFO_SLAVE_DATA = 1, 2, 4, 5
_VETH_INFO_PEER = 1
_BRPORT_MODE = 4
_INET6_ADDR_GEN_MODE, _ADDR_GEN_NONE = 8, 1
_EXT_FILTER_SKIP_STATS = 8
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST = 1, 2, 4
_IFA_F_NODAD = 0x02
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # struct ndmsg: family, index, state, flags, type
_NUD_STATIC, _NTF_MASTER, _NDA_LLADDR = 0x02 | 0x40, 0x04, 2  # NUD_REACHABLE | NUD_NOARP
_RT_SCOPE_LINK = 253
_RTA_DST, _RTA_OIF, _RTA_GATEWAY = 1, 4, 5
_RT_TABLE_MAIN, _RTPROT_BOOT, _RTN_UNICAST = 254, 3, 1


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """A network interface. kind: "bridge", "veth" ..., "" for hardware. master: an index or 0."""

    index: int
    name: str
    kind: str
    mtu: int
    up: bool
    running: bool
    master: int


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """A route of the main table. index: of the interface it leads out of, 0 if they are several."""

    network: Network
    index: int


class Netlink(NetlinkSocket):
    """A NETLINK_ROUTE socket."""

    @classmethod
    def open_route(cls) -> Self:
        """Open a socket in the caller's network namespace."""
        return cls.open(socket.NETLINK_ROUTE)

    @classmethod
    def borrow_route(cls, netlink_fd: int) -> Self:
        """Use a socket opened in another namespace, through a duplicate; borrows `netlink_fd`."""
        return cls.borrow(netlink_fd, socket.NETLINK_ROUTE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def create_bridge(self, name: str, *, mac_address: str, mtu: int) -> None:
        """Make a bridge. One without a MAC of its own would take on its ports', and change it."""
        info = nested(_IFLA_LINKINFO, text(_INFO_KIND, "bridge"))
        body = _link(name, mac(_IFLA_ADDRESS, mac_address), u32(_IFLA_MTU, mtu), info)
        self.change([Request(_RTM_NEWLINK, body, _NEW)])

    def set_up(self, name: str, *, mtu: int) -> None:
        self.change([Request(_RTM_SETLINK, _link(name, u32(_IFLA_MTU, mtu), up=True))])

    def set_master(self, name: str, master: int) -> None:
        """Make a link a port of the bridge `master`."""
        joining = Request(_RTM_SETLINK, _link(name, u32(_IFLA_MASTER, master)))
        self.change([joining, _hairpin(name)])

    def create_veth(
        self, name: str, *, master: int, netns_fd: int, mac_address: str, mtu: int
    ) -> None:
        """Make a pair: `name` here, up and a port of the bridge `master`, and eth0 elsewhere.

        mac_address: of the other end. Borrows `netns_fd`. The other end cannot be brought up in
        the same message (the kernel answers ENOTCONN); see `configure_pod`.
        """
        peer = attribute(
            _VETH_INFO_PEER,
            _IFINFO.pack(0, 0, 0, 0, 0)
            + text(_IFLA_IFNAME, POD_INTERFACE)
            + mac(_IFLA_ADDRESS, mac_address)
            + u32(_IFLA_MTU, mtu)
            + u32(_IFLA_NET_NS_FD, netns_fd),
        )
        info = nested(_IFLA_LINKINFO, text(_INFO_KIND, "veth"), nested(_INFO_DATA, peer))
        body = _link(name, u32(_IFLA_MASTER, master), u32(_IFLA_MTU, mtu), info, up=True)
        self.change([Request(_RTM_NEWLINK, body, _NEW), _hairpin(name)])

    def pin_mac(self, index: int, mac_address: str) -> None:
        """Have the bridge know that a MAC is behind its port `index`, without learning it.

        It forgets what it learnt, after five minutes without a frame, and sends to all ports then.
        """
        header = _NEIGHBOUR.pack(socket.AF_BRIDGE, index, _NUD_STATIC, _NTF_MASTER, 0)
        body = header + mac(_NDA_LLADDR, mac_address)
        self.change([Request(_RTM_NEWNEIGH, body, sockets.CREATE | sockets.REPLACE)])

    def configure_pod(
        self, addresses: Sequence[InterfaceAddress], gateways: Sequence[Address], mac_address: str
    ) -> None:
        """Bring lo and eth0 up, with addresses and default routes, in one packet.

        IPv6 without duplicate address detection, so that the addresses are good at once; the
        link-local one is made from `mac_address`, and there is none without another of IPv6.
        """
        index = self.find_index(POD_INTERFACE)
        ipv6 = any(address.version == 6 for address in addresses)
        requests = [Request(_RTM_SETLINK, _change_of(_LOOPBACK_INDEX, up=True))]
        if has_ipv6():
            requests.append(Request(_RTM_SETLINK, _change_of(index, _no_generated_address())))
        requests += [_new_address(index, a) for a in addresses if a.version == 4]
        # IPv6 addresses are lost when an interface that is down comes up, IPv4 ones are not.
        requests.append(Request(_RTM_SETLINK, _change_of(index, up=True)))
        if ipv6:
            requests.append(_new_address(index, link_local_of(mac_address)))
        requests += [_new_address(index, a) for a in addresses if a.version == 6]
        requests += [_default_route(index, gateway) for gateway in gateways]
        self.change(requests)

    def set_loopback_up(self) -> None:
        """Bring lo up; 127.0.0.1 and ::1 come with it."""
        self.change([Request(_RTM_SETLINK, _change_of(_LOOPBACK_INDEX, up=True))])

    def delete_link(self, name: str) -> None:
        """Raises: OSError with ENODEV if there is no such link. Waits for RCU: about 20 ms."""
        self.change([Request(_RTM_DELLINK, _link(name))])

    def add_address(self, index: int, address: InterfaceAddress) -> None:
        self.change([_new_address(index, address)])

    def remove_address(self, index: int, address: InterfaceAddress) -> None:
        self.change([Request(_RTM_DELADDR, _address(index, address))])

    def read_link(self, name: str) -> Link:
        """Raises: OSError with ENODEV if there is no such link."""
        body = _link(name, u32(_IFLA_EXT_MASK, _EXT_FILTER_SKIP_STATS))
        for answer in self.ask(Request(_RTM_GETLINK, body)):
            return _parsed_link(answer)
        raise OSError(0, "no answer to RTM_GETLINK", name)

    def list_links(self) -> list[Link]:
        """Return every link of the namespace."""
        body = _change_of(0, u32(_IFLA_EXT_MASK, _EXT_FILTER_SKIP_STATS))
        answers = self.ask(Request(_RTM_GETLINK, body, sockets.DUMP))
        return [_parsed_link(answer) for answer in answers]

    def list_addresses(self) -> list[tuple[int, InterfaceAddress]]:
        """Return every address of the namespace, but link-local ones, with its interface's index.

        On a point-to-point link it is our own address that is returned.
        """
        found: list[tuple[int, InterfaceAddress]] = []
        for answer in self.ask(Request(_RTM_GETADDR, _IFADDR.pack(0, 0, 0, 0, 0), sockets.DUMP)):
            family, length, _, scope, index = _IFADDR.unpack_from(answer)
            values = parse(answer[_IFADDR.size :])
            packed = values.get(_IFA_LOCAL) or values.get(_IFA_ADDRESS)
            if packed is None or scope == _RT_SCOPE_LINK:
                continue
            if family == socket.AF_INET:
                found.append((index, IPv4Interface((packed, length))))
            elif family == socket.AF_INET6:
                found.append((index, IPv6Interface((packed, length))))
        return found

    def list_routes(self) -> list[Route]:
        """Return the routes of the main table to others than everybody (the default routes)."""
        found: list[Route] = []
        body = _ROUTE.pack(0, 0, 0, 0, 0, 0, 0, 0, 0)
        for answer in self.ask(Request(_RTM_GETROUTE, body, sockets.DUMP)):
            family, length, _, _, table, _, _, kind, _ = _ROUTE.unpack_from(answer)
            values = parse(answer[_ROUTE.size :])
            destination = values.get(_RTA_DST)
            if table != _RT_TABLE_MAIN or kind != _RTN_UNICAST or destination is None:
                continue
            (index,) = struct.unpack("=i", values.get(_RTA_OIF, bytes(4)))
            if family == socket.AF_INET:
                found.append(Route(network=IPv4Network((destination, length)), index=index))
            elif family == socket.AF_INET6:
                found.append(Route(network=IPv6Network((destination, length)), index=index))
        return found

    def wait_running(self, name: str) -> None:
        """Wait until the link carries traffic, which is some time after both ends are up.

        The kernel takes note of a carrier in a worker; until then a bridge drops the port's
        packets, and a first connection loses a second to its retry. Since Linux 6.8 being asked
        makes it take note at once; an older one is asked again and again.
        Raises: OSError with ENODEV if the link has gone; TimeoutError.
        """
        deadline = time.monotonic() + RUNNING_TIMEOUT_S
        while not self.read_link(name).running:
            if time.monotonic() > deadline:
                raise TimeoutError(errno.ETIMEDOUT, "the link does not come up", name)
            time.sleep(RUNNING_INTERVAL_S)

    def find_index(self, name: str) -> int:
        """Return a link's index. Not by netlink: any socket will do for netdevice(7), in 2 us."""
        request = struct.pack("=16si20x", name.encode(), 0)  # struct ifreq
        answer = fcntl.ioctl(self.fileno(), _SIOCGIFINDEX, request)
        return int(struct.unpack_from("=i", answer, 16)[0])


def has_ipv6() -> bool:
    """Tell whether the kernel was started with IPv6 at all."""
    return os.path.exists("/proc/sys/net/ipv6")


def link_local_of(mac_address: str) -> IPv6Interface:
    """Return the link-local address that goes with a MAC (RFC 4291, appendix A)."""
    octets = bytes.fromhex(mac_address.replace(":", ""))
    host = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return IPv6Interface((b"\xfe\x80" + bytes(6) + host, 64))


def _link(name: str, *attributes: bytes, up: bool = False) -> bytes:
    flags = _IFF_UP if up else 0
    return _IFINFO.pack(0, 0, 0, flags, flags) + text(_IFLA_IFNAME, name) + b"".join(attributes)


def _change_of(index: int, *attributes: bytes, up: bool = False) -> bytes:
    flags = _IFF_UP if up else 0
    return _IFINFO.pack(0, 0, index, flags, flags) + b"".join(attributes)


def _hairpin(name: str) -> Request:
    """Have what a port sends come back to it too, if it is addressed to it.

    For a pod that reaches itself by a service or a host port where the host translates the
    addresses of bridged packets (br_netfilter).
    """
    port = nested(_INFO_SLAVE_DATA, u8(_BRPORT_MODE, 1))
    info = nested(_IFLA_LINKINFO, text(_INFO_SLAVE_KIND, "bridge"), port)
    # RTM_SETLINK takes no notice of what is particular to a kind of link.
    return Request(_RTM_NEWLINK, _link(name, info))


def _no_generated_address() -> bytes:
    mode = nested(socket.AF_INET6, u8(_INET6_ADDR_GEN_MODE, _ADDR_GEN_NONE))
    return nested(_IFLA_AF_SPEC, mode)


def _address(index: int, address: InterfaceAddress) -> bytes:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    flags, scope = 0, _RT_SCOPE_LINK if address.is_link_local else 0
    attributes = [ip(_IFA_LOCAL, address.ip), ip(_IFA_ADDRESS, address.ip)]
    if address.version == 4:
        attributes.append(ip(_IFA_BROADCAST, address.network.broadcast_address))
    else:
        flags = _IFA_F_NODAD
    header = _IFADDR.pack(family, address.network.prefixlen, flags, scope, index)
    return header + b"".join(attributes)


def _new_address(index: int, address: InterfaceAddress) -> Request:
    return Request(_RTM_NEWADDR, _address(index, address), _NEW)


def _default_route(index: int, gateway: Address) -> Request:
    family = socket.AF_INET if gateway.version == 4 else socket.AF_INET6
    body = _ROUTE.pack(family, 0, 0, 0, _RT_TABLE_MAIN, _RTPROT_BOOT, 0, _RTN_UNICAST, 0)
    return Request(_RTM_NEWROUTE, body + ip(_RTA_GATEWAY, gateway) + u32(_RTA_OIF, index), _NEW)


def _parsed_link(answer: bytes) -> Link:
    _, _, index, flags, _ = _IFINFO.unpack_from(answer)
    values = parse(answer[_IFINFO.size :])
    info = parse(values.get(_IFLA_LINKINFO, b""))
    return Link(
        index=index,
        name=parse_text(values[_IFLA_IFNAME]),
        kind=parse_text(info.get(_INFO_KIND, b"")),
        mtu=struct.unpack("=I", values[_IFLA_MTU])[0],
        up=bool(flags & _IFF_UP),
        running=bool(flags & _IFF_RUNNING),
        master=struct.unpack("=I", values.get(_IFLA_MASTER, bytes(4)))[0],
    )
