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
        with_field(header(), 156, b"S"),
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
        pax(b"26 GNU.sparse.realsize=99\n") + PLAIN,
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
