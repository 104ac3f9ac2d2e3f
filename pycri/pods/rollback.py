# SPDX-License-Identifier: Apache-2.0
"""Several steps that succeed together or leave nothing: each names its undo before it acts."""

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from pycri.logs import Log

_log = Log("rollback")


class Rollback:
    """A stack of undos, run in reverse when the block fails. All are attempted.

    An undo is pushed before its action, so it must be idempotent: the action may have been done
    in part or not at all. An undo that fails is logged, and `clean` is False afterwards.
    """

    def __init__(self) -> None:
        self._undos: list[tuple[str, Callable[[], Awaitable[None]]]] = []
        self.clean = True

    def push(self, name: str, undo: Callable[[], Awaitable[None]]) -> None:
        """Add the undo of the step that follows."""
        self._undos.append((name, undo))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            return
        for name, undo in reversed(self._undos):
            try:
                await undo()
            except Exception as failure:  # noqa: BLE001 - every undo has its turn
                self.clean = False
                error.add_note(f"undoing {name!r} failed: {failure}")
                _log.exception("undo failed", failure, step=name)
