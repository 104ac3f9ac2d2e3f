# SPDX-License-Identifier: Apache-2.0
"""The built-in network: every pod is on one bridge of this node, behind the node's address.

                    bridge (first address of the range) ── routing, masquerade ── out
                      │
    host namespace  pcXXXXYYYYYYYYY         XXXX: from the bridge's name; Y: from the pod's id
    ──────────────────│─────────────────────────────────────────────────────────────────────
    pod namespace   eth0 (address of the range, default route to the bridge)

Order of an attachment, and of its undo: address written, veth made straight into the pod's
namespace, eth0 configured. `ipam.py` and `leases.py` say when an address is free again.

The range is the configured one until `set_pod_cidr` names another. Pods keep the address they have;
the bridge keeps the gateway address of an old range until no pod uses it. The bridge's own
addresses are the record of which ranges are in use.

IPv4 only. Forwarding is switched on for the whole host (net.ipv4.ip_forward), and never off.
"""

import asyncio
import contextlib
import errno
import os
import socket
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, collapse_addresses
from typing import Final, TypeVar

import msgspec

from pycri import errors
from pycri.config import NetworkSettings
from pycri.model.ids import PodId
from pycri.model.network import Attachment, Interface
from pycri.model.pod import PodSpec
from pycri.network import nftables
from pycri.network.ipam import gateway_of
from pycri.network.leases import Leases
from pycri.network.netlink import POD_INTERFACE, Link, Netlink
from pycri.state import records
from pycri.state.database import Database

T = TypeVar("T")

POD_CIDR_FIELD: Final = "runtime_config.network_config.pod_cidr"
POD_CIDR_KEY: Final = "pod_cidr"
MIN_ADDRESSES: Final = 4
"""Network, gateway, one pod, broadcast."""


class _Bridge(msgspec.Struct, frozen=True, kw_only=True):
    """The bridge as found: gateways are the addresses that make it the gateway of a range."""

    index: int
    gateways: list[IPv4Interface]


class _Overlap(errors.Unavailable):
    """The range is in use on this host; `set_pod_cidr` blames its caller for it instead."""


def parse_pod_cidr(cidr: str) -> IPv4Network:
    """Return the IPv4 range of "v4" or of a pair "v4,v6", in either order.

    Raises: InvalidRequest if a part is no range, or none is IPv4, or that one is too small.
    """
    for part in cidr.split(","):
        if ":" in part:
            continue  # IPv6: issue 6
        try:
            network = IPv4Network(part.strip())
        except ValueError as error:
            raise errors.InvalidRequest(POD_CIDR_FIELD, str(error)) from error
        if network.num_addresses < MIN_ADDRESSES:
            raise errors.InvalidRequest(POD_CIDR_FIELD, f"{network} has no room for a pod")
        return network
    raise errors.InvalidRequest(POD_CIDR_FIELD, f"{cidr!r} has no IPv4 range")


def interface_prefix(bridge: str) -> str:
    """Return how the host ends on this bridge begin, so that two pycri on a host do not mix."""
    return f"pc{zlib.crc32(bridge.encode()) & 0xFFFF:04x}"


def mac_of(address: IPv4Address) -> str:
    """Return the MAC that goes with an address, so that a reused address needs no new ARP."""
    return f"0a:58:{address.packed.hex(':')}"


class BridgeNetwork:
    """The network of all pods but those in the host's namespace."""

    def __init__(self, settings: NetworkSettings, database: Database) -> None:
        """Borrows `database`. Nothing is done before `start` (or `remove`)."""
        self._settings = settings
        self._database = database
        self._host: Netlink | None = None
        # One thread: the kernel makes one such change at a time anyway (RTNL).
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="netlink")
        self._leases = Leases(database, self.interface_name, self._delete_link)
        self._range = IPv4Network(settings.range)
        self._bridge_index = 0
        self._problem: str | None = "the pod network has not been started"
        self._changing = asyncio.Lock()  # one change of the range at a time

    def problem(self) -> str | None:
        """Return why pods cannot be attached (the condition NetworkReady), or None."""
        return self._problem

    def releasing(self) -> frozenset[PodId]:
        """Return the detached pods whose addresses are not free yet."""
        return self._leases.releasing

    def interface_name(self, pod_id: PodId) -> str:
        """Return the name of the pod's host end: 15 characters, the most the kernel takes."""
        return interface_prefix(self._settings.bridge) + pod_id[:9]

    async def start(self) -> None:
        """Make or adopt the bridge, switch forwarding on, write the nftables table. Idempotent.

        Raises: Unavailable if the range overlaps with another interface's, the bridge's name is
            taken by something else, or nft is missing; it is then also the `problem`.
        """
        saved = await self._database.transact(lambda c: records.load_meta(c, POD_CIDR_KEY))
        async with self._changing:
            await self._apply(IPv4Network(saved) if saved else self._range)

    async def set_pod_cidr(self, cidr: str) -> None:
        """Take the addresses of new pods from `cidr` ("v4" or "v4,v6"), now and after restarts.

        "" changes nothing. Raises: InvalidRequest if the range is bad or in use on this host;
            Unavailable as `start`.
        """
        if not cidr:
            return
        network = parse_pod_cidr(cidr)
        async with self._changing:
            if network != self._range or self._problem is not None:
                await self._check_gateway_free(network)
                problem = self._problem
                try:
                    await self._apply(network)
                except _Overlap as error:
                    self._problem = problem  # nothing has changed: the old range is still good
                    raise errors.InvalidRequest(POD_CIDR_FIELD, str(error)) from error
            await self._database.transact(
                lambda c: records.save_meta(c, POD_CIDR_KEY, str(network))
            )

    async def attach(
        self, pod_id: PodId, spec: PodSpec, netns_path: str, netlink_fd: int
    ) -> Attachment:
        """Give the pod's namespace an eth0 on the bridge, lo, and a default route.

        netns_path: the namespace's pin; netlink_fd: a NETLINK_ROUTE socket opened inside; borrowed.
        Raises: OutOfResources if the range is used up; SetupFailed if the kernel refuses;
            Unavailable while there is a `problem`. A failure leaves nothing behind.
        """
        if self._problem is not None:
            raise errors.Unavailable(f"the pod network is not ready: {self._problem}")
        address = await self._leases.allocate(pod_id, lambda: self._range)
        name = self.interface_name(pod_id)
        try:
            await self._blocking(
                lambda host: self._connect(host, name, address, netns_path, netlink_fd)
            )
        except BaseException as error:
            await self._leases.discard([pod_id])
            if isinstance(error, OSError):
                step = f"attach {address} to bridge {self._settings.bridge}"
                raise errors.SetupFailed(step, error.errno or 0, str(error)) from error
            raise
        interface = Interface(
            name=POD_INTERFACE,
            mac=mac_of(address.ip),
            addresses=(str(address),),
            host_interface=name,
        )
        return Attachment(interfaces=(interface,))

    async def detach(self, pod_id: PodId) -> None:
        """Take the pod's address back as soon as the kernel has removed its link. Idempotent.

        The pod's namespace must be let go of, before or soon after; a link that is still there
        after `leases.GONE_DEADLINE_S` is deleted.
        """
        await self._leases.release(pod_id)

    async def reconcile(self, pods: frozenset[PodId]) -> None:
        """Free the addresses and delete the links of all pods but `pods`.

        pods: every pod with a record, also those that are being made or stopped.
        """
        await self._leases.reconcile(pods)
        known = {self.interface_name(pod) for pod in pods | self._leases.releasing}
        for name in set(self._list_host_ends()) - known:
            await self._delete_link(name)
        async with self._changing:
            await self._drop_unused_ranges()

    async def remove(self) -> None:
        """Remove host ends, bridge and nftables table, for good; absent is fine."""
        self._problem = "the pod network has been removed"
        for name in self._list_host_ends():
            await self._delete_link(name)
        await self._blocking(lambda host: _delete_bridge(host, self._settings.bridge))
        await nftables.remove_table(self._settings.table)

    async def close(self) -> None:
        """Stop the background work; bridge, links and table stay for the pods. Idempotent."""
        await self._leases.close()
        self._thread.shutdown()
        if self._host is not None:
            self._host.close()
            self._host = None

    async def _apply(self, network: IPv4Network) -> None:
        """Make the host fit for pods of `network`; on failure say so in `problem` and raise."""
        try:
            bridge = await self._blocking(
                lambda host: _ensure_bridge(host, self._settings, network)
            )
            await nftables.write_table(self._settings.table, _ranges(bridge.gateways))
        except (errors.Unavailable, OSError) as error:
            self._problem = str(error)
            if isinstance(error, errors.Unavailable):
                raise
            message = f"bridge {self._settings.bridge} cannot be set up: {error}"
            raise errors.Unavailable(message) from error
        self._bridge_index, self._range, self._problem = bridge.index, network, None
        await self._drop_unused_ranges()

    async def _drop_unused_ranges(self) -> None:
        """Take the gateway addresses of former ranges off the bridge once no pod has their like."""
        if self._problem is not None:
            return
        held = [lease.address for lease in await self._leases.load()]
        gateways = await self._blocking(lambda host: _read_gateways(host, self._bridge_index))
        unused = [
            gateway
            for gateway in gateways
            if gateway.network != self._range
            and not any(address in gateway.network for address in held)
        ]
        if unused:
            await self._blocking(lambda host: _remove_gateways(host, self._bridge_index, unused))
            kept = [gateway for gateway in gateways if gateway not in unused]
            await nftables.write_table(self._settings.table, _ranges(kept))

    async def _check_gateway_free(self, network: IPv4Network) -> None:
        gateway = gateway_of(network).ip
        if any(lease.address == gateway for lease in await self._leases.load()):
            reason = f"{gateway}, the gateway of {network}, is the address of a pod"
            raise errors.InvalidRequest(POD_CIDR_FIELD, reason)

    def _connect(
        self, host: Netlink, name: str, address: IPv4Interface, netns_path: str, netlink_fd: int
    ) -> None:
        netns_fd = os.open(netns_path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            host.create_veth(
                name,
                master=self._bridge_index,
                netns_fd=netns_fd,
                mac=mac_of(address.ip),
                mtu=self._settings.mtu,
            )
        finally:
            os.close(netns_fd)
        with Netlink.borrow(netlink_fd) as pod:
            pod.configure_pod(address, gateway_of(address.network).ip)
        host.wait_running(name)

    async def _delete_link(self, name: str) -> None:
        await self._blocking(lambda host: _delete_link(host, name))

    def _list_host_ends(self) -> list[str]:
        prefix = interface_prefix(self._settings.bridge)
        return [name for _, name in socket.if_nameindex() if name.startswith(prefix)]

    async def _blocking(self, work: Callable[[Netlink], T]) -> T:
        """Run `work` in the network thread, with the host's socket."""

        def call() -> T:
            if self._host is None:
                self._host = Netlink.open()
            return work(self._host)

        return await asyncio.get_running_loop().run_in_executor(self._thread, call)


def _ensure_bridge(host: Netlink, settings: NetworkSettings, network: IPv4Network) -> _Bridge:
    link = _find_link(host, settings.bridge)
    if link is not None and link.kind != "bridge":
        raise errors.Unavailable(f"the interface {settings.bridge} is not a bridge")
    _check_overlap(host, network, but=link.index if link else 0)
    gateway = gateway_of(network)
    if link is None:
        host.create_bridge(settings.bridge, mac=mac_of(gateway.ip), mtu=settings.mtu)
        link = host.read_link(settings.bridge)
    # A pod could else send router advertisements and become the host's way out (CVE-2020-10749).
    _write_sysctl(f"net/ipv6/conf/{settings.bridge}/accept_ra", "0")
    if not link.up or link.mtu != settings.mtu:
        host.set_up(settings.bridge, mtu=settings.mtu)
    gateways = _read_gateways(host, link.index)
    if gateway not in gateways:
        host.add_address(link.index, gateway)
        gateways.append(gateway)
    _write_sysctl("net/ipv4/ip_forward", "1")
    return _Bridge(index=link.index, gateways=gateways)


def _check_overlap(host: Netlink, network: IPv4Network, *, but: int) -> None:
    for index, address in host.list_addresses():
        if index != but and address.network.overlaps(network):
            name = socket.if_indextoname(index)
            raise _Overlap(f"the pod range {network} overlaps with {address} of interface {name}")


def _read_gateways(host: Netlink, index: int) -> list[IPv4Interface]:
    """Return the bridge's addresses that are the first of their range; others are not ours."""
    return [
        address
        for link, address in host.list_addresses()
        if link == index
        and address.network.num_addresses >= MIN_ADDRESSES
        and address == gateway_of(address.network)
    ]


def _remove_gateways(host: Netlink, index: int, gateways: list[IPv4Interface]) -> None:
    for gateway in gateways:
        host.remove_address(index, gateway)


def _ranges(gateways: list[IPv4Interface]) -> list[IPv4Network]:
    """Return the networks of the gateways, sorted, none inside another: nft refuses overlaps."""
    return list(collapse_addresses(gateway.network for gateway in gateways))


def _find_link(host: Netlink, name: str) -> Link | None:
    try:
        return host.read_link(name)
    except OSError as error:
        if error.errno == errno.ENODEV:
            return None
        raise


def _delete_link(host: Netlink, name: str) -> None:
    try:
        host.delete_link(name)
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise


def _delete_bridge(host: Netlink, name: str) -> None:
    link = _find_link(host, name)
    if link is not None and link.kind == "bridge":
        _delete_link(host, name)


def _write_sysctl(name: str, value: str) -> None:
    """Write below /proc/sys, of the daemon's namespace; one that this kernel lacks is left out."""
    with contextlib.suppress(FileNotFoundError), open(f"/proc/sys/{name}", "r+") as file:
        if file.read().strip() != value:
            file.seek(0)
            file.write(value)
