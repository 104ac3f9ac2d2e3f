# SPDX-License-Identifier: Apache-2.0
"""One header block of a tar archive, decoded. Pure, and on the path of every file of a layer.

    offset  0 name[100]  100 mode  108 uid  116 gid  124 size[12]  136 mtime[12]  148 checksum
          156 type  157 linkname[100]  257 magic[6] version[2]  329 devmajor  337 devminor
          345 prefix[155] (ustar only; GNU has other things there)

Numbers are octal digits, or binary where the first bit is set (GNU, "base-256").
Source: POSIX pax, "ustar Interchange Format"; GNU tar manual, "Basic Tar Format"; star(4).
"""

import struct
import zlib
from functools import lru_cache
from typing import Final

from pycri.errors import CorruptImage

BLOCK: Final = 512
REGULAR: Final = b"0"
OLD_REGULAR: Final = b"\0"
LINK: Final = b"1"
SYMLINK: Final = b"2"
CHARACTER_DEVICE: Final = b"3"
BLOCK_DEVICE: Final = b"4"
DIRECTORY: Final = b"5"
FIFO: Final = b"6"
CONTIGUOUS: Final = b"7"
PAX_NEXT: Final = b"x"
PAX_NEXT_SOLARIS: Final = b"X"
PAX_ALL: Final = b"g"
GNU_LONG_NAME: Final = b"L"
GNU_LONG_LINK: Final = b"K"
GNU_SPARSE: Final = b"S"

_FIELDS: Final = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12s")
_USTAR: Final = b"ustar\0"
_GNU: Final = b"ustar "
_STAR_END: Final = b"tar\0"
_ZEROS: Final = bytes(BLOCK)
_LARGEST: Final = 2**62


class Header:
    """A decoded block. Text is in the file system's encoding, numbers may be negative."""

    __slots__ = (
        "block", "device", "gid", "kind", "linkname", "mode", "mtime_s", "name", "size", "uid",
    )  # fmt: skip

    def __init__(self, block: bytes) -> None:
        """Decode 512 bytes. Raises: CorruptImage."""
        (
            name, mode, uid, gid, size, mtime, checksum, self.kind, linkname, magic, _, _,
            major, minor, prefix, end,
        ) = _FIELDS.unpack(block)  # fmt: skip
        _check_sum(block, checksum)
        self.block = block
        self.name = text(name)
        self.linkname = text(linkname)
        self.mode = number(mode) & 0o7777
        self.uid = number(uid)
        self.gid = number(gid)
        self.size = number(size)
        self.mtime_s = number(mtime)
        self.device = (0, 0)
        if self.kind in b"34":
            self.device = (number(major), number(minor))
        if prefix[0] and (before := _prefix(magic, prefix, end)):
            self.name = f"{before}/{self.name}"
        # Archives from before POSIX have no other mark of a folder.
        if self.kind == OLD_REGULAR and self.name.endswith("/"):
            self.kind = DIRECTORY


def is_end(block: bytes) -> bool:
    """Tell whether a block marks the end of the archive."""
    return block == _ZEROS


def text(field: bytes) -> str:
    """Return a field up to its first zero byte."""
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


@lru_cache(4096)
def number(field: bytes) -> int:
    """Return the number in a field; most are seen again. Raises: CorruptImage if there is none."""
    digits = field.rstrip(b"\0 ").lstrip(b" ")
    if digits.isdigit():
        try:
            return int(digits, 8)
        except ValueError:
            raise CorruptImage(f"the layer's tar has a number that is none: {field!r}") from None
    return _rare_number(field, digits)


def _rare_number(field: bytes, digits: bytes) -> int:
    if field[0] & 0x80:
        bits = 8 * len(field) - 1
        value = int.from_bytes(field, "big") & ((1 << bits) - 1)
        value -= (value >> (bits - 1)) << bits
        if -_LARGEST < value < _LARGEST:
            return value
    elif not digits.strip(b"\0"):
        return 0
    raise CorruptImage(f"the layer's tar has a number that is none: {field!r}")


def _prefix(magic: bytes, prefix: bytes, end: bytes) -> str:
    """Return what belongs before the name."""
    if magic.startswith(_USTAR):
        # star(4) keeps two times behind a shorter prefix.
        return text(prefix[:131] if end.endswith(_STAR_END) else prefix)
    if magic.startswith(_GNU) and not prefix[:11].strip(b"\0 ").isdigit():
        # Go 1.8 and older wrote long names so; GNU's own fields here are numbers.
        before = text(prefix)
        return before if before.isascii() else ""
    return ""


def _check_sum(block: bytes, field: bytes) -> None:
    # The low half of Adler-32 is 1 + the sum of the bytes, modulo 65521: exact for 256 of them.
    first, second = zlib.adler32(block[:256]), zlib.adler32(block[256:])
    blanked = 8 * 0x20 - sum(field)
    total = (first & 0xFFFF) + (second & 0xFFFF) - 2 + blanked
    promised = number(field)
    if promised == total:
        return
    # Some old writers added signed bytes.
    above = sum(1 for byte in block if byte > 127) - sum(1 for byte in field if byte > 127)
    if promised != total - 256 * above:
        raise CorruptImage("the layer is not a tar archive: a header's checksum is wrong")
