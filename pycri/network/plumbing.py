# SPDX-License-Identifier: Apache-2.0
"""What the network thread does to the kernel: bridge, links, rules, queues, the short way, flows.

For one thread, which RTNL would make of several anyway; all calls block. `bridge.py` decides.
"""

import os
import socket
from collections.abc import Callable, Collection, Sequence
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_interface

import msgspec

from pycri.config import NetworkSettings
from pycri.logs import Log
from pycri.model.ids import PodId
from pycri.model.pod import Protocol
from pycri.model.ranges import InterfaceAddress, Network, gateway_of
from pycri.network import flows, host, hostports, shaping
from pycri.network.annotations import Bandwidth
from pycri.network.ipam import Endpoint
from pycri.network.netlink import POD_INTERFACE, Link, Netlink
from pycri.network.nftables import Ruleset
from pycri.network.shortcut import Shortcut

_log = Log("network")


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    """A pod to be connected. netns_path: the pin; netlink_fd: of a socket inside, borrowed."""

    endpoint: Endpoint
    ranges: tuple[Network, ...]
    bandwidth: Bandwidth
    netns_path: str
    netlink_fd: int

    @property
    def addresses(self) -> tuple[InterfaceAddress, ...]:
        """The addresses with the prefix lengths of their ranges, in the order of these."""
        by_version = {address.version: address for address in self.endpoint.addresses}
        return tuple(ip_interface((by_version[n.version], n.prefixlen)) for n in self.ranges)


class Plumbing:
    """The kernel's side of one bridge."""

    def __init__(
        self, settings: NetworkSettings, prefix: str, host_end: Callable[[PodId], str]
    ) -> None:
        """prefix: how host ends begin; host_end: the name of a pod's. Nothing is opened yet."""
        self._settings = settings
        self._prefix = prefix
        self._host_end = host_end
        self._netlink: Netlink | None = None
        self._ruleset = Ruleset(settings, prefix, host_end)
        self._shortcut: Shortcut | None = None
        self._bridge_index = 0

    def check_host(self, ranges: Sequence[Network], ours: Collection[InterfaceAddress]) -> None:
        """Raise Unavailable if this host cannot have the bridge (`host.check_host`)."""
        host.check_host(self._host, self._settings, ranges, ours)

    def ensure(self, ranges: Sequence[Network], endpoints: Sequence[Endpoint] | None) -> None:
        """Make bridge, ports and rules what they are to be.

        endpoints: what the rules are to be written for; None: they were written before, and need
            it only if others have changed rules.
        """
        self._bridge_index = host.ensure_bridge(self._host, self._settings, ranges)
        ends = [link for link in self._host.list_links() if link.name.startswith(self._prefix)]
        strays = [link for link in ends if link.master != self._bridge_index]
        for link in strays:
            self._host.set_master(link.name, self._bridge_index)
        served = _collapsed(self.gateways())
        if endpoints is not None:
            self._ruleset.replace(served, endpoints)
            if self._shortcut is not None:
                self._shortcut.close()
            self._shortcut = Shortcut(self._host)
        else:
            self._ruleset.set_ranges(served)
            self._ruleset.restore()
        self._lead_to_all(strays if endpoints is None else ends)

    def gateways(self) -> list[InterfaceAddress]:
        """Return the bridge's addresses."""
        return host.read_gateways(self._host, self._bridge_index)

    def remove_gateways(self, gateways: Sequence[InterfaceAddress]) -> None:
        """Take addresses of former ranges off the bridge."""
        for gateway in gateways:
            self._host.remove_address(self._bridge_index, gateway)
        self._ruleset.set_ranges(_collapsed(self.gateways()))

    def connect(self, connection: Connection) -> None:
        """Make the pod's link and all that belongs to it."""
        endpoint = connection.endpoint
        name = self._host_end(endpoint.pod_id)
        # Before the link: nothing is to come through it that the rules do not know.
        self._ruleset.add(endpoint)
        self._create_veth(name, endpoint.mac, connection.netns_path)
        gateways = [gateway_of(network).ip for network in connection.ranges]
        with Netlink.borrow_route(connection.netlink_fd) as pod:
            pod.configure_pod(connection.addresses, gateways, endpoint.mac)
        self._limit(connection)
        self._forget_others(endpoint)
        self._lead_to(endpoint, self._host.find_index(name))
        self._host.wait_running(name)
        # The bridge sends nothing itself before it has noted the carrier of its first port.
        self._host.wait_running(self._settings.bridge)

    def complete(self, connection: Connection) -> None:
        """Add host ports and limits to a link that was made without."""
        self._ruleset.add(connection.endpoint)
        self._limit(connection)
        self._forget_others(connection.endpoint)

    def close_ports(self, endpoint: Endpoint) -> None:
        """Let no host port lead to the pod, nor what came by one before."""
        self._ruleset.close_ports(endpoint.pod_id)
        _forget_flows(endpoint, lambda flow: flow.answerer in endpoint.addresses)

    def remove_rules(self, pod_ids: Sequence[PodId]) -> None:
        """Remove what the rules know of pods whose links are gone; absent is fine."""
        self._ruleset.remove(pod_ids)
        if self._shortcut is not None:
            self._shortcut.remove(pod_ids)

    def check(
        self, endpoints: Sequence[Endpoint], gateways: Collection[InterfaceAddress]
    ) -> list[str]:
        """Compare the kernel with what is on record; return what differs. Changes nothing.

        gateways: addresses that the bridge is to have.
        """
        links = {link.name: link for link in self._host.list_links()}
        shortcut = self._shortcut.check(links.values()) if self._shortcut else []
        bridge = links.get(self._settings.bridge)
        if bridge is None or not bridge.up:
            return [f"the bridge {self._settings.bridge} is not there, or down"]
        found = [
            f"the bridge {bridge.name} lacks its address {gateway}"
            for gateway in gateways
            if gateway not in host.read_gateways(self._host, bridge.index)
        ]
        for endpoint in endpoints:
            name = self._host_end(endpoint.pod_id)
            link = links.pop(name, None)
            if endpoint.releasing:
                found.append(f"pod {endpoint.pod_id}: its addresses are still being released")
            elif link is None:
                found.append(f"pod {endpoint.pod_id}: its link {name} is not there")
            elif link.master != bridge.index or not link.running:
                found.append(f"pod {endpoint.pod_id}: its link {name} is down or off the bridge")
        found += [f"the link {n} is no pod's" for n in links if n.startswith(self._prefix)]
        return found + self._ruleset.check() + shortcut

    def delete_link(self, name: str) -> None:
        """Delete a link; absent is fine."""
        host.delete_link(self._host, name)

    def list_host_ends(self) -> list[str]:
        """Return the names of all pods' links."""
        return [name for _, name in socket.if_nameindex() if name.startswith(self._prefix)]

    def remove(self) -> bool:
        """Remove host ends, bridge and tables; return whether the host has other bridges."""
        for name in self.list_host_ends():
            self.delete_link(name)
        others = host.delete_bridge(self._host, self._settings.bridge)
        self._ruleset.remove_tables()
        return others

    def close(self) -> None:
        """Close the sockets. Idempotent."""
        self._ruleset.close()
        if self._shortcut is not None:
            self._shortcut.close()
        if self._netlink is not None:
            self._netlink.close()
            self._netlink = None

    @property
    def _host(self) -> Netlink:
        if self._netlink is None:
            self._netlink = Netlink.open_route()
        return self._netlink

    def _lead_to_all(self, ends: Sequence[Link]) -> None:
        """Lead to the pods behind these host ends, and look at what leads to the others."""
        indices = {link.name: link.index for link in ends}
        for endpoint in self._ruleset.endpoints:
            index = indices.get(self._host_end(endpoint.pod_id))
            if index is not None:
                with host.absent_is_fine():
                    self._lead_to(endpoint, index)
        if self._shortcut is not None:
            self._shortcut.refresh()

    def _lead_to(self, endpoint: Endpoint, index: int) -> None:
        """Have the bridge, and the short way past it, know where the pod is."""
        self._host.pin_mac(index, endpoint.mac)
        if self._shortcut is not None:
            self._shortcut.add(endpoint, index)

    def _limit(self, connection: Connection) -> None:
        bandwidth = connection.bandwidth
        if bandwidth.egress_bits is not None:
            with Netlink.borrow_route(connection.netlink_fd) as pod:
                shaping.limit(pod, POD_INTERFACE, bandwidth.egress_bits)
        if bandwidth.ingress_bits is not None:
            name = self._host_end(connection.endpoint.pod_id)
            shaping.limit(self._host, name, bandwidth.ingress_bits)

    def _forget_others(self, endpoint: Endpoint) -> None:
        """Forget the flows that came to the pod's host ports when they were the host's own."""
        if endpoint.ports:
            here = {address.ip for _, address in self._host.list_addresses()}
            _forget_flows(endpoint, lambda flow: flow.answerer in here)

    def _create_veth(self, name: str, mac: str, netns_path: str) -> None:
        netns_fd = os.open(netns_path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._host.create_veth(
                name,
                master=self._bridge_index,
                netns_fd=netns_fd,
                mac_address=mac,
                mtu=self._settings.mtu,
            )
        finally:
            os.close(netns_fd)


def _forget_flows(endpoint: Endpoint, unwanted: Callable[[flows.Flow], bool]) -> None:
    for mapping in endpoint.ports:
        if mapping.protocol is not Protocol.UDP:
            continue
        for version in hostports.families_of(mapping):
            try:
                flows.forget_udp(version, mapping.host_port, unwanted)
            except OSError as error:
                # Without it a client of before waits for the flow's end: 30 seconds of silence.
                _log.warning("flows not forgotten", port=mapping.host_port, reason=str(error))


def _collapsed(gateways: Sequence[InterfaceAddress]) -> list[Network]:
    """Return the networks of the gateways, sorted, none inside another: nft refuses overlaps."""
    networks = [gateway.network for gateway in gateways]
    found: list[Network] = []
    found += collapse_addresses(n for n in networks if isinstance(n, IPv4Network))
    found += collapse_addresses(n for n in networks if isinstance(n, IPv6Network))
    return found
