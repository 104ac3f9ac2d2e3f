# SPDX-License-Identifier: Apache-2.0
"""The folder of CNI configurations: read whole each time, parsed when it is another than before.

A few small files are read in less time than a plugin takes to start, so nothing is watched and no
time of a change is believed: no change is missed, however files or the folder itself are replaced.
"""

import asyncio
import contextlib
import os
import stat
from typing import Final

from pycri.logs import Log
from pycri.network.cni.conflist import EXTENSIONS, File, Folder, parse_folder

LARGEST_BYTES: Final = 1 << 20

_log = Log("cni")


class ConfigFolder:
    """What the folder held when it was last read.

    present: whether it has held a configuration, good or bad, since the daemon's start.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.held = Folder()
        self.present = False
        self._files: tuple[File, ...] = ()
        self._reading = asyncio.Lock()  # so that what was read last is what counts

    async def read(self) -> Folder:
        """Return what the folder holds now; a folder that is absent holds nothing."""
        async with self._reading:
            files = await asyncio.to_thread(read_files, self.path)
            if files != self._files:
                self._files = files
                self.held = parse_folder(files)
                self.present = self.present or bool(files)
                self._report()
            return self.held

    def _report(self) -> None:
        for fault in self.held.faults:
            _log.warning("CNI configuration is bad", folder=self.path, fault=fault)
        network = self.held.default.name if self.held.default else None
        _log.info("CNI configuration", folder=self.path, network=network)


def read_files(folder: str) -> tuple[File, ...]:
    """Return the configuration files of the folder and of the folders right below it, sorted."""
    files = []
    for name in _list(folder):
        path = f"{folder}/{name}"
        if os.path.isdir(path):
            inner = (f"{name}/{entry}" for entry in _list(path) if entry.endswith(".conf"))
            files += [_read_file(folder, entry) for entry in inner]
        elif os.path.splitext(name)[1] in EXTENSIONS:
            files.append(_read_file(folder, name))
    return tuple(files)


def _list(folder: str) -> list[str]:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return sorted(os.listdir(folder))
    return []


def _read_file(folder: str, path: str) -> File:
    try:
        # A pipe would keep its reader waiting for ever.
        fd = os.open(f"{folder}/{path}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return File(path=path, fault="not a file")
            content = file.read(LARGEST_BYTES + 1)
    except OSError as error:
        return File(path=path, fault=error.strerror or str(error))
    if len(content) > LARGEST_BYTES:
        return File(path=path, fault=f"larger than {LARGEST_BYTES} bytes")
    return File(path=path, content=content)
