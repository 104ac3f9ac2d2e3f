# SPDX-License-Identifier: Apache-2.0
"""Pages that a fork shares with its parent until one of them writes, and copying them ahead.

A write to such a page is a fault, in which the kernel copies it. A Python process takes hundreds of
them on its way, at 3 µs each: counts of references lie beside the objects. Where the one before has
written, the next one will too, for it does the same with the same objects.
"""

import array
import mmap
from collections.abc import Sequence
from contextlib import suppress

from pycri.kernel.syscalls import madvise

Span = tuple[int, int]
"""Start and size of some pages, in bytes."""

_POPULATE_WRITE = 23
_PAGE = mmap.PAGESIZE
_OWN = 1 << 63 | 1 << 56
"""In memory, and in that of no other process (Documentation/admin-guide/mm/pagemap.rst)."""


def find_own(pid: int) -> list[Span]:
    """Return the writable private memory that a process shares with no other: where it has written.

    Raises: OSError if it has ended, or may not be looked at.
    """
    spans: list[Span] = []
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/pagemap", "rb") as pagemap:
        for line in maps:
            bounds, permissions, _ = line.split(maxsplit=2)
            if permissions == "rw-p":
                start, end = (int(bound, 16) for bound in bounds.split("-"))
                pagemap.seek(start // _PAGE * 8)
                entries = array.array("Q", pagemap.read((end - start) // _PAGE * 8))
                spans += _join(start, entries)
    return spans


def make_own(spans: Sequence[Span]) -> None:
    """Copy pages of the caller's that others share, as a write to each would (madvise(2)).

    Those that are not there, and a kernel before Linux 5.14, are fine.
    """
    for start, size in spans:
        with suppress(OSError):
            madvise(start, size, _POPULATE_WRITE)


def _join(start: int, entries: "array.array[int]") -> list[Span]:
    """Return the pages among `entries`, of memory from `start` on, that are its process's own."""
    spans: list[Span] = []
    for number, entry in enumerate(entries):
        if entry & _OWN == _OWN:
            at = start + number * _PAGE
            if spans and sum(spans[-1]) == at:
                spans[-1] = spans[-1][0], spans[-1][1] + _PAGE
            else:
                spans.append((at, _PAGE))
    return spans
