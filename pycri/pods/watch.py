# SPDX-License-Identifier: Apache-2.0
"""Who waits for the end of what: exit records on their way from the spawner to those who wait."""

import asyncio

from pycri.model.ids import TaskId
from pycri.wire.messages import ExitRecord


class ExitWatch:
    """Futures by task; each resolves with the task's exit record."""

    def __init__(self) -> None:
        self._waiting: dict[TaskId, list[asyncio.Future[ExitRecord]]] = {}

    def expect(self, task: TaskId) -> asyncio.Future[ExitRecord]:
        """Return a future of the task's end; ask before doing what may end it."""
        future: asyncio.Future[ExitRecord] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(task, []).append(future)
        return future

    def tell(self, record: ExitRecord) -> None:
        """Resolve all futures of the task."""
        for future in self._waiting.pop(record.id, []):
            if not future.done():
                future.set_result(record)
