# SPDX-License-Identifier: Apache-2.0
"""Programs kept in memory: sealed, so that nobody who reaches them by /proc/PID/exe can write."""

import fcntl
import os

_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_MFD_EXEC = 0x10


def make_program(name: str, content: bytes) -> int:
    """Return a sealed executable in memory (memfd_create(2)), close-on-exec; caller closes."""
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
