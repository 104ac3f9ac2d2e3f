# SPDX-License-Identifier: Apache-2.0
"""Pseudo-terminals of a container's own devpts (pty(7), ioctl_tty(2))."""

import fcntl
import os
import struct
import termios

from pycri.kernel.paths import open_beneath

_TIOCSPTLCK = 0x40045431
_TIOCGPTPEER = 0x5441


def open_terminal(root_fd: int) -> tuple[int, int]:
    """Open a new pty on /dev/pts beneath `root_fd`. Returns (master, slave), caller closes both.

    The slave is opened through the master (TIOCGPTPEER), never by a path in the container.
    """
    flags = os.O_RDWR | os.O_NOCTTY
    master = open_beneath(root_fd, "/dev/pts/ptmx", flags)
    fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
    slave = fcntl.ioctl(master, _TIOCGPTPEER, flags | os.O_CLOEXEC)
    return master, slave


def set_size(terminal_fd: int, width: int, height: int) -> None:
    """Set the size in characters, by master or slave; the foreground group gets SIGWINCH."""
    fcntl.ioctl(terminal_fd, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))


def make_controlling(slave: int) -> None:
    """Make the pty the controlling terminal of the caller, which must lead a new session."""
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
