# SPDX-License-Identifier: Apache-2.0
"""Addresses over time: given at once, taken back only when the pod's link has gone.

The kernel removes a pod's veth with its network namespace, some time after the last process and pin
have let go of it. Deleting it ourselves would cost 20 ms of the RTNL lock, so `Leases` watches it
disappear, off every call's path, and deletes it only when a deadline has passed.
"""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Interface, IPv4Network
from typing import Final

from pycri import errors
from pycri.logs import Log
from pycri.model.ids import PodId
from pycri.network import ipam
from pycri.state.database import Database

GONE_DEADLINE_S: Final = 5.0
"""How long a namespace may outlive its pod before the link is deleted."""
WATCH_INTERVAL_S: Final = 0.02
FREED_WAIT_S: Final = 8.0
"""How long an allocation waits when the range is used up and addresses are on their way back."""

_log = Log("network")


def has_link(name: str) -> bool:
    """Tell whether the link exists, in the daemon's network namespace. Takes no lock: 3 us."""
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


class Leases:
    """The addresses of the pods of one bridge."""

    def __init__(
        self,
        database: Database,
        interface_name: Callable[[PodId], str],
        delete_link: Callable[[str], Awaitable[None]],
    ) -> None:
        """interface_name: of a pod's host end; delete_link: absent is fine."""
        self._database = database
        self._interface_name = interface_name
        self._delete_link = delete_link
        self._deadlines: dict[PodId, float] = {}
        self._released = asyncio.Event()
        self._freed = asyncio.Event()
        self._watcher: asyncio.Task[None] | None = None

    @property
    def releasing(self) -> frozenset[PodId]:
        """Pods whose address is on its way back."""
        return frozenset(self._deadlines)

    async def allocate(
        self, pod_id: PodId, choose_range: Callable[[], IPv4Network]
    ) -> IPv4Interface:
        """Give the pod an address of the chosen range, or the one it holds.

        choose_range: called inside the transaction, so that whoever changes the range and then
            reads the leases sees every address that was still given of the old one.
        Raises: OutOfResources if all are given, and none comes back in time.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FREED_WAIT_S):
                while True:
                    freed = self._freed  # taken first: what is freed from here on wakes us
                    address = await self._database.transact(
                        lambda connection: ipam.allocate(connection, pod_id, choose_range())
                    )
                    if address is not None:
                        return address
                    if not self._deadlines:
                        break
                    await freed.wait()
        raise errors.OutOfResources(f"all pod addresses of {choose_range()} are in use")

    async def release(self, pod_id: PodId) -> None:
        """Take the pod's address back once its link has gone; no address is fine."""
        if await self._database.transact(lambda connection: ipam.release(connection, pod_id)):
            self._watch(pod_id)

    async def discard(self, pod_ids: list[PodId]) -> None:
        """Delete the pods' links, if they are there, and free their addresses, now."""
        for pod_id in pod_ids:
            await self._delete_link(self._interface_name(pod_id))
        await self._free(pod_ids)

    async def load(self) -> list[ipam.Lease]:
        return await self._database.transact(ipam.load_leases)

    async def reconcile(self, pods: frozenset[PodId]) -> None:
        """Discard the leases of pods that do not exist; take up interrupted releases again."""
        unknown = []
        for lease in await self.load():
            if lease.pod_id not in self._deadlines and lease.pod_id not in pods:
                unknown.append(lease.pod_id)
            elif lease.releasing:
                self._watch(lease.pod_id)
        await self.discard(unknown)

    async def close(self) -> None:
        """Stop watching; what is not freed yet is taken up by the next daemon's `reconcile`."""
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
            self._watcher = None

    def _watch(self, pod_id: PodId) -> None:
        deadline = asyncio.get_running_loop().time() + GONE_DEADLINE_S
        self._deadlines.setdefault(pod_id, deadline)
        self._released.set()
        if self._watcher is None or self._watcher.done():
            self._watcher = asyncio.create_task(self._free_gone(), name="address releases")

    async def _free_gone(self) -> None:
        while True:
            await self._released.wait()
            try:
                await self._free_once()
            except (errors.PycriError, OSError) as error:
                # The rows stay "releasing": nothing is lost, and the next round tries again.
                _log.warning("addresses not freed", reason=str(error))
            if not self._deadlines:
                self._released.clear()
            await asyncio.sleep(WATCH_INTERVAL_S)

    async def _free_once(self) -> None:
        now = asyncio.get_running_loop().time()
        gone = [pod for pod in self._deadlines if not has_link(self._interface_name(pod))]
        overdue = [pod for pod, end in self._deadlines.items() if end < now and pod not in gone]
        if gone:
            await self._free(gone)
        for pod_id in overdue:
            _log.warning("network namespace outlives its pod, link deleted", pod=pod_id)
            await self.discard([pod_id])

    async def _free(self, pod_ids: list[PodId]) -> None:
        await self._database.transact(lambda connection: ipam.free(connection, pod_ids))
        for pod_id in pod_ids:
            self._deadlines.pop(pod_id, None)
        self._freed.set()
        self._freed = asyncio.Event()
