# SPDX-License-Identifier: Apache-2.0
"""The tar reader against the standard library's writer, and against broken input."""

import gzip
import io
import tarfile

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pycri.errors import CorruptImage
from pycri.images.blobs import PlainInput
from pycri.images.tar import Member, read_members
from pycri.images.tarheader import Header

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def make_tar(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.TarFile(fileobj=buffer, mode="w", format=form) as archive:
        for member, data in members:
            if data:
                member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def member_of(name: str, **fields: object) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(member, key, value)
    return member


def read(archive: bytes, piece: int = 700) -> list[tuple[Member, bytes]]:
    """Read an archive that comes in small pieces, so that headers are split too."""
    pieces = (archive[at : at + piece] for at in range(0, len(archive), piece))
    stream = PlainInput(pieces, 1 << 30)
    return [(member, stream.read(member.size)) for member in read_members(stream)]


@pytest.mark.parametrize("form", FORMATS)
def test_members_are_read_as_they_were_written(form: int) -> None:
    archive = make_tar(
        (member_of("a", type=tarfile.DIRTYPE, mode=0o1777), b""),
        (member_of("a/b", mode=0o4755, uid=7, gid=8, mtime=9), b"x" * 1000),
        (member_of("a/c", type=tarfile.LNKTYPE, linkname="a/b"), b""),
        (member_of("d", type=tarfile.SYMTYPE, linkname="../e"), b""),
        (member_of("f", type=tarfile.CHRTYPE, devmajor=1, devminor=3), b""),
        form=form,
    )
    found = read(archive)
    assert [(m.name, m.kind, m.linkname, data) for m, data in found] == [
        ("a", tarfile.DIRTYPE, "", b""),
        ("a/b", tarfile.REGTYPE, "", b"x" * 1000),
        ("a/c", tarfile.LNKTYPE, "a/b", b""),
        ("d", tarfile.SYMTYPE, "../e", b""),
        ("f", tarfile.CHRTYPE, "", b""),
    ]
    folder, file = found[0][0], found[1][0]
    assert (folder.mode, file.mode, file.uid, file.gid) == (0o1777, 0o4755, 7, 8)
    assert (file.mtime_ns, found[4][0].device) == (9 * 10**9, (1, 3))


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_odd_names_are_read(form: int) -> None:
    name = "/".join(["long" * 20] * 20) + "/ünï\udcff"
    (found, data) = read(
        make_tar((member_of(name, type=tarfile.SYMTYPE, linkname=name + "x"), b""), form=form)
    )[0]
    assert (found.name, found.linkname, data) == (name, name + "x", b"")


def test_pax_records_override_the_header() -> None:
    member = member_of("short", uid=3_000_000, mtime=1.25)
    member.pax_headers = {"SCHILY.xattr.user.x": "\udcff\0y"}
    found, data = read(make_tar((member, b"data")))[0]
    assert (found.uid, found.mtime_ns, data) == (3_000_000, 1_250_000_000, b"data")
    assert found.xattrs["user.x"] == b"\xff\x00y"


def test_the_records_of_one_member_do_not_reach_the_next() -> None:
    first = member_of("a")
    first.pax_headers = {"SCHILY.xattr.user.x": "y", "mtime": "5.5"}
    (_, (second, _)) = read(make_tar((first, b""), (member_of("b"), b"")))
    assert (second.name, second.xattrs, second.mtime_ns) == ("b", {}, 0)


def header(**fields: object) -> bytearray:
    return bytearray(member_of("name", **fields).tobuf(tarfile.USTAR_FORMAT))


def with_field(block: bytearray, at: int, value: bytes) -> bytes:
    """Return the header with a field changed and its checksum right."""
    block[at : at + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(records: bytes, size: int | None = None) -> bytes:
    block = header(type=tarfile.XHDTYPE, size=len(records) if size is None else size)
    return with_field(block, 0, b"x") + records.ljust(-(-len(records) // 512) * 512, b"\0")


PLAIN = bytes(header())


@pytest.mark.parametrize(
    "archive",
    [
        b"not a tar archive".ljust(512, b"x"),
        PLAIN[:100],
        bytes(header(size=1000)) + b"x" * 512,
        PLAIN[:148] + b"0000000\0" + PLAIN[156:],
        with_field(header(), 124, b"\xff" * 12),
        with_field(header(), 124, b"\x80" + b"\xff" * 11),
        with_field(header(), 108, b"\xff" * 8),
        with_field(header(), 136, b"\x80" + b"\xff" * 11),
        with_field(header(), 156, b"M"),
        pax(b"12 path=abc\n", size=2_000_000_000),
        pax(b"99 path=abc\n") + PLAIN,
        pax(b"0 path=abc\n") + PLAIN,
        pax(b"-5 path=abc\n") + PLAIN,
        pax(b"path=abc\n") + PLAIN,
        pax(b"9 pathabc") + PLAIN,
        pax(b"12 uid=-123\n") + PLAIN,
        pax(b"12 uid=1e99\n") + PLAIN,
        pax(b"14 mtime=1e99\n") + PLAIN,
        pax(b"13 path=a\0bc\n") + PLAIN,
        pax(b"12 path=abc\n"),
    ],
)
def test_a_broken_archive_is_refused(archive: bytes) -> None:
    with pytest.raises(CorruptImage):
        read(archive)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=600), st.integers(0, 1023))
def test_no_damage_makes_the_reader_fail_in_another_way(noise: bytes, at: int) -> None:
    archive = bytearray(pax(b"12 path=abc\n") + PLAIN + bytes(1024))
    archive[at : at + len(noise)] = noise
    try:
        for member, _ in read(bytes(archive)):
            assert "\0" not in member.name
    except CorruptImage:
        pass


def test_compressions_used_here_are_told_apart_by_their_first_bytes() -> None:
    """The magic numbers of pycri.images.blobs are those of the real compressors."""
    assert gzip.compress(b"x")[:3] == b"\x1f\x8b\x08"
    assert zstandard.compress(b"x")[:4] == b"\x28\xb5\x2f\xfd"


def sparse_pax(*records: bytes, data: bytes = b"") -> bytes:
    """Return a sparse member with PAX records, and its data."""
    block = header(size=len(data))
    padded = data.ljust(-(-len(data) // 512) * 512, b"\0")
    return pax(b"".join(map(pax_record, records))) + with_field(block, 0, b"n") + padded


def pax_record(record: bytes) -> bytes:
    length = len(record) + 3
    while len(b"%d %s\n" % (length, record)) != length:
        length += 1
    return b"%d %s\n" % (length, record)


def gnu_sparse(
    *pairs: bytes, size: bytes = b"%011o\0" % 100, data: int = 0, more: int = 0
) -> bytes:
    block = header(size=data)
    table = b"".join(pairs).ljust(96, b"\0") + bytes([more]) + size
    return with_field(with_field_only(block, 156, b"S"), 386, table)


def with_field_only(block: bytearray, at: int, value: bytes) -> bytearray:
    block[at : at + len(value)] = value
    return block


def pair(offset: int, length: int) -> bytes:
    return b"%011o\0%011o\0" % (offset, length)


MAP = b"GNU.sparse.map="
VERSION_1 = (b"GNU.sparse.major=1", b"GNU.sparse.minor=0", b"GNU.sparse.realsize=100")


@pytest.mark.parametrize(
    "archive",
    [
        sparse_pax(MAP + b"0,1", b"GNU.sparse.size=9", data=b"x"),
        sparse_pax(
            b"GNU.sparse.offset=0", b"GNU.sparse.numbytes=1", b"GNU.sparse.size=9", data=b"x"
        ),
        sparse_pax(*VERSION_1[:2], b"GNU.sparse.realsize=9", data=b"1\n0\n1\n".ljust(512) + b"x"),
        gnu_sparse(pair(0, 1), pair(9, 0), size=b"%011o\0" % 9, data=1) + b"x".ljust(512),
    ],
)
def test_the_map_of_a_sparse_file_is_read(archive: bytes) -> None:
    ((found, data),) = read(archive + bytes(1024))
    assert found.sparse is not None
    assert (found.sparse.size, found.sparse.parts[0], data) == (9, (0, 1), b"x")


@pytest.mark.parametrize(
    "archive",
    [
        sparse_pax(MAP + b"0,1"),
        sparse_pax(MAP + b"0", b"GNU.sparse.size=9"),
        sparse_pax(MAP + b"0,-1", b"GNU.sparse.size=9"),
        sparse_pax(MAP + b"0,10", b"GNU.sparse.size=9", data=bytes(10)),
        sparse_pax(MAP + b"0,1", b"GNU.sparse.size=9", data=b"xx"),
        sparse_pax(MAP + b"5,1,0,1", b"GNU.sparse.size=9", data=b"xx"),
        sparse_pax(MAP + b"0,5,3,2", b"GNU.sparse.size=9", data=bytes(7)),
        sparse_pax(MAP + b"9" * 30 + b",1", b"GNU.sparse.size=9", data=b"x"),
        sparse_pax(b"GNU.sparse.major=2", b"GNU.sparse.minor=0", b"GNU.sparse.realsize=9"),
        sparse_pax(*VERSION_1),
        sparse_pax(*VERSION_1, data=b"9999999\n".ljust(512)),
        sparse_pax(*VERSION_1, data=b"3\n0\n1\n".ljust(512)),
        sparse_pax(*VERSION_1, data=b"x" * 600),
        sparse_pax(*VERSION_1[:2], data=b"0\n".ljust(512)),
        gnu_sparse(pair(0, 1), data=2) + b"xx".ljust(512),
        gnu_sparse(pair(0, 101), data=101) + bytes(512),
        gnu_sparse(b"x" * 24),
        gnu_sparse(pair(0, 0), more=1),
        gnu_sparse(pair(0, 0), more=1) + (pair(0, 0) * 21 + b"\1").ljust(512) * 13_000,
    ],
)
def test_a_sparse_file_with_a_broken_map_is_refused(archive: bytes) -> None:
    with pytest.raises(CorruptImage):
        read(archive)


def test_records_that_never_end_are_refused() -> None:
    def for_all(number: int) -> bytes:
        archive = pax(pax_record(b"SCHILY.xattr.user.%d=" % number + b"x" * 9000))
        return with_field(bytearray(archive[:512]), 156, b"g") + archive[512:]

    with pytest.raises(CorruptImage, match="bytes of records"):
        read(b"".join(map(for_all, range(200))) + PLAIN)


def test_a_prefix_belongs_to_the_name_in_archives_that_have_one() -> None:
    ustar = bytearray(header())
    assert read(with_field(ustar, 345, b"above/it") + bytes(1024))[0][0].name == "above/it/name"
    star = with_field_only(bytearray(header()), 508, b"tar\0")
    assert read(with_field(star, 345, b"above") + bytes(1024))[0][0].name == "above/name"
    gnu = with_field_only(bytearray(header()), 257, b"ustar  \0")
    assert read(with_field(gnu, 345, b"14500000000 ") + bytes(1024))[0][0].name == "name"
    old_go = with_field_only(bytearray(header()), 257, b"ustar  \0")
    assert read(with_field(old_go, 345, b"above") + bytes(1024))[0][0].name == "above/name"


def test_checksums_of_signed_bytes_are_taken() -> None:
    block = bytearray(header())
    block[0:4] = b"n\xe9\xe8e"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(byte - 256 * (byte > 127) for byte in block)
    assert read(bytes(block) + bytes(1024))[0][0].name == "n\udce9\udce8e"


NUMBERS = st.integers(0, 2**32 - 2)


@given(uid=NUMBERS, gid=NUMBERS, size=st.integers(0, 9000), mode=st.integers(0, 0o7777))
def test_headers_are_read_as_the_standard_library_reads_them(
    uid: int, gid: int, size: int, mode: int
) -> None:
    member = member_of("name", uid=uid, gid=gid, size=size, mode=mode, mtime=uid - gid)
    block = member.tobuf(tarfile.GNU_FORMAT)
    ours, theirs = Header(block), tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    assert (ours.uid, ours.gid, ours.size, ours.mode) == (theirs.uid, theirs.gid, size, mode)
    assert ours.mtime_s == theirs.mtime == uid - gid


@settings(max_examples=500)
@given(st.binary(min_size=512, max_size=512))
def test_any_block_with_a_right_checksum_is_read_or_refused(noise: bytes) -> None:
    block = with_field(bytearray(noise), 257, b"ustar\00000")
    try:
        for member, _ in read(block + bytes(8192)):
            assert 0 <= member.uid < 2**32 and 0 <= member.gid < 2**32 and member.size >= 0
    except CorruptImage:
        pass
