# SPDX-License-Identifier: Apache-2.0
"""Exceptions to gRPC codes: the one table. A unit test fails if a leaf of the tree has no row.

The kubelet reads NOT_FOUND, UNIMPLEMENTED and DEADLINE_EXCEEDED by code. Of a failed PullImage or
CreateContainer it shows the message only of UNKNOWN, and tells kinds apart by its first word.
"""

import errno

from pycri import errors
from pycri.cri.rpc import Code

CODES: dict[type[BaseException], Code] = {
    errors.InvalidRequest: Code.INVALID_ARGUMENT,
    errors.NotFound: Code.NOT_FOUND,
    errors.AlreadyExists: Code.ALREADY_EXISTS,
    errors.WrongState: Code.FAILED_PRECONDITION,
    errors.Unsupported: Code.UNIMPLEMENTED,
    errors.TimedOut: Code.DEADLINE_EXCEEDED,
    errors.Unavailable: Code.UNAVAILABLE,
    errors.OutOfResources: Code.RESOURCE_EXHAUSTED,
    errors.Denied: Code.PERMISSION_DENIED,
    errors.RegistryUnavailable: Code.UNKNOWN,
    errors.CorruptImage: Code.UNKNOWN,
    errors.SignatureRejected: Code.UNKNOWN,
    errors.ImageVolumeMountFailed: Code.UNKNOWN,
    errors.RecursiveReadOnlyUnsupported: Code.UNKNOWN,
    errors.ProtocolViolation: Code.INVALID_ARGUMENT,
    errors.InvalidSettings: Code.FAILED_PRECONDITION,
    errors.SetupFailed: Code.INTERNAL,
}

CRI_NAMES: dict[type[BaseException], str] = {
    errors.RegistryUnavailable: "RegistryUnavailable",
    errors.SignatureRejected: "SignatureValidationFailed",
    errors.ImageVolumeMountFailed: "ImageVolumeMountFailed",
    errors.RecursiveReadOnlyUnsupported: "RROUnsupported",
}
"""Error names of the CRI that a message must begin with."""

LONGEST_MESSAGE = 1000
"""Characters: a status travels in a header, and gRPC drops headers above 8 KiB."""

_EXHAUSTED = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE}


def code_of(error: BaseException) -> Code:
    """Return the code of the nearest class in the table; INTERNAL for what nobody foresaw."""
    if getattr(error, "errno", None) in _EXHAUSTED:
        return Code.RESOURCE_EXHAUSTED
    for kind in type(error).__mro__:
        if kind in CODES:
            return CODES[kind]
    return Code.INTERNAL


def message_of(error: BaseException) -> str:
    """Return the message: the CRI's name if it has one, the error, the notes added on its way."""
    text = str(error) or type(error).__name__
    if not isinstance(error, errors.PycriError):
        text = f"{type(error).__name__}: {error}"
    name = CRI_NAMES.get(type(error))
    parts = [f"{name}: {text}" if name else text, *getattr(error, "__notes__", [])]
    # A path in it may have bytes that are no text (PEP 383).
    return "; ".join(parts)[:LONGEST_MESSAGE].encode(errors="backslashreplace").decode()
