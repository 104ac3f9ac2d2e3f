# SPDX-License-Identifier: Apache-2.0
"""Who waits for the end of what: exit records on their way from the spawner to those who wait."""

import asyncio
from collections import defaultdict

from pycri.model.ids import TaskId
from pycri.wire.messages import ExitRecord


class ExitWatch:
    """Futures by task; each resolves with the task's exit record."""

    def __init__(self) -> None:
        self._waiting: defaultdict[TaskId, set[asyncio.Future[ExitRecord]]] = defaultdict(set)

    def expect(self, task: TaskId) -> asyncio.Future[ExitRecord]:
        """Return a future of the task's end; ask before doing what may end it."""
        future: asyncio.Future[ExitRecord] = asyncio.get_running_loop().create_future()
        self._waiting[task].add(future)
        future.add_done_callback(lambda done: self._waiting[task].discard(done))
        return future

    def tell(self, record: ExitRecord) -> None:
        """Resolve all futures of the task."""
        for future in self._waiting.pop(record.id, set()):
            if not future.done():
                future.set_result(record)
