# SPDX-License-Identifier: Apache-2.0
"""Which memory is written to on the way of an order, so that it can be copied before the next one.

The spawner, and the child that waits, share all their memory until one of them writes. What a child
of some kind of order wrote to, and the spawner meanwhile, the next ones will write to as well. It
is found once for each kind, while its first process is still there (`kernel/branching.py`).
"""

import os
from collections.abc import Sequence
from contextlib import suppress

from pycri.kernel.pages import Span, find_own
from pycri.wire.messages import Order


class Habits:
    """Of one spawner and its children."""

    def __init__(self) -> None:
        self._last: tuple[type[Order], int] | None = None
        self._known: dict[type[Order], tuple[list[Span], list[Span]]] = {}

    def note(self, order: Order, pid: int) -> None:
        """Take note of who performs an order: a child that had waited for it."""
        self._last = type(order), pid

    def learn(self) -> None:
        """Find where the last one has written, if that is not known of its kind, and if it is still
        there and may be looked at."""
        if self._last is None or self._last[0] in self._known:
            return
        kind, pid = self._last
        with suppress(OSError):
            self._known[kind] = find_own(pid), find_own(os.getpid())

    def lose(self, pid: int) -> None:
        """Take note that a child has ended."""
        if self._last is not None and self._last[1] == pid:
            self._last = None

    def of_children(self) -> Sequence[Span]:
        """Return where children write, of whatever kind."""
        return [span for theirs, _ in self._known.values() for span in theirs]

    def of_ours(self) -> Sequence[Span]:
        """Return where the spawner does."""
        return [span for _, ours in self._known.values() for span in ours]
