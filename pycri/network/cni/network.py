# SPDX-License-Identifier: Apache-2.0
"""The network of pods as CNI plugins make it.

The default network of the configuration folder is each pod's eth0; networks that the pod names in
its annotation `network.pycri/networks` follow as eth1, eth2 and so on. What is asked of plugins is
written down first (`attachments.py`) and asked again, in the background, until they have done it.

A plugin that hangs or fails keeps neither the daemon from starting nor a pod from being stopped:
`detach` tries once, and waits for it only while the pod's namespace is there; then `reconcile`
goes on, also without the pod's record.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Final

import msgspec

from pycri import errors
from pycri.config import CniSettings
from pycri.logs import Log
from pycri.model.ids import PodId
from pycri.model.network import Attachment, Interface
from pycri.model.pod import PodSpec
from pycri.model.ranges import Network as AddressRange
from pycri.model.ranges import render_ranges
from pycri.network.annotations import field_of
from pycri.network.bridge import POD_CIDR_KEY, parse_pod_cidr
from pycri.network.cni import attachments
from pycri.network.cni.arguments import (
    MAIN_ONLY,
    NETWORKS,
    list_arguments,
    make_capability_arguments,
    parse_networks,
)
from pycri.network.cni.attachments import CniAttachment
from pycri.network.cni.conflist import Folder, Network
from pycri.network.cni.folder import ConfigFolder
from pycri.network.cni.gate import Gate
from pycri.network.cni.operations import Operations, is_pinned
from pycri.network.cni.plugins import PluginFailed, end_orphans
from pycri.network.cni.results import list_interfaces
from pycri.network.interface import Preparation
from pycri.network.netlink import Netlink
from pycri.state.database import Database
from pycri.state.records import load_meta, save_meta

STATUS_INTERVAL_S: Final = 5.0
"""How often plugins are asked for their status, at most: as often as the kubelet asks us."""
FREE_AT_ONCE: Final = 4
"""For how many pods DEL is run in the background at a time."""

_log = Log("cni")


class CniNetwork:
    """A `PodNetwork` (network/interface.py)."""

    def __init__(self, settings: CniSettings, database: Database, mark: str) -> None:
        """mark: tells our plugins from those of other daemons on the host."""
        self.folder = ConfigFolder(settings.conf_dir)
        self._database = database
        self._mark = mark
        self._operations = Operations(settings.bin_dirs, settings.timeout_s, mark)
        self._gate = Gate()
        self._attached: set[PodId] = set()  # by this daemon, and not detached since
        self._fault: str | None = "CNI has not been started"
        self._status_of: Network | None = None
        self._status: str | None = None
        self._asked_at = 0.0
        self._looking: asyncio.Task[None] | None = None
        self._asking: asyncio.Task[None] | None = None
        self._collecting: asyncio.Task[None] | None = None
        self._freeing: dict[PodId, asyncio.Task[None]] = {}
        self._free_at_once = asyncio.Semaphore(FREE_AT_ONCE)

    @property
    def idle(self) -> bool:
        """Whether no DEL and no GC is due in the background."""
        return not self._freeing and (self._collecting is None or self._collecting.done())

    def problem(self) -> str | None:
        """Return why pods cannot be attached, as it was a moment ago, and look again meanwhile."""
        self.look_soon()
        return self._fault or self._status

    def describe(self) -> dict[str, str]:
        """Return the folder's default network, in JSON, and what is wrong, as containerd does."""
        network = self.folder.held.default
        config = {"confDir": self.folder.path, "network": network and network.as_json()}
        return {
            "network": "CNI",
            "cniconfig": msgspec.json.encode(config).decode(),
            "lastCNILoadStatus": self._fault or "OK",
        }

    def look_soon(self) -> None:
        """Look at the folder and ask for the plugins' status, in the background."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look_again(), name="CNI folder")

    async def clean_up(self) -> None:
        """End what a former daemon left running, and have plugins free what nobody holds (GC).

        Before the first pod: our own plugins bear the same mark. Once; another call does nothing.
        """
        if self._collecting is None:
            folder = await self.folder.read()
            await end_orphans(self._mark)
            # In the background: plugins that hang keep pods waiting, but not the daemon.
            self._collecting = asyncio.create_task(self._collect(folder), name="CNI GC")

    async def start(self) -> None:
        """Clean up, and look for a configuration.

        Raises: Unavailable if there is no usable one.
        """
        await self.clean_up()
        await self._look(await self.folder.read())
        if self._fault is not None:
            raise errors.Unavailable(self._fault)

    async def set_pod_cidr(self, cidr: str) -> None:
        """Offer `cidr` to plugins that take ranges (the capability ipRanges), from now on."""
        if cidr:
            text = render_ranges(parse_pod_cidr(cidr))
            await self._database.transact(lambda c: save_meta(c, POD_CIDR_KEY, text))

    async def preparing(self, spec: PodSpec | None = None) -> Preparation | None:
        """Return None: plugins are told of the pod, and are run when it is there."""
        return None

    async def attach(
        self, pod_id: PodId, spec: PodSpec, netns_path: str, netlink_fd: int
    ) -> Attachment:
        """Run ADD for each of the pod's networks, one after the other."""
        networks = choose_networks(await self.folder.read(), spec, self.folder.path)
        ranges = await self._database.transact(lambda c: load_meta(c, POD_CIDR_KEY))
        planned = _plan(
            pod_id, spec, netns_path, networks, parse_pod_cidr(ranges) if ranges else ()
        )
        for network in networks:  # one that cannot be run is not to be undone either
            if missing := await asyncio.to_thread(self._operations.find_missing, network):
                raise errors.Unavailable(missing)
        async with self._gate.pod(pod_id):
            self._attached.add(pod_id)
            await self._save(planned)
            try:
                await asyncio.to_thread(_bring_loopback_up, netlink_fd)
                made = [await self._add(entry) for entry in planned]
            except BaseException as error:
                if failures := await self._release(pod_id):
                    error.add_note(f"undoing it failed too: {'; '.join(failures)}")
                raise
        return Attachment(interfaces=tuple(entry for interfaces in made for entry in interfaces))

    async def detach(self, pod_id: PodId) -> None:
        """Run DEL for each of the pod's networks; what fails is tried again by `reconcile`."""
        entries = await self._database.transact(lambda c: attachments.load(c, pod_id))
        if entries and not await asyncio.to_thread(is_pinned, entries[0].netns):
            # Nobody waits to take it away: after a reboot, these are all pods at once.
            await self._database.transact(lambda c: attachments.release(c, pod_id))
            self._free_soon(pod_id)
        elif entries:
            async with self._gate.pod(pod_id):
                await self._release(pod_id)

    async def reconcile(self, pods: frozenset[PodId]) -> None:
        """Run DEL, in the background, for what is left of other pods or of earlier tries."""
        for entry in await self._database.transact(attachments.load):
            known = entry.pod_id in pods or entry.pod_id in self._attached
            if entry.releasing or not known:
                self._free_soon(entry.pod_id)

    async def check(self) -> list[str]:
        """Ask plugins whether what they made is as they made it (CHECK); return what is not."""
        findings = []
        for entry in await self._database.transact(attachments.load):
            if entry.releasing:
                findings.append(f"pod {entry.pod_id}: {entry.interface} waits for its DEL")
            elif entry.result is not None:
                async with self._gate.pod(entry.pod_id):
                    findings += await self._check(entry)
        return findings

    async def remove(self) -> None:
        """Run DEL for all that is left, and forget it."""
        for pod_id in {e.pod_id for e in await self._database.transact(attachments.load)}:
            await self._free(pod_id)
        if left := await self._database.transact(attachments.load):
            _log.error("forgotten, though plugins did not clean up", attachments=len(left))
        for entry in left:
            await self._forget(entry)

    async def close(self) -> None:
        """Stop looking and trying; the next daemon goes on."""
        tasks = [*self._freeing.values(), *filter(None, [self._looking, self._asking])]
        tasks += [self._collecting] if self._collecting else []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _add(self, entry: CniAttachment) -> tuple[Interface, ...]:
        result = await self._operations.add(entry)
        interfaces = list_interfaces(result, entry.interface)
        if entry.interface == interface_name(0) and not interfaces[0].addresses:
            step = f"CNI ADD, network {entry.network.name}"
            raise errors.SetupFailed(step, 0, f"the plugins gave {entry.interface} no address")
        await self._save([msgspec.structs.replace(entry, result=result)])
        return interfaces

    async def _check(self, entry: CniAttachment) -> list[str]:
        try:
            await self._operations.check(entry)
        except PluginFailed as error:
            return [f"pod {entry.pod_id}: {entry.interface}: {error}"]
        return []

    async def _save(self, entries: Sequence[CniAttachment]) -> None:
        await self._database.transact(lambda c: attachments.save(c, entries))

    async def _forget(self, entry: CniAttachment) -> None:
        await self._database.transact(lambda c: attachments.forget(c, entry))

    async def _release(self, pod_id: PodId) -> list[str]:
        """Run DEL for the pod's attachments, the last first; return what failed, and keep it."""
        failures = []
        self._attached.discard(pod_id)
        for entry in reversed(
            await self._database.transact(lambda c: attachments.release(c, pod_id))
        ):
            try:
                await self._operations.delete(entry)
            except PluginFailed as error:
                failures.append(str(error))
                _log.warning(
                    "DEL failed, and will be tried again",
                    pod=pod_id,
                    interface=entry.interface,
                    error=str(error),
                )
            else:
                await self._forget(entry)
        return failures

    def _free_soon(self, pod_id: PodId) -> None:
        """Run DEL for the pod's attachments in the background."""
        if pod_id not in self._freeing:
            self._freeing[pod_id] = asyncio.create_task(self._free(pod_id), name="CNI DEL")

    async def _free(self, pod_id: PodId) -> None:
        try:
            async with self._free_at_once, self._gate.pod(pod_id):
                await self._release(pod_id)
        except Exception as error:  # noqa: BLE001 - nobody awaits this; the next round tries again
            _log.exception("cannot run DEL", error, pod=pod_id)
        finally:
            self._freeing.pop(pod_id, None)

    async def _collect(self, folder: Folder) -> None:
        """Let the plugins of all networks free what belongs to no attachment that is known."""
        async with self._gate.alone():
            known = await self._database.transact(attachments.load)
            for network in folder.networks.values():
                valid = [entry for entry in known if entry.network.name == network.name]
                for failure in await self._operations.collect(network, valid):
                    _log.warning("GC failed", error=failure)

    async def _look_again(self) -> None:
        try:
            await self._look(await self.folder.read())
        except OSError as error:
            self._fault = f"CNI: {error}"

    async def _look(self, folder: Folder) -> None:
        """Note whether the folder names a network whose plugins are there; ask for their status."""
        network = folder.default
        if network is None:
            self._fault = describe_absence(folder, self.folder.path)
            return
        self._fault = await asyncio.to_thread(self._operations.find_missing, network)
        if network != self._status_of:
            self._status_of, self._asked_at = network, 0.0
            waiting = f"CNI network {network.name}: its plugins have not told their status yet"
            self._status = waiting if network.speaks("1.1.0") else None
            if self._asking is not None:
                self._asking.cancel()  # another network's plugins, which may hang
                self._asking = None
        if network.speaks("1.1.0"):
            self._ask_soon(network)

    def _ask_soon(self, network: Network) -> None:
        now = time.monotonic()
        is_due = self._asking is None or self._asking.done()
        if is_due and now - self._asked_at >= STATUS_INTERVAL_S:
            self._asked_at = now
            self._asking = asyncio.create_task(self._ask(network), name="CNI STATUS")

    async def _ask(self, network: Network) -> None:
        try:
            await self._operations.status(network)
            self._status = None
        except PluginFailed as error:
            self._status = str(error)


def choose_networks(folder: Folder, spec: PodSpec, path: str) -> list[Network]:
    """Return the pod's networks, the default one first.

    Raises: Unavailable if there is none; InvalidRequest for a name that the folder does not have.
    """
    if folder.default is None:
        raise errors.Unavailable(f"the pod network is not ready: {describe_absence(folder, path)}")
    networks = [folder.default]
    for name in parse_networks(spec.annotations):
        if name not in folder.networks:
            faults = f" ({'; '.join(folder.faults)})" if folder.faults else ""
            reason = f"there is no network {name!r} in {path}{faults}"
            raise errors.InvalidRequest(field_of(NETWORKS), reason)
        networks.append(folder.networks[name])
    return networks


def _plan(
    pod_id: PodId,
    spec: PodSpec,
    netns_path: str,
    networks: Sequence[Network],
    ranges: Sequence[AddressRange],
) -> list[CniAttachment]:
    """Return what is to be attached."""
    arguments = list_arguments(pod_id, spec)
    of_main = make_capability_arguments(spec, ranges)
    of_others = {name: value for name, value in of_main.items() if name not in MAIN_ONLY}
    return [
        CniAttachment(
            pod_id=pod_id,
            interface=interface_name(number),
            network=network,
            netns=netns_path,
            arguments=arguments,
            capability_arguments=of_others if number else of_main,
        )
        for number, network in enumerate(networks)
    ]


def interface_name(number: int) -> str:
    return f"eth{number}"


def describe_absence(folder: Folder, path: str) -> str:
    """Return why the folder at `path` has no default network."""
    if folder.faults:
        return f"{path}/{folder.faults[0]}"
    return f"cni plugin not initialized: no network configuration in {path}"


def _bring_loopback_up(netlink_fd: int) -> None:
    with Netlink.borrow_route(netlink_fd) as pod:
        pod.set_loopback_up()
