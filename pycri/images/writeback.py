# SPDX-License-Identifier: Apache-2.0
"""A layer's files on disk: some early, all in the end.

What is written lies in memory until somebody asks for the disk. Asking only at the end would leave
the disk idle while files are made; asking for each file (fsync) is a commit of the journal each.
So the whole file system is written back (syncfs) while the archive passes, beside the work, and
once more at its end. Only the last call counts.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from pycri.images.ahead import ahead
from pycri.kernel.syscalls import syncfs
from pycri.kernel.trees import Measure, measure_tree

_EVERY_BYTES: Final = 128 * 1024 * 1024
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def written_back(pieces: Iterator[bytes], folder: str) -> Iterator[bytes]:
    """Pass on the pieces of an archive that is unpacked into `folder`, and write back meanwhile."""
    syncing: threading.Thread | None = None
    passed = 0
    for piece in pieces:
        passed += len(piece)
        if passed >= _EVERY_BYTES and not (syncing and syncing.is_alive()):
            passed = 0
            syncing = threading.Thread(target=_write_back, args=(folder,), daemon=True)
            syncing.start()
        yield piece


def _write_back(folder: str) -> None:
    # An open file of its own: the kernel tells each of a failure once (errseq), and who must hear
    # of it is the last call.
    fd = os.open(folder, _DIRECTORY)
    try:
        with suppress(OSError):
            syncfs(fd)
    finally:
        os.close(fd)


def sync_and_measure(root_fd: int, folder: str) -> Measure:
    """Wait until all is on disk; return what the folder has. Raises: OSError."""
    syncing = ahead(map(syncfs, (root_fd,)))
    measure = measure_tree(folder)
    for _ in syncing:
        pass
    return measure
