# SPDX-License-Identifier: Apache-2.0
"""Who may work at once: operations of different pods, or one that wants to be alone.

Source: CNI SPEC.md, "Lifecycle & Ordering": GC never runs beside ADD or DEL.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

from pycri.model.ids import PodId


class Gate:
    """A lock a pod, and one over all of them."""

    def __init__(self) -> None:
        self._pods: WeakValueDictionary[PodId, asyncio.Lock] = WeakValueDictionary()
        self._busy = 0
        self._quiet = asyncio.Condition()
        self._alone = asyncio.Lock()

    @asynccontextmanager
    async def pod(self, pod_id: PodId) -> AsyncIterator[None]:
        """Be the only one to work at this pod's attachments."""
        lock = self._pods.setdefault(pod_id, asyncio.Lock())
        async with lock:
            async with self._alone:
                self._busy += 1
            try:
                yield
            finally:
                self._busy -= 1
                async with self._quiet:
                    self._quiet.notify_all()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Be the only one to work at all; those who come meanwhile wait."""
        async with self._alone:
            async with self._quiet:
                await self._quiet.wait_for(lambda: self._busy == 0)
            yield
