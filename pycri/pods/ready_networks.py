# SPDX-License-Identifier: Apache-2.0
"""Networks of pods that are to come: namespace, link, addresses and rules, made while nothing runs.

Each is made under the id that its pod will have, which makes it the pod's as soon as there is a
record of that id; until then it is nobody's, and the sweep after a crash removes it as such.

    (none) ──make──▶ ready ──lend──▶ lent ──the pod has its record──▶ the pod's
                       └── other terms, harmed, addresses are short, the daemon ends ──▶ (none)

A pod that asks for what cannot be added later (an address, a MAC, a user namespace, which would
have to own the network namespace) goes the ordinary way, and so does one that finds none ready.
"""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from typing import Final

import msgspec

from pycri.errors import OutOfResources, PycriError
from pycri.kernel.fds import close_all
from pycri.logs import Log
from pycri.model.ids import PodId
from pycri.model.pod import PodSpec
from pycri.network.interface import PodNetwork, Preparation
from pycri.plan.sandbox import may_share_defaults, plan_network
from pycri.pods.foundation import Foundation
from pycri.pods.rollback import Rollback
from pycri.pods.timeline import Timeline

QUIET_S: Final = 0.02
"""How long no pod and no container may have been in the making before a network is made."""
LOOK_S: Final = 60.0
"""When it is looked again whether all is as it is to be, though no pod has come."""
RETRY_S: Final = 0.5
"""When it is tried again first, after a failure; then after twice that, and so on."""

_log = Log("ready networks")


class ReadyNetwork(msgspec.Struct, frozen=True, kw_only=True):
    """A network whose pod is to come. netlink_fd: of a socket inside, owned by `ReadyNetworks`."""

    pod_id: PodId
    terms: str
    netlink_fd: int


class ReadyNetworks:
    """The networks that are ready, `network.ready` of them if nothing keeps them from being made.

    ids: of all that are being made, ready or lent.
    """

    def __init__(self, foundation: Foundation, network: PodNetwork) -> None:
        """Nothing is made before `start`."""
        self._size = foundation.settings.network.ready
        self._host = foundation.host
        self._layout = foundation.layout
        self._spawner = foundation.spawner
        self._network = network
        self._ready: list[ReadyNetwork] = []
        self.ids: set[PodId] = set()
        self._wanted = asyncio.Event()
        self._making = asyncio.Lock()
        self._keeping: asyncio.Task[None] | None = None
        self._removing: set[asyncio.Task[None]] = set()

    @property
    def count(self) -> int:
        """How many are ready."""
        return len(self._ready)

    def start(self) -> None:
        """Make networks from now on, in the background."""
        if self._size:
            self._keeping = asyncio.create_task(self._keep(), name="ready networks")

    async def close(self) -> None:
        """Make no more, and remove those that are ready. Idempotent."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait([self._keeping])
        await self.give_up()
        await asyncio.gather(*self._removing)

    def look(self) -> None:
        """Look again, soon, whether those that are ready are as they are to be."""
        self._wanted.set()

    async def give_up(self) -> bool:
        """Remove all, so that others can have the addresses; return whether there were any.

        They are made anew when no pod is in the making.
        """
        async with self._making:
            given, self._ready = self._ready, []
        self._wanted.set()
        await asyncio.gather(*map(self._remove, given))
        return bool(given)

    @contextlib.asynccontextmanager
    async def lent(self, spec: PodSpec) -> AsyncIterator[ReadyNetwork | None]:
        """Yield a network for a pod that is about to be made, or None; it is the pod's at the end.

        If the block fails nothing of it stays. Raises: InvalidRequest naming an annotation.
        """
        ready = await self._take(spec)
        self._wanted.set()  # not before it is taken: who keeps them looks when this is set
        if ready is None:
            yield None
            return
        try:
            yield ready
        except BaseException:
            await self._remove(ready)
            raise
        close_all((ready.netlink_fd,))
        self.ids.discard(ready.pod_id)

    async def _take(self, spec: PodSpec) -> ReadyNetwork | None:
        if not self._ready or not may_share_defaults(spec):
            return None
        preparation = await self._network.preparing(spec)
        while preparation is not None and self._ready:
            ready = self._ready.pop(0)
            if ready.terms == preparation.terms() and preparation.is_intact(ready.pod_id):
                return ready
            await self._remove(ready)
        return None

    async def _keep(self) -> None:
        pause_s = retry_s = RETRY_S
        while True:
            try:
                await self._fill()
                pause_s, retry_s = LOOK_S, RETRY_S
            except OutOfResources as error:
                _log.debug("no address for a network that is made ahead", reason=str(error))
            except Exception as error:  # noqa: BLE001 - the next round is another chance
                _log.exception("no network is made ahead", error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._wanted.wait()
            self._wanted.clear()
            pause_s = retry_s = min(2 * retry_s, LOOK_S)  # unless all goes well now

    async def _fill(self) -> None:
        preparation = await self._network.preparing()
        await self._remove_outdated(preparation)
        while preparation is not None and len(self._ready) < self._size:
            await _quiet()
            async with self._making:
                self._ready.append(await self._make(preparation))
            preparation = await self._network.preparing()

    async def _remove_outdated(self, preparation: Preparation | None) -> None:
        terms = preparation.terms() if preparation else None
        outdated = [ready for ready in self._ready if ready.terms != terms]
        self._ready = [ready for ready in self._ready if ready.terms == terms]
        await asyncio.gather(*map(self._remove, outdated))

    async def _make(self, preparation: Preparation) -> ReadyNetwork:
        pod_id, terms = PodId(secrets.token_hex(32)), preparation.terms()
        self.ids.add(pod_id)
        try:
            async with Rollback() as rollback:
                rollback.push("folder, namespace", lambda: self._unpin(pod_id))
                path = await asyncio.to_thread(self._layout.make_network_pin, pod_id)
                plan = plan_network(pod_id, path, self._host)
                _, netlink_fd = await self._spawner.start_sandbox(plan)
                assert netlink_fd is not None
                rollback.push("network", lambda: self._detach(pod_id, netlink_fd))
                await preparation.prepare(pod_id, path, netlink_fd)
        except BaseException:
            self.ids.discard(pod_id)
            raise
        return ReadyNetwork(pod_id=pod_id, terms=terms, netlink_fd=netlink_fd)

    def _remove(self, ready: ReadyNetwork) -> "asyncio.Future[None]":
        """Remove what is there of it, also if nobody waits for that any more."""
        self._removing.add(task := asyncio.create_task(self._take_down(ready)))
        task.add_done_callback(self._removing.discard)
        return asyncio.shield(task)

    async def _take_down(self, ready: ReadyNetwork) -> None:
        """What cannot be removed is left to the sweep."""
        try:
            await self._detach(ready.pod_id, ready.netlink_fd)
            await self._unpin(ready.pod_id)
        except (PycriError, OSError) as error:
            _log.exception("not removed", error, pod=ready.pod_id)
        finally:
            self.ids.discard(ready.pod_id)

    async def _detach(self, pod_id: PodId, netlink_fd: int) -> None:
        close_all((netlink_fd,))
        await self._network.detach(pod_id)

    async def _unpin(self, pod_id: PodId) -> None:
        await asyncio.to_thread(self._layout.remove_pins, pod_id)


async def _quiet() -> None:
    """Wait until no pod and no container has been in the making for a while."""
    busy = True
    while busy:
        busy = bool(Timeline.under_way)
        await asyncio.sleep(QUIET_S)
        busy = busy or bool(Timeline.under_way)
