# SPDX-License-Identifier: Apache-2.0
"""Our two tables of nftables, as text, and the elements that each pod has in them. Pure.

    table bridge NAME       what a pod's port lets in: frames from the pod's own addresses
      set senders4  senders6    port . MAC . address
      set targets6              port . address, which the pod may call its own (NDP)
    table inet NAME         addresses that are translated, for IPv4 and IPv6
      map ports4  ports6        protocol . host port -> pod's address . port
      map ports4_at  ports6_at  the same behind a host IP
      chain prerouting, output  to a host port: what comes in, and what the host itself sends
      chain postrouting         what leaves the pod ranges gets the address of the way out
      chain guard               nobody on the bridge may speak to the host's 127.0.0.0/8

"ether type" is what the frame says: a frame with a VLAN tag says so, and is dropped with the rest.

An element is both text, for a table written whole by `nft`, and bytes, for a message that adds or
removes it alone (`nftables.py`). All bytes of a key are padded to four.

To a pod, who comes by a host port is as it was, with two exceptions: a pod of this bridge, whose
answer would else go straight back and past the translation; and the host by 127.0.0.1, which nobody
can answer. Both appear as the gateway. [::1] leads nowhere: the kernel lets no answer in to it.
"""

import socket
import struct
from collections.abc import Callable, Iterable, Sequence
from ipaddress import ip_address
from typing import Final

import msgspec

from pycri.model.pod import PortMapping, Protocol
from pycri.model.ranges import Address, Network
from pycri.network import hostports
from pycri.network.ipam import Endpoint
from pycri.network.netlink import link_local_of

_PROTOCOLS: Final = {
    Protocol.TCP: socket.IPPROTO_TCP,
    Protocol.UDP: socket.IPPROTO_UDP,
    Protocol.SCTP: socket.IPPROTO_SCTP,
}
_KEYS: Final = {4: "ip", 6: "ip6"}

SETS: Final = (
    *(("bridge", name) for name in ("senders4", "senders6", "targets6")),
    *(("inet", f"ports{version}{at}") for version in _KEYS for at in ("", "_at")),
)
"""Family and name of each set and map."""


class Field(msgspec.Struct, frozen=True):
    """A part of a key or of what it is mapped to."""

    text: str
    data: bytes


class Element(msgspec.Struct, frozen=True, kw_only=True):
    """An element of a set, or of a map if it has data."""

    family: str
    set: str
    key: tuple[Field, ...]
    data: tuple[Field, ...] = ()

    @property
    def text(self) -> str:
        """The element as nft reads it."""
        key = " . ".join(field.text for field in self.key)
        data = " . ".join(field.text for field in self.data)
        return f"{key} : {data}" if data else key


def sender_elements(endpoint: Endpoint, interface: str) -> list[Element]:
    """Return what lets the pod speak. interface: the name of its host end."""
    found = []
    port = Field(f'"{interface}"', interface.encode().ljust(16, b"\0"))
    mac = Field(endpoint.mac, bytes.fromhex(endpoint.mac.replace(":", "")) + bytes(2))
    addresses = list(endpoint.addresses)
    if any(address.version == 6 for address in addresses):
        addresses.append(link_local_of(endpoint.mac).ip)
    for address in addresses:
        own = _address(address)
        name = f"senders{address.version}"
        found.append(Element(family="bridge", set=name, key=(port, mac, own)))
        if address.version == 6:
            target = Field(f"0x{address.packed.hex()}", address.packed)
            found.append(Element(family="bridge", set="targets6", key=(port, target)))
    return found


def port_elements(endpoint: Endpoint) -> list[Element]:
    """Return what leads from host ports to the pod."""
    return [
        _port_element(mapping, address)
        for mapping in endpoint.ports
        for address in endpoint.addresses
        if address.version in hostports.families_of(mapping)
    ]


def render_tables(
    table: str, bridge: str, prefix: str, ranges: Sequence[Network], elements: Iterable[Element]
) -> str:
    """Return the script that puts both tables in the place of older ones, in one transaction.

    prefix: how the names of the pods' host ends begin. ranges: none inside another.
    """
    sets: dict[str, list[str]] = {}
    for element in elements:
        sets.setdefault(element.set, []).append(element.text)

    def contents(name: str) -> str:
        texts = sets.get(name)
        return f" elements = {{ {', '.join(texts)} }};" if texts else ""

    return (
        render_removal(table)
        + f"""\
table bridge {table} {{
    set senders4 {{ typeof iifname . ether saddr . ip saddr;{contents("senders4")} }}
    set senders6 {{ typeof iifname . ether saddr . ip6 saddr;{contents("senders6")} }}
    set targets6 {{ typeof iifname . @th,64,128;{contents("targets6")} }}
    chain prerouting {{
        type filter hook prerouting priority filter;
        iifname "{prefix}*" jump from_pod
    }}
    chain from_pod {{
        ether type ip iifname . ether saddr . ip saddr @senders4 accept
        icmpv6 type {{ nd-router-advert, nd-redirect }} drop
        icmpv6 type nd-neighbor-advert iifname . @th,64,128 != @targets6 drop
        ether type ip6 iifname . ether saddr . ip6 saddr @senders6 accept
        iifname . ether saddr . arp saddr ip != @senders4 drop
        iifname . arp saddr ether . arp saddr ip @senders4 accept
        drop
    }}
}}
table inet {table} {{
{_render_maps(contents)}
    chain prerouting {{
        type nat hook prerouting priority dstnat;
        fib daddr type local jump host_ports
    }}
    chain output {{
        type nat hook output priority -100;
        ip6 daddr ::1 return
        fib daddr type local jump host_ports
    }}
    chain host_ports {{
        dnat ip to ip daddr . meta l4proto . th dport map @ports4_at
        dnat ip to meta l4proto . th dport map @ports4
        dnat ip6 to ip6 daddr . meta l4proto . th dport map @ports6_at
        dnat ip6 to meta l4proto . th dport map @ports6
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat;
{_render_masquerade(bridge, ranges)}
    }}
    chain guard {{
        type filter hook prerouting priority raw;
        iifname "{bridge}" ip daddr 127.0.0.0/8 drop
    }}
}}
"""
    )


def render_removal(table: str) -> str:
    """Return the script that removes both tables; absent is fine."""
    # "add" makes "delete" safe where there is no table yet: nft has no "delete if exists".
    return "".join(
        f"add table {family} {table}\ndelete table {family} {table}\n"
        for family in ("bridge", "inet")
    )


def _render_maps(contents: Callable[[str], str]) -> str:
    lines = []
    for version, key in _KEYS.items():
        target = f"{key} daddr . th dport"
        for name, host in ((f"ports{version}", ""), (f"ports{version}_at", f"{key} daddr . ")):
            kind = f"typeof {host}meta l4proto . th dport : {target};"
            lines.append(f"    map {name} {{ {kind}{contents(name)} }}")
    return "\n".join(lines)


def _render_masquerade(bridge: str, ranges: Sequence[Network]) -> str:
    # fully-random: two pods that send from the same port at once else race for one mapping, and
    # the loser's first packet (a DNS query, mostly) is dropped.
    lines = []
    for version, key in _KEYS.items():
        loopback = ", 127.0.0.0/8" if version == 4 else ""
        pods = ", ".join(str(network) for network in ranges if network.version == version)
        if pods:
            out = f"{key} saddr {{ {pods} }} {key} daddr != {{ {pods} }}"
            back = f'oifname "{bridge}" ct status dnat {key} saddr {{ {pods}{loopback} }}'
            lines += [f"{match} masquerade fully-random" for match in (out, back)]
    return "\n".join(f"        {line}" for line in lines)


def _port_element(mapping: PortMapping, address: Address) -> Element:
    number = _PROTOCOLS[mapping.protocol]
    protocol = Field(mapping.protocol.name.lower(), struct.pack("=Bxxx", number))
    key: tuple[Field, ...] = (protocol, _port(mapping.host_port))
    name = f"ports{address.version}"
    if not hostports.is_for_all(mapping):
        name, key = f"{name}_at", (_address(ip_address(mapping.host_ip)), *key)
    return Element(
        family="inet", set=name, key=key, data=(_address(address), _port(mapping.container_port))
    )


def _address(address: Address) -> Field:
    return Field(str(address), address.packed)


def _port(port: int) -> Field:
    return Field(str(port), struct.pack("!Hxx", port))
