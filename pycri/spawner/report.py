# SPDX-License-Identifier: Apache-2.0
"""The child's side of its report: what it is doing, how far it is, what went wrong."""

import time

from pycri.errors import SetupFailed
from pycri.wire.channel import Channel
from pycri.wire.messages import Broken, Moved, Reached, Ready


class Report:
    """Sends Reached, Broken and Ready to the spawner over a close-on-exec socket.

    `doing` keeps the step object itself: it becomes text only if it fails.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._doing: object = "start"

    def fileno(self) -> int:
        """Return the socket's descriptor, to be kept when others are closed."""
        return self._channel.fileno()

    def doing(self, step: object) -> None:
        """Name what is tried next."""
        self._doing = step

    def reached(self, stage: str, fds: tuple[int, ...] = ()) -> None:
        """Tell that a stage is complete; `fds` stay the caller's."""
        self._channel.send(Reached(stage=stage, at_ns=time.monotonic_ns()), fds)

    def moved(self, pid: int) -> None:
        """Tell that another process goes on with what the caller has begun."""
        self._channel.send(Moved(pid=pid))

    def ready(self) -> None:
        """Tell that nothing is left but to execute."""
        self._channel.send(Ready(at_ns=time.monotonic_ns()))

    def broken(self, error: Exception) -> None:
        """Tell which step failed and why."""
        step, number, reason = str(self._doing), 0, f"{type(error).__name__}: {error}"
        if isinstance(error, SetupFailed):
            step, number, reason = error.step, error.errno, error.reason
        elif isinstance(error, OSError):
            number = error.errno or 0
            path = f"{error.filename}: " if error.filename else ""
            reason = f"{path}{error.strerror or error}"
        self._channel.send(Broken(step=step, errno=number, reason=reason))

    def close(self) -> None:
        """End the report; after Ready this means success."""
        self._channel.close()
