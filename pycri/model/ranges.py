# SPDX-License-Identifier: Apache-2.0
"""Address ranges of pods, IPv4 and IPv6: pure.

    10.88.0.0/24     .0 network   .1 the bridge (gateway)   .2 to .254 pods   .255 broadcast
    fd00:88::/64     :: network   ::1 the bridge            ::2 and further pods

A network of pods has one range, or one of each family; the first one's address is the pod's first.
"""

from collections.abc import Sequence
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_interface,
    ip_network,
)
from typing import Final

Address = IPv4Address | IPv6Address
InterfaceAddress = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network

MIN_ADDRESSES: Final = 4
"""Network, gateway, one pod, broadcast."""


def parse_ranges(text: str) -> tuple[Network, ...]:
    """Return the ranges of "v4", "v6" or two with a comma between them, in their order.

    Raises: ValueError if a part is no range or too small, or two are of one family.
    """
    networks = tuple(ip_network(part.strip()) for part in text.split(","))
    for network in networks:
        if network.num_addresses < MIN_ADDRESSES:
            raise ValueError(f"{network} has no room for a gateway and a pod")
        if network.is_multicast or network.is_loopback or network.is_link_local:
            raise ValueError(f"{network} is not for pods: it has a meaning of its own")
    if len({network.version for network in networks}) != len(networks):
        raise ValueError(f"{text!r} has two ranges of one family")
    return networks


def render_ranges(networks: Sequence[Network]) -> str:
    """Return the text that `parse_ranges` reads."""
    return ",".join(map(str, networks))


def gateway_of(network: Network) -> InterfaceAddress:
    """Return the address of the bridge in a range."""
    return ip_interface((network.network_address + 1, network.prefixlen))


def bounds_of(network: Network) -> tuple[Address, Address]:
    """Return the first and the last address that a pod may have."""
    last = network.broadcast_address
    return network.network_address + 2, last - 1 if network.version == 4 else last


def mac_of(address: Address) -> str:
    """Return the MAC that goes with an address, so that a reused address needs no new ARP."""
    return f"0a:58:{address.packed[-4:].hex(':')}"


def owns(network: Network, address: Address) -> bool:
    """Tell whether an address is one that a pod of the range may have."""
    if network.version != address.version:
        return False
    first, last = bounds_of(network)
    return int(first) <= int(address) <= int(last)
