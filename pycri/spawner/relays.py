# SPDX-License-Identifier: Apache-2.0
"""Requests of the daemon that the monitor answers: they wait here for its reply.

A monitor that dies answers nothing: then all that wait are refused, and may be made again.
"""

import os
from collections.abc import Callable, Sequence
from typing import Protocol

from pycri.spawner.pumps import Pump
from pycri.spawner.tasks import Task
from pycri.wire.messages import (
    Attach,
    Attached,
    Copied,
    Done,
    Failed,
    Reopened,
    ReopenLog,
    SpawnerMessage,
)

_REPLACED = "the monitor was replaced"


class Send(Protocol):
    """How the daemon is answered."""

    def __call__(self, message: SpawnerMessage, fds: tuple[int, ...] = ()) -> None: ...


class Relays:
    """What the monitor has been asked on the daemon's behalf: request -> (step, what then)."""

    def __init__(self, pump: Pump, send: Send) -> None:
        self._pump = pump
        self._send = send
        self._waiting: dict[int, tuple[str, Callable[[], None]]] = {}

    def reopen(self, message: ReopenLog, task: Task | None) -> None:
        """Have a running task's log file opened anew."""
        request, step = message.request, "reopen log"
        if task is None or not task.running:
            self._refuse(request, "state", step, f"{message.task} is not running")
        elif self._pump.reopen(request, task):
            self._waiting[request] = step, lambda: self._send(Done(request=request))
        else:
            self._refuse(request, "setup", step, _REPLACED)

    def attach(self, message: Attach, task: Task | None, fds: Sequence[int]) -> None:
        """Have a running task's output copied into `fds`, which stay the caller's."""
        request, step = message.request, "attach"
        if task is None or not task.running:
            self._refuse(request, "state", step, f"{message.task} is not running")
        elif self._pump.copy(request, task, message.streams, fds):
            self._waiting[request] = step, lambda: self._attached(message, task)
        else:
            self._refuse(request, "setup", step, _REPLACED)

    def answered(self, reply: Reopened | Copied) -> None:
        """Take the monitor's reply."""
        step, finish = self._waiting.pop(reply.request, ("", None))
        if finish is None:
            return
        if reply.errno == 0:
            finish()
        else:
            self._refuse(reply.request, "setup", step, os.strerror(reply.errno), reply.errno)

    def lost(self) -> None:
        """The monitor has died."""
        waiting, self._waiting = self._waiting, {}
        for request, (step, _) in waiting.items():
            self._refuse(request, "setup", step, _REPLACED)

    def _attached(self, message: Attach, task: Task) -> None:
        name = "terminal" if "terminal" in task.streams else "stdin"
        fds = (task.streams[name],) if message.stdin and name in task.streams else ()
        self._send(Attached(request=message.request), fds)
        if fds and message.once and name == "stdin":
            # Whoever got it is the only one who has it: its end is that of stdin.
            self._pump.close_stdin(task)
            os.close(task.give_away(name))

    def _refuse(self, request: int, kind: str, step: str, reason: str, errno: int = 0) -> None:
        self._send(Failed(request=request, kind=kind, step=step, errno=errno, reason=reason))
