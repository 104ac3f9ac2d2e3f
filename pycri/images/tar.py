# SPDX-License-Identifier: Apache-2.0
"""Tar archives as layers use them, read once from front to back in bounded memory.

Header blocks are decoded by `tarheader.py`; what spans several blocks is read here, where each
length has a limit: PAX records (`x`, `g`), GNU long names (`L`, `K`); sparse files in `sparse.py`.

    [x block, records]  overrides of the next member: path, linkpath, size, uid, gid, mtime,
    [L block, name]     SCHILY.xattr.<name>
    header block        name, mode, uid, gid, size, mtime, type, linkname, device
    data, padded to 512
    two zero blocks     the end; so is the end of the stream
"""

import re
from collections.abc import Iterator, Mapping
from typing import Final

from pycri.errors import CorruptImage
from pycri.images import sparse, tarheader
from pycri.images.blobs import PlainInput
from pycri.images.tarheader import BLOCK, Header

_LONGEST_RECORD: Final = 1024 * 1024
_XATTR: Final = "SCHILY.xattr."
_KEPT: Final = ("path", "linkpath", "size", "uid", "gid", "mtime", _XATTR, sparse.PREFIX)
_NUMBER = re.compile(rb"[0-9]{1,18}")
_TIME = re.compile(rb"(-?)([0-9]{1,11})(?:\.([0-9]*))?")
_WITH_DATA: Final = (
    tarheader.REGULAR, tarheader.OLD_REGULAR, tarheader.CONTIGUOUS, tarheader.GNU_SPARSE,
)  # fmt: skip
_KNOWN: Final = frozenset(
    {
        *_WITH_DATA,
        tarheader.LINK,
        tarheader.SYMLINK,
        tarheader.CHARACTER_DEVICE,
        tarheader.BLOCK_DEVICE,
        tarheader.DIRECTORY,
        tarheader.FIFO,
    }
)
_NO_XATTRS: Final[dict[str, bytes]] = {}
Records = dict[str, bytes]


class Member:
    """One file of the archive. Its data, `size` bytes, follow in the stream.

    name, linkname: as written, file system encoding. mode: permission bits. mtime_ns: since the
    epoch. xattrs: by their full names. kind: a type of tarheader. sparse: where the data belong,
    None for a file without holes.
    """

    __slots__ = (
        "device", "gid", "kind", "linkname", "mode", "mtime_ns", "name", "size", "sparse", "uid",
        "xattrs",
    )  # fmt: skip

    def __init__(self, header: Header, records: Mapping[str, bytes]) -> None:
        self.kind = header.kind
        self.name = header.name
        self.linkname = header.linkname
        self.mode = header.mode
        self.device = header.device
        self.uid = _checked("uid", header.uid, 2**32 - 2)
        self.gid = _checked("gid", header.gid, 2**32 - 2)
        self.size = _checked("size", header.size, 2**62) if header.kind in _WITH_DATA else 0
        self.mtime_ns = header.mtime_s * 10**9
        self.xattrs = _NO_XATTRS
        self.sparse: sparse.SparseMap | None = None
        if records:
            self._override(records)
        if header.kind == tarheader.DIRECTORY:
            self.name = self.name.rstrip("/")
        if not -(10**20) < self.mtime_ns < 10**20:
            raise CorruptImage(f"the layer's tar has an impossible time: {header.mtime_s}")

    def _override(self, records: Mapping[str, bytes]) -> None:
        self.name = _text(records.get(sparse.NAME) or records.get("path")) or self.name
        self.linkname = _text(records.get("linkpath")) or self.linkname
        self.uid = _number(records, "uid", self.uid, 2**32 - 2)
        self.gid = _number(records, "gid", self.gid, 2**32 - 2)
        if self.kind in _WITH_DATA:
            self.size = _number(records, "size", self.size, 2**62)
        if records.get("mtime"):
            self.mtime_ns = _time_ns(records["mtime"])
        self.xattrs = {
            key[len(_XATTR) :]: value for key, value in records.items() if key.startswith(_XATTR)
        }
        if "\0" in self.name or "\0" in self.linkname:
            raise CorruptImage("the layer's tar has a name with a zero byte")


def read_members(stream: PlainInput) -> Iterator[Member]:
    """Yield the members in turn; their data must be read before the next is asked for.

    Raises: CorruptImage if the archive is broken, or holds what a layer cannot.
    """
    for_all: Records = {}
    for_next: Records = {}
    while (header := _read_header(stream)) is not None:
        if header.kind in _KNOWN:
            yield (member := _make_member(stream, header, for_all, for_next))
            stream.skip(-member.size % BLOCK)
            for_next = {}
            continue
        match header.kind:
            case tarheader.PAX_NEXT | tarheader.PAX_NEXT_SOLARIS:
                for_next = _joined(for_next, _parse_records(_read_data(stream, header)))
            case tarheader.PAX_ALL:
                for_all = _joined(for_all, _parse_records(_read_data(stream, header)))
            case tarheader.GNU_LONG_NAME:
                for_next["path"] = _read_data(stream, header).partition(b"\0")[0]
            case tarheader.GNU_LONG_LINK:
                for_next["linkpath"] = _read_data(stream, header).partition(b"\0")[0]
            case kind:
                shown = repr(kind.decode("latin-1"))
                raise CorruptImage(
                    f"the layer's tar has a member of a kind that layers lack: {shown}"
                )
    if for_next:
        raise CorruptImage("the layer's tar ends within a member")


def _make_member(stream: PlainInput, header: Header, for_all: Records, for_next: Records) -> Member:
    """Return the member of a header; of a sparse one the map has been read from the stream."""
    records = for_all | for_next if for_all else for_next
    member = Member(header, records)
    if header.kind == tarheader.GNU_SPARSE:
        member.sparse = sparse.read_gnu_map(stream, header.block, member.size)
    elif records and sparse.is_described(records) and header.kind in _WITH_DATA:
        taken, member.sparse = sparse.read_pax_map(stream, records, member.size)
        member.size -= taken
    return member


def _read_header(stream: PlainInput) -> Header | None:
    if stream.at_end():
        return None
    block = stream.read(BLOCK)
    return None if tarheader.is_end(block) else Header(block)


def _read_data(stream: PlainInput, header: Header) -> bytes:
    if not 0 <= header.size <= _LONGEST_RECORD:
        raise CorruptImage(f"the layer's tar has a header of {header.size} bytes")
    data = stream.read(header.size)
    stream.skip(-header.size % BLOCK)
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
        _keep_record(records, _text(key), value)
        position = end
    return records


def _keep_record(records: Records, key: str, value: bytes) -> None:
    if key in sparse.REPEATED:
        # The one kind of record that means something each time it comes.
        before = records.get(sparse.MAP)
        records[sparse.MAP] = value if before is None else before + b"," + value
    elif key.startswith(_KEPT):
        records[key] = value


def _joined(records: Records, more: Records) -> Records:
    """Return both; later ones count. Raises: CorruptImage if a writer never stops."""
    joined = records | more
    if sum(len(key) + len(value) for key, value in joined.items()) > _LONGEST_RECORD:
        raise CorruptImage(f"the layer's tar has more than {_LONGEST_RECORD} bytes of records")
    return joined


def _text(value: bytes | None) -> str:
    return value.decode("utf-8", "surrogateescape") if value else ""


def _number(records: Mapping[str, bytes], key: str, otherwise: int, most: int) -> int:
    value = records.get(key)
    if not value:
        return otherwise
    if not _NUMBER.fullmatch(value):
        raise CorruptImage(f"the layer's tar has a {key} that is no number")
    return _checked(key, int(value), most)


def _checked(key: str, value: int, most: int) -> int:
    if not 0 <= value <= most:
        raise CorruptImage(f"the layer's tar has an impossible {key}: {value}")
    return value


def _time_ns(value: bytes) -> int:
    """Return nanoseconds of seconds with a decimal fraction."""
    parsed = _TIME.fullmatch(value)
    if not parsed:
        raise CorruptImage("the layer's tar has a time that is no number")
    sign, seconds, fraction = parsed.groups()
    nanoseconds = int(seconds) * 10**9 + int((fraction or b"")[:9].ljust(9, b"0"))
    return -nanoseconds if sign else nanoseconds
