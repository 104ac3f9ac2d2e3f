# SPDX-License-Identifier: Apache-2.0
"""The host's side of the built-in network: can it have the bridge, and the bridge itself.

The bridge is ours if it has no addresses but those we gave it (the gateways of ranges), which are
recorded before. All calls block.
"""

import contextlib
import errno
import socket
from collections.abc import Collection, Iterator, Sequence

from pycri import errors
from pycri.config import NetworkSettings
from pycri.model.ranges import InterfaceAddress, Network, gateway_of, mac_of
from pycri.network import sysctls
from pycri.network.netlink import Link, Netlink, has_ipv6


class RangeInUse(errors.Unavailable):
    """The host cannot have pods of this range; `set_pod_cidr` blames its caller for it instead."""


def check_host(
    host: Netlink,
    settings: NetworkSettings,
    ranges: Sequence[Network],
    ours: Collection[InterfaceAddress],
) -> None:
    """Raise Unavailable with the first thing that keeps pods from being attached, if there is one.

    ours: addresses that the bridge may have. Changes nothing.
    """
    link = find_link(host, settings.bridge)
    if link is not None and link.kind != "bridge":
        raise errors.Unavailable(f"the interface {settings.bridge} is not a bridge")
    index = link.index if link else 0
    addresses = host.list_addresses()
    for at, address in addresses:
        if index and at == index and address not in ours:
            raise errors.Unavailable(
                f"the bridge {settings.bridge} exists with the address {address}, which is none of"
                " ours: remove it, or name another in network.bridge"
            )
    others = [(at, address) for at, address in addresses if at != index]
    routes = [route.network for route in host.list_routes() if route.index != index]
    for network in ranges:
        _check_family(network)
        _check_free(network, others, routes)


def ensure_bridge(host: Netlink, settings: NetworkSettings, ranges: Sequence[Network]) -> int:
    """Make the bridge the gateway of `ranges`, and return its index."""
    gateways = [gateway_of(network) for network in ranges]
    link = find_link(host, settings.bridge)
    if link is None:
        mac = mac_of(gateways[0].ip)
        host.create_bridge(settings.bridge, mac_address=mac, mtu=settings.mtu)
        link = host.read_link(settings.bridge)
    _write_bridge_sysctls(settings.bridge, ranges)
    if not link.up or link.mtu != settings.mtu:
        host.set_up(settings.bridge, mtu=settings.mtu)
    present = read_gateways(host, link.index)
    for gateway in gateways:
        if gateway not in present:
            host.add_address(link.index, gateway)
    return link.index


def read_gateways(host: Netlink, index: int) -> list[InterfaceAddress]:
    """Return the bridge's addresses."""
    return [address for link, address in host.list_addresses() if link == index]


def find_link(host: Netlink, name: str) -> Link | None:
    """Return a link, or None if there is none of that name."""
    try:
        return host.read_link(name)
    except OSError as error:
        if error.errno == errno.ENODEV:
            return None
        raise


def delete_link(host: Netlink, name: str) -> None:
    """Delete a link; absent is fine."""
    with absent_is_fine():
        host.delete_link(name)


@contextlib.contextmanager
def absent_is_fine() -> Iterator[None]:
    """Take no notice of a link that is not there, or not any more."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise


def delete_bridge(host: Netlink, name: str) -> bool:
    """Delete the bridge, absent is fine; return whether the host has others."""
    links = host.list_links()
    if any(link.name == name and link.kind == "bridge" for link in links):
        delete_link(host, name)
    return any(link.kind == "bridge" and link.name != name for link in links)


def _check_family(network: Network) -> None:
    if network.version == 6:
        if not has_ipv6():
            raise RangeInUse(f"the pod range {network}: this host has no IPv6")
        if sysctls.read("net/ipv6/conf/all/disable_ipv6") == "1":
            raise RangeInUse(
                f"the pod range {network}: IPv6 is switched off on this host"
                " (net.ipv6.conf.all.disable_ipv6)"
            )


def _check_free(
    network: Network,
    addresses: Sequence[tuple[int, InterfaceAddress]],
    routes: Sequence[Network],
) -> None:
    for index, address in addresses:
        if _overlap(network, address.network):
            name = socket.if_indextoname(index)
            raise RangeInUse(f"the pod range {network} overlaps with {address} of interface {name}")
    for route in routes:
        # A wider one is fine: it may well lead to the pods of all nodes.
        if _overlap(network, route) and route.prefixlen >= network.prefixlen:
            raise RangeInUse(f"the pod range {network} overlaps with the route to {route}")


def _overlap(one: Network, other: Network) -> bool:
    if one.version == 4 and other.version == 4:
        return one.overlaps(other)
    if one.version == 6 and other.version == 6:
        return one.overlaps(other)
    return False


def _write_bridge_sysctls(bridge: str, ranges: Sequence[Network]) -> None:
    # A pod could else send router advertisements and become the host's way out (CVE-2020-10749).
    sysctls.write(f"net/ipv6/conf/{bridge}/accept_ra", "0")
    sysctls.write(f"net/ipv6/conf/{bridge}/accept_dad", "0")
    # Lets the host reach host ports by 127.0.0.1; the chain "guard" keeps the pods out.
    sysctls.write(f"net/ipv4/conf/{bridge}/route_localnet", "1")
    if any(network.version == 6 for network in ranges):
        sysctls.write(f"net/ipv6/conf/{bridge}/disable_ipv6", "0")
