# SPDX-License-Identifier: Apache-2.0
"""Where the milliseconds of a call went: named stages, kept in the record of pod or container."""

import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar, Final

from pycri.model.pod import Stage
from pycri.wire.messages import StageMark

CHILD: Final = "child"
"""Where a call is between its own stages: the spawner's child works, and tells its own later."""


class Timeline:
    """Collects the stages of one call; `name` comes first in each of theirs.

    under_way: those of calls that have not come to their end, nor failed.
    """

    observers: ClassVar[list[Callable[[tuple[Stage, ...]], None]]] = []
    """Are told the stages of each call that has come to its end, in its own context."""
    under_way: ClassVar["weakref.WeakSet[Timeline]"] = weakref.WeakSet()

    def __init__(self, name: str) -> None:
        Timeline.under_way.add(self)
        self._name = name
        self.stage_now = CHILD
        self._stages: list[Stage] = []
        self._start_ns = time.time_ns()
        self._start_monotonic_ns = time.monotonic_ns()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a block."""
        before_ns = time.monotonic_ns()
        self.stage_now = name
        try:
            yield
        finally:
            self.stage_now = CHILD
            self._add(name, before_ns, time.monotonic_ns())

    @classmethod
    def stalled(cls, seconds: float) -> list[tuple[str, str]]:
        """Return call and stage of those that have not ended `seconds` after their begin."""
        since_ns = time.monotonic_ns() - int(seconds * 1e9)
        return [
            (timeline._name, timeline.stage_now)
            for timeline in list(cls.under_way)
            if timeline._start_monotonic_ns < since_ns
        ]

    def add_marks(self, since_ns: int, marks: tuple[StageMark, ...]) -> None:
        """Add the stages a child reported: each lasted from the one before it."""
        for mark in marks:
            self._add(mark.stage, since_ns, mark.at_ns)
            since_ns = max(since_ns, mark.at_ns)

    def stages(self) -> tuple[Stage, ...]:
        """Return the whole call, which has come to its end, and its stages in order."""
        Timeline.under_way.discard(self)
        now_ns = time.monotonic_ns()
        whole = Stage(
            name=self._name,
            start_ns=self._start_ns,
            duration_ns=now_ns - self._start_monotonic_ns,
        )
        stages = (whole, *sorted(self._stages, key=lambda stage: stage.start_ns))
        for observe in Timeline.observers:
            observe(stages)
        return stages

    def _add(self, name: str, begin_ns: int, end_ns: int) -> None:
        self._stages.append(
            Stage(
                name=f"{self._name}/{name}",
                start_ns=self._start_ns + begin_ns - self._start_monotonic_ns,
                duration_ns=max(0, end_ns - begin_ns),
            )
        )
