# SPDX-License-Identifier: Apache-2.0
"""Load a compiled seccomp filter into the calling process (seccomp(2))."""

from pycri.kernel import syscalls

_FLAG_NEW_LISTENER = 1 << 3


def load(instructions: bytes, flags: int) -> None:
    """Filter the caller's system calls from now on, and those of all it starts, for good.

    Needs no_new_privs or CAP_SYS_ADMIN.
    """
    syscalls.seccomp_set_filter(flags, instructions)


def load_with_listener(instructions: bytes, flags: int) -> int:
    """Do as `load`, and return the descriptor of notifications, close-on-exec; caller closes."""
    return syscalls.seccomp_set_filter(flags | _FLAG_NEW_LISTENER, instructions)
