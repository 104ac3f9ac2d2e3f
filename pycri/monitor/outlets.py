# SPDX-License-Identifier: Apache-2.0
"""Outlets: where copies of a stream's output go, besides its log.

Nothing is lost and memory stays bounded: what does not fit into a slow reader's pipe waits here,
and while anything does the stream is not read, so that in the end the container waits.
"""

import os


class Outlet:
    """The write end of a pipe to one reader. Takes the descriptor.

    pending: what did not fit into the pipe. last: to be closed as soon as that is gone.
    """

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self.pending = b""
        self.last = False

    def offer(self, data: bytes) -> None:
        """Write what fits, behind what is pending, and keep the rest."""
        self.pending += data
        self.push()

    def push(self) -> None:
        """Write what fits now. A reader that is gone gets nothing: the epoll tells of it too."""
        try:
            while self.pending:
                self.pending = self.pending[os.write(self.fd, self.pending) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self.pending = b""


class Outlets:
    """The outlets of one stream.

    patient: the stream waits for the slowest; not any more when its task has ended, for whoever
    waits for that must not wait for a reader.
    """

    def __init__(self) -> None:
        self.all: list[Outlet] = []
        self.patient = True

    @property
    def full(self) -> bool:
        """True while the stream must not be read, because a reader is behind."""
        return self.patient and any(outlet.pending for outlet in self.all)

    def offer(self, data: bytes) -> None:
        """Give every reader what is new."""
        if data:
            for outlet in self.all:
                outlet.offer(data)
