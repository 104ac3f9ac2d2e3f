# SPDX-License-Identifier: Apache-2.0
"""Endpoints over time: given at once, taken back only when the pod's link has gone.

The kernel removes a pod's veth with its network namespace, some time after the last process and pin
have let go of it. Deleting it ourselves would cost 20 ms of the RTNL lock, so `Leases` watches it
disappear, off every call's path, and deletes it only when a deadline has passed.
"""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from pycri import errors
from pycri.logs import Log
from pycri.model.ids import PodId
from pycri.model.pod import PortMapping
from pycri.model.ranges import Network
from pycri.network import ipam
from pycri.network.ipam import Endpoint, Wish
from pycri.state.database import Database

GONE_DEADLINE_S: Final = 5.0
"""How long a namespace may outlive its pod before the link is deleted."""
WATCH_INTERVAL_S: Final = 0.02
FREED_WAIT_S: Final = 8.0
"""How long an allocation waits for addresses that are on their way back, if it needs them."""

_log = Log("network")


def has_link(name: str) -> bool:
    """Tell whether the link exists, in the daemon's network namespace. Takes no lock: 3 us."""
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


class Leases:
    """The endpoints of the pods of one bridge."""

    def __init__(
        self,
        database: Database,
        interface_name: Callable[[PodId], str],
        delete_link: Callable[[str], Awaitable[None]],
        remove_rules: Callable[[Sequence[PodId]], Awaitable[None]],
    ) -> None:
        """interface_name: of a pod's host end; delete_link, remove_rules: absent is fine."""
        self._database = database
        self._interface_name = interface_name
        self._delete_link = delete_link
        self._remove_rules = remove_rules
        self._deadlines: dict[PodId, float] = {}
        self._held: set[PodId] = set()  # of those given by this daemon
        self._spare: set[PodId] = set()  # of those held: there is no such pod yet
        self._released = asyncio.Event()
        self._freed = asyncio.Event()
        self._watcher: asyncio.Task[None] | None = None

    @property
    def releasing(self) -> frozenset[PodId]:
        """Pods whose endpoint is on its way back."""
        return frozenset(self._deadlines)

    @property
    def known(self) -> frozenset[PodId]:
        """Pods that have an endpoint, as far as this daemon gave it or is taking it back."""
        return self.releasing | self._held

    async def allocate(
        self,
        pod_id: PodId,
        wish: Wish,
        choose_ranges: Callable[[], Sequence[Network]],
        *,
        spare: bool = False,
    ) -> Endpoint:
        """Give the pod an endpoint in the chosen ranges.

        choose_ranges: called inside the transaction, so that whoever changes the ranges and then
            reads the endpoints sees every address that was still given of the old ones.
        spare: the pod is to come later (`own`); nothing is waited for.
        Raises: OutOfResources if all addresses are given, and none comes back in time; as
            `ipam.allocate`.
        """
        self._held.add(pod_id)
        if spare:
            self._spare.add(pod_id)
        try:
            return await self._allocate(pod_id, wish, choose_ranges)
        except BaseException:
            self._forget(pod_id)
            raise

    async def own(self, endpoint: Endpoint, ports: Sequence[PortMapping]) -> Endpoint:
        """Take note that a spare endpoint's pod is there, and wants ports.

        Raises: AlreadyExists, InvalidRequest as `ipam.add_ports`.
        """
        self._spare.discard(endpoint.pod_id)
        if not ports:
            return endpoint
        return await self._database.transact(lambda c: ipam.add_ports(c, endpoint, ports))

    async def _allocate(
        self, pod_id: PodId, wish: Wish, choose_ranges: Callable[[], Sequence[Network]]
    ) -> Endpoint:
        taken: errors.PycriError = errors.OutOfResources("no address was given in time")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FREED_WAIT_S):
                while True:
                    freed = self._freed  # taken first: what is freed from here on wakes us
                    try:
                        return await self._database.transact(
                            lambda connection: ipam.allocate(
                                connection, pod_id, wish, choose_ranges(), self._spare.copy()
                            )
                        )
                    except ipam.NotFree as error:
                        taken = error
                    if not self._deadlines or pod_id in self._spare:
                        break
                    await freed.wait()
        raise taken

    async def release(self, pod_id: PodId) -> Endpoint | None:
        """Take the pod's endpoint back once its link has gone, and return it; None is fine."""
        endpoint = await self._database.transact(lambda c: ipam.release(c, pod_id))
        if endpoint is not None:
            self._watch(pod_id)
            self._forget(pod_id)
        return endpoint

    async def free_ports(self, pod_id: PodId) -> None:
        """Make the pod's host ports available, now that nothing leads from them to it."""
        await self._database.transact(lambda c: ipam.free_ports(c, pod_id))

    async def discard(self, pod_ids: list[PodId]) -> None:
        """Delete the pods' links, if they are there, and free their endpoints, now."""
        for pod_id in pod_ids:
            self._forget(pod_id)  # if what follows fails, `reconcile` tries again
        for pod_id in pod_ids:
            await self._delete_link(self._interface_name(pod_id))
        await self._free(pod_ids)

    async def load(self) -> list[Endpoint]:
        return await self._database.transact(ipam.load_endpoints)

    async def reconcile(self, pods: frozenset[PodId]) -> None:
        """Discard the endpoints of pods that do not exist; take interrupted releases up again.

        pods: as they were a while ago; those that came since are held.
        """
        unknown = []
        for endpoint in await self.load():
            if endpoint.pod_id not in pods | self.known:
                unknown.append(endpoint.pod_id)
            elif endpoint.releasing:
                self._watch(endpoint.pod_id)
        await self.discard(unknown)

    async def close(self) -> None:
        """Stop watching; what is not freed yet is taken up by the next daemon's `reconcile`."""
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
            self._watcher = None

    def _forget(self, pod_id: PodId) -> None:
        self._held.discard(pod_id)
        self._spare.discard(pod_id)

    def _watch(self, pod_id: PodId) -> None:
        deadline = asyncio.get_running_loop().time() + GONE_DEADLINE_S
        self._deadlines.setdefault(pod_id, deadline)
        self._released.set()
        if self._watcher is None or self._watcher.done():
            self._watcher = asyncio.create_task(self._free_gone(), name="endpoint releases")

    async def _free_gone(self) -> None:
        while True:
            await self._released.wait()
            try:
                await self._free_once()
            except (errors.PycriError, OSError) as error:
                # The rows stay "releasing": nothing is lost, and the next round tries again.
                _log.warning("endpoints not freed", reason=str(error))
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
        await self._remove_rules(pod_ids)
        await self._database.transact(lambda connection: ipam.free(connection, pod_ids))
        for pod_id in pod_ids:
            self._deadlines.pop(pod_id, None)
            self._forget(pod_id)
        self._freed.set()
        self._freed = asyncio.Event()
