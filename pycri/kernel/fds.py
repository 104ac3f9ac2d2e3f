# SPDX-License-Identifier: Apache-2.0
"""File descriptors: closing many, and closing what a fork inherited."""

import os
from collections.abc import Iterable


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
