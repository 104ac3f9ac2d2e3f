# SPDX-License-Identifier: Apache-2.0
"""File descriptors: owners, and closing what a fork inherited."""

import os
from collections.abc import Iterable
from types import TracebackType
from typing import Self


class Owned:
    """One descriptor with one owner.

    The number is forgotten at close, so that a late second close cannot hit a descriptor that
    got the same number in between.
    """

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def fileno(self) -> int:
        """Return the number, or -1 once closed or released."""
        return self._fd

    def release(self) -> int:
        """Give the descriptor away: returns the number, caller closes."""
        fd, self._fd = self._fd, -1
        return fd

    def close(self) -> None:
        """Close once; again is fine."""
        fd = self.release()
        if fd >= 0:
            os.close(fd)


def close_all(fds: Iterable[int]) -> None:
    """Close each descriptor; all are attempted."""
    for fd in fds:
        try:
            os.close(fd)
        except OSError:
            continue


def close_inherited(keep: Iterable[int]) -> None:
    """Close every descriptor above 2 but those in `keep`: what a fork has no business with."""
    start = 3
    for fd in sorted({fd for fd in keep if fd > 2}):
        os.closerange(start, fd)
        start = fd + 1
    os.closerange(start, os.sysconf("SC_OPEN_MAX"))
