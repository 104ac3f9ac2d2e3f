# SPDX-License-Identifier: Apache-2.0
"""CRI log files: the format of entries, and a file that never stops its container.

    2026-01-31T09:08:07.000000065Z stdout F a whole line
    2026-01-31T09:08:07.000000065Z stderr P a piece: the line goes on in the stream's next entry
    2026-01-31T09:08:07.000000065Z stderr F its end

An entry carries at most ENTRY_LIMIT bytes of text; a longer line is pieces (P) and its end (F). A
stream that ends without a newline ends with a piece, as with containerd: nothing says the line was
whole, and `kubectl logs` then prints no newline that the program did not.

The invariant of a file: it ends with a newline, or its writer was killed in mid-write; so the next
writer cuts off an unterminated end. Only whole entries are ever left in it.

Specification: Kubernetes, design-proposals/node/kubelet-cri-logging.md; CRI, log_path.
"""

import errno
import os
import stat
import sys
import time
from contextlib import suppress

ENTRY_LIMIT = 16 << 10
"""Bytes of text in one entry: containerd's default max_container_log_line_size."""

_TORN_LIMIT = 2 * ENTRY_LIMIT
_SILENCE_S = 60.0
# O_RDWR, for the end is read; O_NONBLOCK, for a fifo must not stop the monitor.
_OPEN_FLAGS = (
    os.O_RDWR
    | os.O_APPEND
    | os.O_CREAT
    | os.O_CLOEXEC
    | os.O_NOFOLLOW
    | os.O_NONBLOCK
    | os.O_NOCTTY
)


def render_timestamp(now_ns: int) -> bytes:
    """Return nanoseconds since the epoch as RFC 3339 in UTC with nine digits of a second."""
    seconds, nanoseconds = divmod(now_ns, 1_000_000_000)
    clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{clock}.{nanoseconds:09d}Z".encode()


def render_entries(data: bytes, stream: bytes, now_ns: int) -> tuple[bytes, int]:
    """Return the entries that `data` completes, and how many of its bytes they hold.

    data: begins where the last entry ended. What is left is an unfinished line of at most
    ENTRY_LIMIT bytes: one more byte decides whether it is a piece or a whole line.
    """
    head = b"%b %b " % (render_timestamp(now_ns), stream)
    full, partial = head + b"F ", head + b"P "
    newline_full = b"\n" + full
    whole = data.rfind(b"\n") + 1
    start, entries = 0, []
    while start < whole or len(data) - start > ENTRY_LIMIT:
        # The last newline of a window one longer than an entry: lines before it cannot be too long.
        end = data.rfind(b"\n", start, start + ENTRY_LIMIT + 1)
        if end >= 0:
            entries.append(full + data[start:end].replace(b"\n", newline_full))
            start = end + 1
        else:
            entries.append(partial + data[start : start + ENTRY_LIMIT])
            start += ENTRY_LIMIT
    entries.append(b"")
    return b"\n".join(entries), start


def render_all(data: bytes, stream: bytes, now_ns: int) -> bytes:
    """Return the entries of `data`, an unfinished line at its end as a piece."""
    entries, length = render_entries(data, stream, now_ns)
    if length == len(data):
        return entries
    return b"%b%b %b P %b\n" % (entries, render_timestamp(now_ns), stream, data[length:])


class LogFile:
    """One container's log. Output that cannot be written is dropped and counted, never an error.

    path: "" discards everything. dropped: entries that were lost to errors; told on stderr, once a
    minute at most.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.dropped = 0
        self._told_s = -_SILENCE_S
        self._fd = -1
        self.reopen()

    def append(self, entries: bytes) -> None:
        """Write whole entries, with one call: a killed monitor leaves at most their beginning."""
        if not self.path or not entries:
            return
        if self._fd < 0:
            self.reopen()
        reason = "short of space"
        try:
            written = os.write(self._fd, entries)
        except OSError as error:
            # ENOSPC, EDQUOT, EIO, EFBIG, and EBADF without a file. The container must go on,
            # so its pipe must drain; containerd does the same.
            written, reason = 0, os.strerror(error.errno or errno.EIO)
        if written < len(entries):
            self._give_up(entries, written, reason)

    def reopen(self) -> int:
        """Open `path` anew: the kubelet has renamed the old file. Returns 0 or an errno.

        After an error the old file stays in use.
        """
        if not self.path:
            return 0
        try:
            fd = _open_log(self.path)
        except OSError as error:
            return error.errno or errno.EIO
        self.close()
        self._fd = fd
        return 0

    def close(self) -> None:
        """Close the file; again is fine."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _give_up(self, entries: bytes, written: int, reason: str) -> None:
        whole = entries.rfind(b"\n", 0, written) + 1
        self.dropped += entries.count(b"\n", whole)
        self._tell(reason)
        if whole < written:
            with suppress(OSError):
                os.ftruncate(self._fd, os.fstat(self._fd).st_size - (written - whole))

    def _tell(self, reason: str) -> None:
        now_s = time.monotonic()
        if now_s - self._told_s >= _SILENCE_S:
            self._told_s = now_s
            # stderr is a file too, and may have no more room than the log.
            with suppress(OSError):
                sys.stderr.write(f"log {self.path}: {self.dropped} entries are lost: {reason}\n")
                sys.stderr.flush()


def _open_log(path: str) -> int:
    fd = os.open(path, _OPEN_FLAGS, 0o640)
    try:
        _cut_torn_entry(fd)
    except OSError:
        os.close(fd)
        raise
    return fd


def _cut_torn_entry(fd: int) -> None:
    # A monitor killed in write(2) leaves the beginning of an entry: the rest is gone with it, and
    # the next entry would become part of that line.
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        return
    length = min(status.st_size, _TORN_LIMIT)
    end = os.pread(fd, length, status.st_size - length)
    torn = length - (end.rfind(b"\n") + 1)
    # No newline as far back as an entry can be long: not a log of ours, which is not ours to cut.
    if 0 < torn < _TORN_LIMIT:
        os.ftruncate(fd, status.st_size - torn)
