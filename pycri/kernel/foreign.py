# SPDX-License-Identifier: Apache-2.0
"""How system calls are reached: by ctypes, with a prototype each, and errno as an exception."""

from __future__ import annotations

import ctypes  # noqa: TID251 - one of its homes
import os

libc = ctypes.CDLL(None, use_errno=True)

# One foreign function per number: variadic syscall(2) needs argument types that differ.
_syscall_address = ctypes.cast(libc.syscall, ctypes.c_void_p).value or 0


def prototype(name: str, result: type, *arguments: type) -> ctypes._NamedFuncPointer:
    """Return a function of the C library, its types declared."""
    function = getattr(libc, name)
    function.restype = result
    function.argtypes = arguments
    return function  # type: ignore[no-any-return]


def syscall(*arguments: type) -> ctypes._CFunctionType:
    """Return syscall(2) for calls with these arguments, which follow the call's number."""
    kind = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_long, *arguments, use_errno=True)
    return kind(_syscall_address)


def check(result: int, path: str | None = None) -> int:
    """Return the result of a call. Raises OSError for one below 0; `path` becomes its filename."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result
