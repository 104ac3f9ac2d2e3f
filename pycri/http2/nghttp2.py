# SPDX-License-Identifier: Apache-2.0
"""libnghttp2 by ctypes: its prototypes and structures, as far as a server without I/O needs them.

The only user of the library (1.43 or later; `nghttp2.h` says what each call does). Python's lock is
held through its calls: they are short, and call back often. What is called back gets the object
that the session was made with, and must not raise.
"""

import ctypes  # noqa: TID251 - one of its homes
from collections.abc import Callable, Iterable
from ctypes import (  # noqa: TID251
    POINTER,
    c_char_p,
    c_int,
    c_int32,
    c_size_t,
    c_ssize_t,
    c_uint8,
    c_uint32,
    c_void_p,
    py_object,
)
from typing import Any, Final

from pycri.errors import Unsupported

Pointer = c_void_p
SONAME: Final = "libnghttp2.so.14"

NO_ERROR: Final = 0
DATA, HEADERS = 0, 1
END_STREAM: Final = 1
MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE = 3, 4
DATA_ENDS: Final = 1 | 2
"""DATA_FLAG_EOF and NO_END_STREAM: there is no more data, and trailers follow."""
DEFERRED: Final = -508
RESET_STREAM: Final = -521
"""TEMPORAL_CALLBACK_FAILURE: the stream, not the connection, is at fault."""
FAILED: Final = -902


class FrameHeader(ctypes.Structure):
    """nghttp2_frame_hd, with which every frame begins."""

    _fields_ = (
        ("length", c_size_t),
        ("stream_id", c_int32),
        ("type", c_uint8),
        ("flags", c_uint8),
        ("reserved", c_uint8),
    )


class Setting(ctypes.Structure):
    """nghttp2_settings_entry."""

    _fields_ = (("id", c_int32), ("value", c_uint32))


class _Field(ctypes.Structure):
    """nghttp2_nv."""

    _fields_ = (
        ("name", c_char_p),
        ("value", c_char_p),
        ("name_bytes", c_size_t),
        ("value_bytes", c_size_t),
        ("flags", c_uint8),
    )


class DataProvider:
    """nghttp2_data_provider: the source of an answer's data."""

    class _Layout(ctypes.Structure):
        _fields_ = (("source", c_void_p), ("read", c_void_p))

    def __init__(self, read: Any) -> None:
        self._read = read  # which the library does not keep
        self._provider = self._Layout(None, ctypes.cast(read, c_void_p))
        self.address = ctypes.addressof(self._provider)


class Fields:
    """Header fields as the library takes them; made once, sent often."""

    def __init__(self, fields: Iterable[tuple[bytes, bytes]]) -> None:
        made = [_Field(name, value, len(name), len(value), 0) for name, value in fields]
        self._array = (_Field * len(made))(*made)
        self.count = len(made)
        self.address = ctypes.addressof(self._array)


def _load() -> ctypes.PyDLL:
    try:
        return ctypes.PyDLL(SONAME)
    except OSError as error:
        text = f"{SONAME} cannot be loaded: install the package libnghttp2-14: {error}"
        raise Unsupported(text) from error


_library = _load()

# What ctypes makes of a function: a pointer for the library, not for Python to call.
Callback = Callable[[Callable[..., int]], Any]


def _callback(result: Any, *arguments: Any) -> Callback:
    return ctypes.PYFUNCTYPE(result, *arguments)


def _function(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    function = getattr(_library, f"nghttp2_{name}")
    function.restype, function.argtypes = result, arguments
    return function  # type: ignore[no-any-return]


_callbacks_new = _function("session_callbacks_new", c_int, POINTER(Pointer))
_option_new = _function("option_new", c_int, POINTER(Pointer))
_option_no_http = _function("option_set_no_http_messaging", None, c_void_p, c_int)
_option_no_closed = _function("option_set_no_closed_streams", None, c_void_p, c_int)
_server_new = _function(
    "session_server_new2", c_int, POINTER(Pointer), c_void_p, py_object, c_void_p
)
session_del = _function("session_del", None, c_void_p)
mem_recv = _function("session_mem_recv", c_ssize_t, c_void_p, c_char_p, c_size_t)
mem_send = _function("session_mem_send", c_ssize_t, c_void_p, POINTER(Pointer))
want_read = _function("session_want_read", c_int, c_void_p)
last_stream_id = _function("session_get_last_proc_stream_id", c_int32, c_void_p)
set_local_window_size = _function(
    "session_set_local_window_size", c_int, c_void_p, c_uint8, c_int32, c_int32
)
resume_data = _function("session_resume_data", c_int, c_void_p, c_int32)
submit_settings = _function("submit_settings", c_int, c_void_p, c_uint8, POINTER(Setting), c_size_t)
submit_response = _function(
    "submit_response", c_int, c_void_p, c_int32, c_void_p, c_size_t, c_void_p
)
submit_trailer = _function("submit_trailer", c_int, c_void_p, c_int32, c_void_p, c_size_t)
submit_rst_stream = _function("submit_rst_stream", c_int, c_void_p, c_uint8, c_int32, c_uint32)
submit_goaway = _function(
    "submit_goaway", c_int, c_void_p, c_uint8, c_int32, c_uint32, c_char_p, c_size_t
)

# What is called back; names and values of fields end with a NUL, which is in none of them.
OnBeginHeaders = _callback(c_int, c_void_p, c_void_p, py_object)
OnHeader = _callback(
    c_int, c_void_p, c_void_p, c_char_p, c_size_t, c_char_p, c_size_t, c_uint8, py_object
)
OnFrame = _callback(c_int, c_void_p, c_void_p, py_object)
OnData = _callback(c_int, c_void_p, c_uint8, c_int32, c_void_p, c_size_t, py_object)
OnClose = _callback(c_int, c_void_p, c_int32, c_uint32, py_object)
ReadData = _callback(
    c_ssize_t, c_void_p, c_int32, c_void_p, c_size_t, c_void_p, c_void_p, py_object
)


class Callbacks:
    """What sessions call back, for as long as the process lives; by the names of `nghttp2.h`."""

    def __init__(self, **functions: Any) -> None:
        self._functions = functions  # which the library does not keep
        made = Pointer()
        _callbacks_new(made)
        self.address = made.value
        for name, function in functions.items():
            setter = _function(
                f"session_callbacks_set_{name}_callback", None, c_void_p, type(function)
            )
            setter(self.address, function)


def _make_options() -> int | None:
    made = Pointer()
    _option_new(made)
    # Clients of gRPC may name a socket's path as authority, which HTTP does not allow.
    _option_no_http(made, 1)
    _option_no_closed(made, 1)
    return made.value


_OPTIONS: Final = _make_options()


def new_server(callbacks: Callbacks, owner: object) -> int:
    """Return a new session, whose callbacks get `owner`, which is borrowed; caller deletes it."""
    made = Pointer()
    if _server_new(made, callbacks.address, owner, _OPTIONS) or not made.value:
        raise MemoryError
    return made.value
