# SPDX-License-Identifier: Apache-2.0
"""The built-in network: every pod is on one bridge of this node, behind the node's addresses.

           bridge (first address of each range) ── routing, masquerade, host ports ── out
                      │
    host namespace  pcXXXXYYYYYYYYY         XXXX: from the bridge's name; Y: from the pod's id
    ──────────────────│─────────────────────────────────────────────────────────────────────
    pod namespace   eth0 (an address of each range, default routes to the bridge)

Order of an attachment: endpoint written (`ipam.py`), its elements in the rules, veth made straight
into the pod's namespace, eth0 configured. `leases.py` says when all that is taken back.

The ranges are the configured ones until `set_pod_cidr` names others. Pods keep the addresses they
have; the bridge keeps the gateway address of an old range until no pod uses it.

What was changed on the host is recorded first: the bridge's addresses, and the forwarding of the
whole host, which `remove` puts back unless the host has other bridges, which may live by it.
"""

import asyncio
import zlib
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_interface
from typing import Final, TypeVar

import msgspec

from pycri import errors
from pycri.config import NetworkSettings
from pycri.kernel.priority import go_first
from pycri.logs import Log
from pycri.model.ids import PodId
from pycri.model.network import Attachment, Interface
from pycri.model.pod import PodSpec
from pycri.model.ranges import (
    InterfaceAddress,
    Network,
    gateway_of,
    parse_ranges,
    render_ranges,
)
from pycri.network import annotations, sysctls
from pycri.network.annotations import Bandwidth
from pycri.network.host import RangeInUse
from pycri.network.hostports import host_ports_of
from pycri.network.interface import Preparation
from pycri.network.ipam import Wish
from pycri.network.leases import Leases, has_link
from pycri.network.netlink import POD_INTERFACE
from pycri.network.plumbing import Connection, Plumbing
from pycri.state import records
from pycri.state.database import Database

T = TypeVar("T")

POD_CIDR_FIELD: Final = "runtime_config.network_config.pod_cidr"
POD_CIDR_KEY: Final = "pod_cidr"
GATEWAYS_KEY: Final = "gateways"
SYSCTLS_KEY: Final = "sysctls"

_log = Log("network")


def parse_pod_cidr(cidr: str) -> tuple[Network, ...]:
    """Return the ranges of "v4", "v6" or a pair, in their order. Raises: InvalidRequest."""
    try:
        return parse_ranges(cidr)
    except ValueError as error:
        raise errors.InvalidRequest(POD_CIDR_FIELD, str(error)) from error


def interface_prefix(bridge: str) -> str:
    """Return how the host ends on this bridge begin, so that two pycri on a host do not mix."""
    return f"pc{zlib.crc32(bridge.encode()) & 0xFFFF:04x}"


class BridgeNetwork:
    """The network of all pods but those in the host's namespace (`interface.PodNetwork`)."""

    def __init__(self, settings: NetworkSettings, database: Database) -> None:
        """Borrows `database`. Nothing is done before `start` (or `remove`)."""
        self._settings = settings
        self._database = database
        prefix = interface_prefix(settings.bridge)
        self._plumbing = Plumbing(settings, prefix, self.interface_name)
        self._thread = ThreadPoolExecutor(1, "netlink", initializer=go_first)
        self._leases = Leases(database, self.interface_name, self._delete_link, self._remove_rules)
        self._ranges = parse_ranges(settings.range)
        self._prepared: dict[PodId, Connection] = {}
        self._problem: str | None = "the pod network has not been started"
        self._changing = asyncio.Lock()  # one change of bridge and ranges at a time

    def problem(self) -> str | None:
        """Return why pods cannot be attached (the condition NetworkReady), or None."""
        return self._problem

    def describe(self) -> dict[str, str]:
        """Return bridge and ranges."""
        return {"network": f"built-in: {self._settings.bridge}, {render_ranges(self._ranges)}"}

    def releasing(self) -> frozenset[PodId]:
        """Return the detached pods whose addresses are not free yet."""
        return self._leases.releasing

    def interface_name(self, pod_id: PodId) -> str:
        """Return the name of the pod's host end: 15 characters, the most the kernel takes."""
        return interface_prefix(self._settings.bridge) + pod_id[:9]

    async def start(self) -> None:
        """Make or adopt the bridge, switch forwarding on, write the rules. Idempotent."""
        saved = await self._load(POD_CIDR_KEY)
        async with self._changing:
            await self._apply(parse_ranges(saved) if saved else self._ranges)

    async def set_pod_cidr(self, cidr: str) -> None:
        """Take the addresses of new pods from `cidr`, now and after restarts."""
        if not cidr:
            return
        ranges = parse_pod_cidr(cidr)
        async with self._changing:
            if ranges != self._ranges or self._problem is not None:
                await self._check_gateways_free(ranges)
                problem = self._problem
                try:
                    await self._apply(ranges)
                except RangeInUse as error:
                    self._problem = problem  # nothing has changed: the old ranges are still good
                    raise errors.InvalidRequest(POD_CIDR_FIELD, str(error)) from error
            await self._save(POD_CIDR_KEY, render_ranges(ranges))

    async def attach(
        self, pod_id: PodId, spec: PodSpec, netns_path: str, netlink_fd: int
    ) -> Attachment:
        """Give the pod's namespace an eth0 on the bridge, its host ports, and lo."""
        if self._problem is not None:
            raise errors.Unavailable(f"the pod network is not ready: {self._problem}")
        wish = Wish(
            addresses=annotations.parse_addresses(spec.annotations),
            mac=annotations.parse_mac(spec.annotations),
            ports=host_ports_of(spec),
        )
        bandwidth = annotations.parse_bandwidth(spec.annotations)
        connection = self._prepared.pop(pod_id, None)
        if connection is None:
            connection = await self._allocate(pod_id, wish, netns_path, netlink_fd)
            connection = msgspec.structs.replace(connection, bandwidth=bandwidth)
            await self._connect(connection, self._plumbing.connect)
        else:
            endpoint = await self._leases.own(connection.endpoint, wish.ports)
            if wish.ports or bandwidth != Bandwidth():
                connection = msgspec.structs.replace(
                    connection, endpoint=endpoint, bandwidth=bandwidth, netlink_fd=netlink_fd
                )
                await self._connect(connection, self._plumbing.complete)
        interface = Interface(
            name=POD_INTERFACE,
            mac=connection.endpoint.mac,
            addresses=tuple(map(str, connection.addresses)),
            host_interface=self.interface_name(pod_id),
        )
        return Attachment(interfaces=(interface,))

    async def preparing(self, spec: PodSpec | None = None) -> Preparation | None:
        """Return this network, unless it is not ready or `spec` asks for an address or a MAC."""
        asked = spec.annotations if spec else {}
        chosen = annotations.parse_addresses(asked) or annotations.parse_mac(asked)
        return None if chosen or self._problem is not None else self

    def terms(self) -> str:
        """Return the ranges."""
        return render_ranges(self._ranges)

    async def prepare(self, pod_id: PodId, netns_path: str, netlink_fd: int) -> None:
        """Give the namespace an eth0 with addresses of its own, and lo, before its pod comes."""
        connection = await self._allocate(pod_id, Wish(), netns_path, netlink_fd, spare=True)
        await self._connect(connection, self._plumbing.connect)
        self._prepared[pod_id] = connection

    def has_prepared(self, pod_id: PodId) -> bool:
        """Tell whether the pod's network was made ahead of it, and is still to be attached."""
        return pod_id in self._prepared

    def is_intact(self, pod_id: PodId) -> bool:
        """Tell whether the link is there. What else others may have changed is put right.

        The rules, if they were flushed, as soon as the next network is prepared, or attached.
        """
        return has_link(self.interface_name(pod_id))

    async def detach(self, pod_id: PodId) -> None:
        """Free the host ports now, and the addresses once the kernel has removed the link.

        A link that is still there after `leases.GONE_DEADLINE_S` is deleted.
        """
        self._prepared.pop(pod_id, None)
        endpoint = await self._leases.release(pod_id)
        if endpoint is not None and endpoint.ports:
            await self._blocking(lambda: self._plumbing.close_ports(endpoint))
            await self._leases.free_ports(pod_id)

    async def reconcile(self, pods: frozenset[PodId]) -> None:
        """Free what no pod of `pods` has; put right what others did to bridge, ports and rules."""
        await self._leases.reconcile(pods)
        strays = self._plumbing.list_host_ends()
        # Looked up after the listing: a pod that is just being attached has its endpoint by now.
        known = {self.interface_name(pod) for pod in pods | self._leases.known}
        for name in set(strays) - known:
            await self._delete_link(name)
        if self._problem is not None:
            return
        async with self._changing:
            try:
                await self._blocking(lambda: self._plumbing.ensure(self._ranges, None))
                await self._forward(self._ranges)
                await self._drop_unused_ranges()
            except (errors.Unavailable, OSError) as error:
                self._problem = str(error)  # the next round starts the network again
                raise

    async def check(self) -> list[str]:
        """Compare the records with bridge, links, rules and forwarding."""
        if self._problem is not None:
            return [self._problem]
        endpoints, gateways = await self._leases.load(), await self._load_gateways()
        found = await self._blocking(lambda: self._plumbing.check(endpoints, gateways))
        versions = frozenset(network.version for network in self._ranges)
        changes = await self._blocking(lambda: sysctls.plan_forwarding(versions))
        return found + [f"{change.name} is {change.old}, not {change.new}" for change in changes]

    async def remove(self) -> None:
        """Remove host ends, bridge and tables, for good, and put forwarding back."""
        self._problem = "the pod network has been removed"
        others = await self._blocking(self._plumbing.remove)
        changes = _decode_changes(await self._load(SYSCTLS_KEY))
        if others:
            _log.info("forwarding is left as it is: this host has other bridges")
        else:
            await self._blocking(lambda: sysctls.restore(changes))
        await self._save(SYSCTLS_KEY, "{}")
        await self._save(GATEWAYS_KEY, "[]")

    async def close(self) -> None:
        """Stop the background work; bridge, links and rules stay for the pods. Idempotent."""
        await self._leases.close()
        self._thread.shutdown()
        self._plumbing.close()

    async def _apply(self, ranges: tuple[Network, ...]) -> None:
        """Make the host fit for pods of `ranges`; on failure say so in `problem` and raise."""
        try:
            ours = await self._load_gateways() | {gateway_of(network) for network in ranges}
            await self._blocking(lambda: self._plumbing.check_host(ranges, ours))
            await self._save_gateways(ours)
            endpoints = await self._leases.load()
            await self._blocking(lambda: self._plumbing.ensure(ranges, endpoints))
            await self._forward(ranges)
        except (errors.Unavailable, OSError) as error:
            self._problem = str(error)
            if isinstance(error, errors.Unavailable):
                raise
            message = f"bridge {self._settings.bridge} cannot be set up: {error}"
            raise errors.Unavailable(message) from error
        self._ranges, self._problem = ranges, None
        await self._drop_unused_ranges()

    async def _forward(self, ranges: Sequence[Network]) -> None:
        """Switch forwarding on, for the whole host; what it was is recorded first."""
        versions = frozenset(network.version for network in ranges)
        plan = await self._blocking(lambda: sysctls.plan_forwarding(versions))
        if plan:
            changes = _decode_changes(await self._load(SYSCTLS_KEY))
            changes |= {change.name: change for change in plan}
            await self._save(SYSCTLS_KEY, msgspec.json.encode(changes).decode())
            await self._blocking(lambda: sysctls.apply(plan))

    async def _drop_unused_ranges(self) -> None:
        """Take the gateway addresses of former ranges off the bridge once no pod has their like."""
        current = {gateway_of(network) for network in self._ranges}
        former = await self._load_gateways() - current
        if not former:
            return
        held = [address for endpoint in await self._leases.load() for address in endpoint.addresses]
        unused = [
            gateway for gateway in former if not any(address in gateway.network for address in held)
        ]
        if unused:
            await self._blocking(lambda: self._plumbing.remove_gateways(unused))
            await self._save_gateways(former - set(unused) | current)

    async def _check_gateways_free(self, ranges: Sequence[Network]) -> None:
        held = {address for endpoint in await self._leases.load() for address in endpoint.addresses}
        for network in ranges:
            gateway = gateway_of(network).ip
            if gateway in held:
                reason = f"{gateway}, the gateway of {network}, is the address of a pod"
                raise errors.InvalidRequest(POD_CIDR_FIELD, reason)

    async def _allocate(
        self,
        pod_id: PodId,
        wish: Wish,
        netns_path: str,
        netlink_fd: int,
        *,
        spare: bool = False,
    ) -> Connection:
        ranges = self._ranges

        def choose_ranges() -> tuple[Network, ...]:
            nonlocal ranges
            ranges = self._ranges
            return ranges

        endpoint = await self._leases.allocate(pod_id, wish, choose_ranges, spare=spare)
        return Connection(
            endpoint=endpoint,
            ranges=ranges,
            bandwidth=Bandwidth(),
            netns_path=netns_path,
            netlink_fd=netlink_fd,
        )

    async def _connect(self, connection: Connection, work: Callable[[Connection], None]) -> None:
        try:
            await self._blocking(lambda: work(connection))
        except BaseException as error:
            await self._leases.discard([connection.endpoint.pod_id])
            if isinstance(error, OSError):
                addresses = " and ".join(map(str, connection.addresses))
                step = f"attach {addresses} to bridge {self._settings.bridge}"
                raise errors.SetupFailed(step, error.errno or 0, str(error)) from error
            raise

    async def _delete_link(self, name: str) -> None:
        await self._blocking(lambda: self._plumbing.delete_link(name))

    async def _remove_rules(self, pod_ids: Sequence[PodId]) -> None:
        await self._blocking(lambda: self._plumbing.remove_rules(pod_ids))

    async def _load(self, key: str) -> str | None:
        return await self._database.transact(lambda c: records.load_meta(c, key))

    async def _save(self, key: str, value: str) -> None:
        await self._database.transact(lambda c: records.save_meta(c, key, value))

    async def _load_gateways(self) -> set[InterfaceAddress]:
        return decode_gateways(await self._load(GATEWAYS_KEY))

    async def _save_gateways(self, gateways: Collection[InterfaceAddress]) -> None:
        await self._save(GATEWAYS_KEY, msgspec.json.encode(sorted(map(str, gateways))).decode())

    async def _blocking(self, work: Callable[[], T]) -> T:
        """Run `work` in the network thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def decode_gateways(saved: str | None) -> set[InterfaceAddress]:
    """Return the addresses that were given to the bridge, as they are on record."""
    return set(map(ip_interface, msgspec.json.decode(saved or "[]", type=list[str])))


def _decode_changes(saved: str | None) -> dict[str, sysctls.Change]:
    return msgspec.json.decode(saved or "{}", type=dict[str, sysctls.Change])
