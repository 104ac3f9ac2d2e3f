# SPDX-License-Identifier: Apache-2.0
"""Tar archives as layers use them, read once from front to back in bounded memory.

Header blocks are decoded by the standard library's TarInfo; all that spans several blocks is read
here, where each length has a limit: PAX records (`x`, `g`), GNU long names (`L`, `K`). Sparse files
are refused (OCI image-spec, layer.md: they lack consistent support).

    [x block, records]  overrides of the next member: path, linkpath, size, uid, gid, mtime,
    [L block, name]     SCHILY.xattr.<name>
    header block        name, mode, uid, gid, size, mtime, type, linkname, device
    data, padded to 512
    two zero blocks     the end; so is the end of the stream
"""

import re
import tarfile
from collections.abc import Iterator, Mapping
from typing import Final

from pycri.errors import CorruptImage
from pycri.images.blobs import PlainInput

_BLOCK: Final = 512
_LONGEST_RECORD: Final = 1024 * 1024
_XATTR: Final = "SCHILY.xattr."
_NUMBER = re.compile(rb"[0-9]{1,18}")
_TIME = re.compile(rb"(-?)([0-9]{1,11})(?:\.([0-9]*))?")
_WITH_DATA: Final = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_KNOWN: Final = frozenset(
    {
        *_WITH_DATA,
        tarfile.LNKTYPE,
        tarfile.SYMTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.DIRTYPE,
        tarfile.FIFOTYPE,
    }
)
Records = dict[str, bytes]


class Member:
    """One file of the archive. Its data, `size` bytes, follow in the stream.

    name, linkname: as written, file system encoding. mode: permission bits. mtime_ns: since the
    epoch. xattrs: by their full names. kind: a type of tarfile.
    """

    __slots__ = (
        "device", "gid", "kind", "linkname", "mode", "mtime_ns", "name", "size", "uid", "xattrs",
    )  # fmt: skip

    def __init__(self, header: tarfile.TarInfo, records: Mapping[str, bytes]) -> None:
        self.kind = header.type
        self.name = _text(records.get("path")) or header.name
        self.linkname = _text(records.get("linkpath")) or header.linkname
        self.mode = header.mode & 0o7777
        self.uid = _number(records, "uid", header.uid, 2**32 - 2)
        self.gid = _number(records, "gid", header.gid, 2**32 - 2)
        self.size = _number(records, "size", header.size, 2**62) if self.has_data else 0
        self.mtime_ns = _time_ns(records.get("mtime"), int(header.mtime))
        self.device = (header.devmajor, header.devminor)
        self.xattrs = {
            key[len(_XATTR) :]: value for key, value in records.items() if key.startswith(_XATTR)
        }
        if "\0" in self.name or "\0" in self.linkname:
            raise CorruptImage("the layer's tar has a name with a zero byte")

    @property
    def has_data(self) -> bool:
        """Tell whether it is a regular file."""
        return self.kind in _WITH_DATA


def read_members(stream: PlainInput) -> Iterator[Member]:
    """Yield the members in turn; their data must be read before the next is asked for.

    Raises: CorruptImage if the archive is broken, or holds what a layer cannot.
    """
    for_all: Records = {}
    for_next: Records = {}
    while (header := _read_header(stream)) is not None:
        match header.type:
            case tarfile.XHDTYPE | tarfile.SOLARIS_XHDTYPE:
                for_next |= _parse_records(_read_data(stream, header))
            case tarfile.XGLTYPE:
                for_all |= _parse_records(_read_data(stream, header))
            case tarfile.GNUTYPE_LONGNAME:
                for_next["path"] = _read_data(stream, header).partition(b"\0")[0]
            case tarfile.GNUTYPE_LONGLINK:
                for_next["linkpath"] = _read_data(stream, header).partition(b"\0")[0]
            case _:
                member = _make_member(header, for_all | for_next)
                yield member
                stream.skip(-member.size % _BLOCK)
                for_next = {}
    if for_next:
        raise CorruptImage("the layer's tar ends within a member")


def _make_member(header: tarfile.TarInfo, records: Records) -> Member:
    if header.type not in _KNOWN or any(key.startswith("GNU.sparse.") for key in records):
        kind = "sparse" if header.type in _KNOWN else repr(header.type.decode("latin-1"))
        raise CorruptImage(f"the layer's tar has a member of a kind that layers lack: {kind}")
    return Member(header, records)


def _read_header(stream: PlainInput) -> tarfile.TarInfo | None:
    if stream.at_end():
        return None
    try:
        return tarfile.TarInfo.frombuf(stream.read(_BLOCK), "utf-8", "surrogateescape")
    except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # a block of zeros
        return None
    except tarfile.HeaderError as error:
        raise CorruptImage(f"the layer is not a tar archive: {error}") from error


def _read_data(stream: PlainInput, header: tarfile.TarInfo) -> bytes:
    if not 0 <= header.size <= _LONGEST_RECORD:
        raise CorruptImage(f"the layer's tar has a header of {header.size} bytes")
    data = stream.read(header.size)
    stream.skip(-header.size % _BLOCK)
    return data


def _parse_records(data: bytes) -> Records:
    """Return the records of a PAX header: `length key=value\\n`, the length counts all of it."""
    records: Records = {}
    position = 0
    while position < len(data) and data[position]:
        space = data.find(b" ", position, position + 8)
        length = data[position:space] if space > 0 else b""
        end = position + int(length) if length.isdigit() else 0
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if end <= space or end > len(data) or data[end - 1 : end] != b"\n" or not equals:
            raise CorruptImage("the layer's tar has a broken PAX record")
        records[_text(key)] = value
        position = end
    return records


def _text(value: bytes | None) -> str:
    return value.decode("utf-8", "surrogateescape") if value else ""


def _number(records: Mapping[str, bytes], key: str, otherwise: int, most: int) -> int:
    text = records.get(key)
    if text and not _NUMBER.fullmatch(text):
        raise CorruptImage(f"the layer's tar has a {key} that is no number")
    number = int(text) if text else otherwise
    if not 0 <= number <= most:
        raise CorruptImage(f"the layer's tar has an impossible {key}: {number}")
    return number


def _time_ns(text: bytes | None, otherwise_s: int) -> int:
    """Return nanoseconds; the archive gives seconds with a decimal fraction, or whole ones."""
    if not text:
        if abs(otherwise_s) >= 10**11:
            raise CorruptImage(f"the layer's tar has an impossible time: {otherwise_s}")
        return otherwise_s * 10**9
    parsed = _TIME.fullmatch(text)
    if not parsed:
        raise CorruptImage("the layer's tar has a time that is no number")
    sign, seconds, fraction = parsed.groups()
    nanoseconds = int(seconds) * 10**9 + int((fraction or b"")[:9].ljust(9, b"0"))
    return -nanoseconds if sign else nanoseconds
