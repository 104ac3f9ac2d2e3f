# SPDX-License-Identifier: Apache-2.0
"""Runtime handlers: the names a RuntimeClass may carry here."""

from pycri.errors import InvalidRequest

RUNTIME_HANDLERS = ("", "pycri")
"""The default handler, and the same by its name."""


def decode_runtime_handler(name: str, path: str) -> str:
    """Return the name of a handler we have."""
    if name not in RUNTIME_HANDLERS:
        known = ", ".join(repr(handler) for handler in RUNTIME_HANDLERS)
        raise InvalidRequest(path, f"{name!r} is not a known handler; known are {known}")
    return name
