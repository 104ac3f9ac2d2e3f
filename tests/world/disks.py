# SPDX-License-Identifier: Apache-2.0
"""A file system of one's own, ext4 with a journal in a file, as a node has it.

The host's may be another: ext4 without a journal makes files some twenty times slower for five
minutes after others were removed, which would be measured, or waited for, instead.
"""

import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SHUTDOWN = 0x8004587D
"""FS_IOC_SHUTDOWN of ext4 and xfs."""
POWER_LOSS = 2
"""Nothing of what is in memory reaches the disk."""
JOURNAL_ONLY = 1
"""The journal does, the data of files do not: the way to files of zeros or without content."""


@contextmanager
def own_disk(file: Path, folder: Path, size_bytes: int) -> Iterator[None]:
    """Make a file system in `file`, which has holes, and mount it on `folder`."""
    with open(file, "wb") as image:
        image.truncate(size_bytes)
    # All of it is made now, not by a thread of the kernel while we measure.
    options = "lazy_itable_init=0,lazy_journal_init=0"
    subprocess.run(["mkfs.ext4", "-q", "-E", options, file], check=True)
    subprocess.run(["mount", "-o", "loop", file, folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)
        file.unlink()


class CrashingDisk:
    """A file system in a file, mounted at `folder`. crashed: it takes nothing any more."""

    def __init__(self, file: Path, folder: Path) -> None:
        self.folder = folder
        self._file = file
        self.crashed = False
        with open(file, "wb") as image:
            image.truncate(256 << 20)
        subprocess.run(["mkfs.ext4", "-q", file], check=True)
        folder.mkdir()

    @contextmanager
    def mounted(self) -> Iterator[None]:
        subprocess.run(["mount", "-o", "loop", self._file, self.folder], check=True)
        try:
            yield
        finally:
            subprocess.run(["umount", self.folder], check=True)

    def crash(self, kind: int) -> None:
        fd = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", kind))
            self.crashed = True
        finally:
            os.close(fd)
