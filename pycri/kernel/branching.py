# SPDX-License-Identifier: Apache-2.0
"""A second process in the same memory: what vfork(2) is to fork(2), for a child in Python.

A fork of a Python process copies its page tables, then each page that one of the two writes, and
its execve frees all of that again before it has succeeded: two milliseconds. A child that borrows
its parent's memory, as posix_spawn(3) does it, takes a tenth.
"""

import ctypes  # noqa: TID251 - one of its homes
import mmap
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from pycri.kernel import process
from pycri.kernel.foreign import check

_VM, _VFORK, _PARENT, _PARENT_SETTID = 0x100, 0x4000, 0x8000, 0x100000
_MAP_STACK = 0x20000
_STACK_BYTES = 1 << 20

CAN_SHARE = sys.version_info < (3, 14)
"""Later interpreters end a thread that is not on the stack they know it by."""

_LINGER_S = 0.02
"""How long the caller stays when it has nothing left to do. To free its memory takes the kernel
half a millisecond in which that processor does nothing else, when those who wait for what was
executed are about to be woken there."""

_Body = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
# Of PyDLL, so that the lock of the interpreter is the child's as it was the caller's.
_clone = ctypes.PyDLL(None, use_errno=True).clone
_clone.restype = ctypes.c_int
_clone.argtypes = (
    _Body, ctypes.c_void_p, ctypes.c_int,
    ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p,
)  # fmt: skip


def go_on_in_child(child: Callable[[int], object], closed_fd: int) -> NoReturn:
    """Go on in a new process, whose parent is the caller's; the caller ends.

    child: is given the new process's pid, as the caller's pid namespace has it; it ends in execve,
        or, if it returns or fails, with status 127; it must report failures itself.
    closed_fd: the caller's copy of a descriptor whose end tells that the child has executed.
    The caller must have one thread, and stands still until the child has executed or ended.
    Raises: OSError if there can be no new process.
    """
    stack = mmap.mmap(-1, _STACK_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_STACK)
    top = ctypes.addressof(ctypes.c_char.from_buffer(stack)) + _STACK_BYTES
    pid = ctypes.c_int(0)

    def body(_: int) -> int:
        try:
            child(pid.value)
        finally:
            os._exit(process.FORKED_CHILD_FAILED)

    flags = _VM | _VFORK | _PARENT | _PARENT_SETTID | signal.SIGCHLD
    entry = _Body(body)
    last_fd = os.sysconf("SC_OPEN_MAX")
    check(_clone(entry, top, flags, None, ctypes.addressof(pid), None, None))
    # What the interpreter knows of its stack is the child's by now: no more than these few calls.
    os.close(closed_fd)
    os.closerange(3, last_fd)
    time.sleep(_LINGER_S)
    os._exit(0)
