# SPDX-License-Identifier: Apache-2.0
"""What a kept task holds: its pidfd, its stdio descriptors, and the pumps from these to the log.

A pump's place in its stream:

            data                      nothing there
    MORE ◀────────  pump(limit)  ────────────────────▶  IDLE   (the next write wakes the epoll)
                     │       │
      unfinished line│       │end of file
                     ▼       ▼
                   HELD    ENDED

    BLOCKED: nothing is read while an attachment is behind (outlets.py); the epoll tells of it.

Crash safety: of a pipe, everything that is not in the log yet stays in the pipe, which the spawner
holds too. The monitor looks at a copy (tee(2)), takes what makes whole entries, and keeps nothing.

* Taken, then written: a monitor killed in between loses that one chunk. Written, then taken, would
  log it twice, and a reader cannot tell a line that was logged twice from one printed twice.
* An unfinished line waits in the pipe, so a successor starts at the beginning of an entry.
* But not for ever (loop.py, HOLD_S): in a pipe that is never emptied, a write(2) longer than the
  room left sleeps without waking an edge-triggered epoll (pipe_write() in fs/pipe.c wakes readers
  before it sleeps only if it found the pipe empty).

A pty cannot be copied by tee(2); its unfinished line is in memory and lost with the monitor.
"""

import enum
import errno
import fcntl
import os
import time
from typing import Protocol

import msgspec

from pycri.kernel.fds import close_all
from pycri.kernel.syscalls import SPLICE_F_NONBLOCK, tee
from pycri.monitor.crilog import LogFile, render_all, render_entries
from pycri.monitor.outlets import Outlets
from pycri.wire.messages import TaskInfo

CHUNK = 64 << 10
"""Bytes looked at in one go: what a pipe holds (pipe(7)), and the most a killed monitor loses."""


class State(enum.Enum):
    """Where a stream is after a pump; see the module's drawing."""

    MORE = enum.auto()
    IDLE = enum.auto()
    HELD = enum.auto()
    ENDED = enum.auto()
    BLOCKED = enum.auto()


class Stream(Protocol):
    """A descriptor whose output becomes log entries. Owns the descriptor."""

    fd: int
    hung_up: bool
    """There is no writer any more: an unfinished line is as finished as it will be."""
    logged: int
    """Bytes of the stream that are in entries: tells one unfinished line from the next."""
    outlets: Outlets
    """Who else is given the output, as soon as it is seen and without waiting for line ends."""

    def pump(self, limit_bytes: int) -> State:
        """Log what makes whole entries, up to about `limit_bytes`."""

    def flush(self) -> None:
        """Log the unfinished line, as a piece."""


class ScratchPipe:
    """Looks into pipes; one for all streams of a process, empty between calls."""

    def __init__(self) -> None:
        self._null_fd = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        self._open_pipe()

    def _open_pipe(self) -> None:
        self._read_fd, self._write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        fcntl.fcntl(self._write_fd, fcntl.F_SETPIPE_SZ, CHUNK)

    def peek(self, fd: int) -> bytes | None:
        """Return up to CHUNK bytes from the start of the pipe `fd`, which stay there.

        Returns: b"" at end-of-file; None when the pipe is empty.
        """
        try:
            length = tee(fd, self._write_fd, CHUNK, SPLICE_F_NONBLOCK)
        except BlockingIOError:
            return None
        try:
            data = os.read(self._read_fd, CHUNK) if length else b""
            # One read is short if the container has set O_DIRECT on its end: a packet at a time.
            while len(data) < length:
                data += os.read(self._read_fd, CHUNK)
        except OSError:
            # What is left in the scratch pipe must not turn up in another container's log.
            close_all((self._read_fd, self._write_fd))
            self._open_pipe()
            raise
        return data

    def consume(self, fd: int, length: int) -> int:
        """Take up to `length` bytes from the pipe `fd`, uncopied. Returns how many; 0 at the end.

        Fewer only if somebody else reads the pipe: a container can, by /proc/self/fd/1.
        """
        taken = 0
        while taken < length:
            try:
                step = os.splice(fd, self._null_fd, length - taken, flags=SPLICE_F_NONBLOCK)
            except BlockingIOError:
                break
            if not step:
                break
            taken += step
        return taken


class PipeStream:
    """The read end of a container's stdout or stderr.

    _shown: bytes at the start of the pipe that the outlets have been given; an unfinished line
    stays there.
    """

    def __init__(self, fd: int, name: str, log: LogFile, scratch: ScratchPipe) -> None:
        self.fd = fd
        self.hung_up = False
        self.logged = 0
        self.outlets = Outlets()
        self._shown = 0
        self._name = name.encode()
        self._log = log
        self._scratch = scratch

    def pump(self, limit_bytes: int) -> State:
        """Log what makes whole entries, up to about `limit_bytes`."""
        taken = 0
        while taken < limit_bytes:
            if self.outlets.full:
                return State.BLOCKED
            data = self._peek()
            if data is None:
                return State.IDLE
            if not data:
                return State.ENDED
            entries, length = render_entries(data, self._name, time.time_ns())
            if not length:
                # peek() copies as many buffers as a pipe of CHUNK bytes has: this was all.
                return State.BLOCKED if self.outlets.full else State.HELD
            self._consume(length)
            self._log.append(entries)
            self.logged += length
            taken += length
        return State.MORE

    def flush(self) -> None:
        """Log the unfinished line, as a piece."""
        data = self._peek()
        if data:
            self._consume(len(data))
            self._log.append(render_all(data, self._name, time.time_ns()))

    def _peek(self) -> bytes | None:
        data = self._scratch.peek(self.fd)
        if data:
            self.outlets.offer(data[self._shown :])
            self._shown = len(data)
        return data

    def _consume(self, length: int) -> None:
        self._scratch.consume(self.fd, length)
        self._shown -= length


class DiscardedStream:
    """The read end of a pipe that nobody wants to read."""

    def __init__(self, fd: int, scratch: ScratchPipe) -> None:
        self.fd = fd
        self.hung_up = False
        self.logged = 0
        self.outlets = Outlets()
        self._scratch = scratch

    def pump(self, limit_bytes: int) -> State:
        """Empty the pipe, up to `limit_bytes`."""
        if self.outlets.all:
            return self._show(limit_bytes)
        if self._scratch.consume(self.fd, limit_bytes) == limit_bytes:
            return State.MORE
        data = self._scratch.peek(self.fd)
        if data is None:
            return State.IDLE
        return State.MORE if data else State.ENDED

    def flush(self) -> None:
        """There is never anything to flush."""

    def _show(self, limit_bytes: int) -> State:
        taken = 0
        while taken < limit_bytes:
            if self.outlets.full:
                return State.BLOCKED
            data = self._scratch.peek(self.fd)
            if data is None:
                return State.IDLE
            if not data:
                return State.ENDED
            self.outlets.offer(data)
            taken += self._scratch.consume(self.fd, len(data))
        return State.MORE


class TerminalStream:
    """A pty master, all output of a container with a terminal; logged as stdout."""

    def __init__(self, fd: int, log: LogFile) -> None:
        # The spawner and this process share the open file; neither wants a read that waits.
        os.set_blocking(fd, False)
        self.fd = fd
        self.hung_up = False
        self.logged = 0
        self.outlets = Outlets()
        self._log = log
        self._rest = b""

    def pump(self, limit_bytes: int) -> State:
        """Log what makes whole entries, up to about `limit_bytes`."""
        taken = 0
        while taken < limit_bytes:
            if self.outlets.full:
                return State.BLOCKED
            try:
                data = os.read(self.fd, CHUNK)
            except BlockingIOError:
                return State.HELD if self._rest else State.IDLE
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                # No process has the terminal open any more.
                data = b""
            if not data:
                self.flush()
                return State.ENDED
            self.outlets.offer(data)
            taken += len(data)
            # The line discipline's ONLCR made the carriage returns, not the program.
            pending = (self._rest + data).replace(b"\r\n", b"\n")
            entries, length = render_entries(pending, b"stdout", time.time_ns())
            self._rest = pending[length:]
            self._log.append(entries)
            self.logged += length
        return State.MORE

    def flush(self) -> None:
        """Log the unfinished line, as a piece."""
        rest, self._rest = self._rest, b""
        self._log.append(render_all(rest, b"stdout", time.time_ns()))


class Task:
    """One kept task. Takes the descriptors: the pidfd, then those named in `info.streams`.

    Raises: ValueError, and takes nothing, when descriptors and names do not match.
    """

    def __init__(self, info: TaskInfo, fds: list[int], scratch: ScratchPipe) -> None:
        if len(fds) != 1 + len(info.streams):
            raise ValueError(f"{len(fds)} descriptors for a pidfd and {info.streams}")
        self.info = info
        self.log = LogFile(info.log_path)
        self.streams: dict[str, Stream] = {}
        self._fds = dict(zip(("pidfd", *info.streams), fds, strict=True))
        for name in info.streams:
            if name != "stdin":
                self.streams[name] = self._open_stream(name, scratch)

    def _open_stream(self, name: str, scratch: ScratchPipe) -> Stream:
        fd = self._fds[name]
        if name == "terminal":
            return TerminalStream(fd, self.log)
        if not self.log.path:
            return DiscardedStream(fd, scratch)
        return PipeStream(fd, name, self.log, scratch)

    def describe(self) -> tuple[TaskInfo, list[int]]:
        """Return the task with the streams still open, and its descriptors, which stay its own."""
        names = tuple(name for name in self._fds if name != "pidfd")
        return msgspec.structs.replace(self.info, streams=names), list(self._fds.values())

    def close_stdin(self) -> None:
        """Close our end of the container's stdin; again is fine."""
        if "stdin" in self._fds:
            os.close(self._fds.pop("stdin"))

    def end_stream(self, stream: Stream) -> None:
        """Close a stream that has ended."""
        for name, known in list(self.streams.items()):
            if known is stream:
                del self.streams[name]
                os.close(self._fds.pop(name))

    def close(self) -> None:
        """Close everything."""
        self.streams.clear()
        close_all(self._fds.values())
        self._fds.clear()
        self.log.close()
