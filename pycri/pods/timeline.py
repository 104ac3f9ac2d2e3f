# SPDX-License-Identifier: Apache-2.0
"""Where the milliseconds of a call went: named stages, kept in the record of pod or container."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from pycri.model.pod import Stage
from pycri.wire.messages import StageMark


class Timeline:
    """Collects the stages of one call; `name` comes first in each of theirs."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._stages: list[Stage] = []
        self._start_ns = time.time_ns()
        self._start_monotonic_ns = time.monotonic_ns()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a block."""
        before_ns = time.monotonic_ns()
        try:
            yield
        finally:
            self._add(name, before_ns, time.monotonic_ns())

    def add_marks(self, since_ns: int, marks: tuple[StageMark, ...]) -> None:
        """Add the stages a child reported: each lasted from the one before it."""
        for mark in marks:
            self._add(mark.stage, since_ns, mark.at_ns)
            since_ns = max(since_ns, mark.at_ns)

    def stages(self) -> tuple[Stage, ...]:
        """Return the whole call and its stages so far, in order of their starts."""
        now_ns = time.monotonic_ns()
        whole = Stage(
            name=self._name,
            start_ns=self._start_ns,
            duration_ns=now_ns - self._start_monotonic_ns,
        )
        return (whole, *sorted(self._stages, key=lambda stage: stage.start_ns))

    def _add(self, name: str, begin_ns: int, end_ns: int) -> None:
        self._stages.append(
            Stage(
                name=f"{self._name}/{name}",
                start_ns=self._start_ns + begin_ns - self._start_monotonic_ns,
                duration_ns=max(0, end_ns - begin_ns),
            )
        )
