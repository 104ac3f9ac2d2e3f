# SPDX-License-Identifier: Apache-2.0
"""Files kept in memory (memfd_create(2)).

Programs are sealed, so that nobody who reaches them by /proc/PID/exe can write.
"""

import fcntl
import os

_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_MFD_EXEC = 0x10


def make_file(name: str, content: bytes) -> int:
    """Return a file in memory, to be read from its start, close-on-exec; caller closes."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    with open(fd, "wb", closefd=False) as file:
        file.write(content)
        file.seek(0)
    return fd


def make_program(name: str, content: bytes) -> int:
    """Return a sealed executable in memory, close-on-exec; caller closes."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        fd = os.memfd_create(name, flags | _MFD_EXEC)
    except OSError:
        # Linux < 6.3 does not know MFD_EXEC and makes every memfd executable.
        fd = os.memfd_create(name, flags)
    with open(fd, "wb", closefd=False) as file:
        file.write(content)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return fd
