# SPDX-License-Identifier: Apache-2.0
"""Attachments: readers of a task's streams, who see its output from now on.

Each has an outlet for every stream it asked for, and a line: a pipe on which it learns how it
ended. At the end of the task the outlets get what its streams still hold (at most DRAIN bytes of
memory, loop.py) and are closed when a reader has taken that; then the line says ENDED and is
closed. A line that is closed without a word says that the monitor has died.

A reader that vanishes is dropped at once: the epoll reports EPOLLERR for a pipe without readers.
"""

import os
import select
from contextlib import suppress

from pycri.kernel.fds import close_all
from pycri.model.ids import TaskId
from pycri.monitor.outlets import Outlet
from pycri.monitor.stdio import Stream, Task

ENDED = b"."
"""The last word on the line of an attachment whose task has ended."""


class _Attachment:
    """One reader. outlets: those still open. task_ended: no more will come."""

    def __init__(self, task: TaskId, line_fd: int) -> None:
        self.task = task
        self.line_fd = line_fd
        self.outlets: set[Outlet] = set()
        self.task_ended = False


class Attachments:
    """All attachments of one monitor. Borrows the epoll."""

    def __init__(self, epoll: select.epoll) -> None:
        self._epoll = epoll
        self._lines: dict[int, _Attachment] = {}
        self._outlets: dict[int, tuple[Outlet, Stream, _Attachment]] = {}

    def add(self, task: Task, names: tuple[str, ...], fds: list[int]) -> None:
        """Show the streams named from now on. Takes fds: the line, then an outlet for each name.

        Raises: ValueError, and closes them, when descriptors and names do not match.
        """
        if len(fds) != 1 + len(names):
            close_all(fds)
            raise ValueError(f"{len(fds)} descriptors for a line and {names}")
        line_fd, *ends = fds
        attachment = self._lines[line_fd] = _Attachment(task.info.id, line_fd)
        self._epoll.register(line_fd, 0)
        for name, fd in zip(names, ends, strict=True):
            stream = task.streams.get(name)
            if stream is None:
                # It has ended already: so does the copy.
                os.close(fd)
                continue
            outlet = Outlet(fd)
            stream.outlets.all.append(outlet)
            attachment.outlets.add(outlet)
            self._outlets[fd] = outlet, stream, attachment
            self._epoll.register(fd, 0)

    def handle(self, fd: int, events: int) -> Stream | None:
        """Take an event of one of our descriptors. Returns the stream that it may set going."""
        if fd in self._lines:
            self._close_line(self._lines[fd])
            return None
        outlet, stream, _ = self._outlets[fd]
        if events & select.EPOLLERR:
            self._close_outlet(outlet)
        else:
            outlet.push()
            self._settle(outlet)
        return stream

    def owns(self, fd: int) -> bool:
        """Tell whether this descriptor is one of an attachment's."""
        return fd in self._outlets or fd in self._lines

    def watch(self, stream: Stream) -> None:
        """Have the epoll tell when those who are behind can be written to."""
        for outlet in stream.outlets.all:
            self._settle(outlet)

    def end_stream(self, stream: Stream) -> None:
        """Close the outlets of a stream that has ended, each when it is empty."""
        for outlet in list(stream.outlets.all):
            outlet.last = True
            self._settle(outlet)

    def end_task(self, task: TaskId) -> None:
        """End the attachments of a task, each when its outlets are closed."""
        for attachment in [each for each in self._lines.values() if each.task == task]:
            attachment.task_ended = True
            self._end_if_done(attachment)

    def _settle(self, outlet: Outlet) -> None:
        if outlet.last and not outlet.pending:
            self._close_outlet(outlet)
        else:
            self._epoll.modify(outlet.fd, select.EPOLLOUT if outlet.pending else 0)

    def _close_outlet(self, outlet: Outlet) -> None:
        _, stream, attachment = self._outlets.pop(outlet.fd)
        stream.outlets.all.remove(outlet)
        attachment.outlets.remove(outlet)
        self._close(outlet.fd)
        self._end_if_done(attachment)

    def _end_if_done(self, attachment: _Attachment) -> None:
        if attachment.task_ended and not attachment.outlets:
            with suppress(OSError):
                os.write(attachment.line_fd, ENDED)
            self._close_line(attachment)

    def _close_line(self, attachment: _Attachment) -> None:
        if self._lines.pop(attachment.line_fd, None) is not None:
            self._close(attachment.line_fd)

    def _close(self, fd: int) -> None:
        self._epoll.unregister(fd)
        close_all((fd,))
