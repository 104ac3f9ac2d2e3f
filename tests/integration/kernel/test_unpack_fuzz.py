# SPDX-License-Identifier: Apache-2.0
"""Archives that nobody would write: whatever they hold, what comes of it is below the folder."""

import io
import os
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycri.errors import CorruptImage
from pycri.images import unpacking
from pycri.images.blobs import PlainInput
from pycri.images.recipes import RecipeWriter
from pycri.images.unpacking import Unpacking
from pycri.kernel.trees import measure_tree, remove_tree

NAMES = st.sampled_from(
    [
        "a", "b", "c", "a/b", "a/b/c", "b/a", "c/a", "./a", "a/", "a//b", "/a", "/c/b", ".", "",
        "..", "../victim", "a/../../victim", "a/..", ".wh.a", "a/.wh.b", "a/.wh..wh..opq", ".wh..",
        ".wh.", ".wh..wh.plnk/1", "\udcff\udcfe", "a" * 256, "ü/\udce4",
    ]
)  # fmt: skip
TARGETS = st.sampled_from(
    ["a", "b", "a/b", "../victim", "/etc/passwd", "..", ".", "/", "c", "b/a", "../../../../tmp", ""]
)
KINDS = st.sampled_from(
    [
        tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE,
        tarfile.CHRTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE,
    ]
)  # fmt: skip
MEMBERS = st.tuples(NAMES, KINDS, TARGETS, st.integers(0, 0o7777), st.binary(max_size=600))


def archive_of(members: list[tuple[str, bytes, str, int, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.TarFile(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, kind, target, mode, data in members:
            member = tarfile.TarInfo(name)
            member.type, member.mode, member.uid, member.gid = kind, mode, mode, mode & 7
            member.linkname = target if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            member.size = len(data) if kind in (tarfile.REGTYPE, tarfile.CONTTYPE) else 0
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


@contextmanager
def layer_beside_a_victim() -> Iterator[Path]:
    """Make a folder to unpack into; check that nothing beside it was touched, and remove it."""
    mask = os.umask(0)
    with tempfile.TemporaryDirectory() as parent, open(parent + "/victim", "w") as victim:
        victim.write("safe")
        victim.flush()
        folder = Path(parent, "layer")
        folder.mkdir()
        try:
            yield folder
            assert sorted(os.listdir(parent)) == ["layer", "victim"]
            assert Path(parent, "victim").read_text() == "safe"
            assert Path(parent, "victim").stat().st_nlink == 1
        finally:
            os.umask(mask)
            parent_fd = os.open(parent, os.O_RDONLY)
            remove_tree(parent_fd, "layer")
            os.close(parent_fd)


def unpack(archive: bytes, folder: Path, piece: int = 1000) -> None:
    """Unpack in this process; only a CorruptImage may come of it."""
    opened = len(os.listdir("/proc/self/fd"))
    pieces = (archive[at : at + piece] for at in range(0, len(archive), piece))
    root_fd = os.open(folder, os.O_RDONLY)
    recipe_fd = os.open(folder.parent, os.O_TMPFILE | os.O_WRONLY)
    try:
        recipe = RecipeWriter(recipe_fd)
        Unpacking(root_fd, recipe).unpack(PlainInput(pieces, 1 << 24, recipe))
    finally:
        os.close(root_fd)
        os.close(recipe_fd)
        assert len(os.listdir("/proc/self/fd")) == opened


@settings(max_examples=300, deadline=None)
@given(st.lists(MEMBERS, max_size=12))
def test_no_archive_leads_out_of_its_folder(
    members: list[tuple[str, bytes, str, int, bytes]],
) -> None:
    with layer_beside_a_victim() as folder:
        with suppress(CorruptImage):
            unpack(archive_of(members), folder)
        measure_tree(str(folder))


@settings(max_examples=300, deadline=None)
@given(st.lists(MEMBERS, min_size=1, max_size=4), st.data())
def test_no_damage_to_an_archive_fails_in_another_way(
    members: list[tuple[str, bytes, str, int, bytes]], data: st.DataObject
) -> None:
    archive = bytearray(archive_of(members))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(archive) - 1))
        block = at - at % 512
        archive[at] = data.draw(st.integers(0, 255))
        # Half of the damage gets past the checksum.
        if data.draw(st.booleans()):
            archive[block + 148 : block + 156] = b" " * 8
            archive[block + 148 : block + 156] = b"%06o\0 " % sum(archive[block : block + 512])
    with layer_beside_a_victim() as folder, suppress(CorruptImage):
        unpack(bytes(archive[: data.draw(st.integers(0, len(archive)))]), folder)


def test_a_layer_of_too_many_members_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "MOST_MEMBERS", 10)
    members = [("a", tarfile.DIRTYPE, "", 0o755, b"")] * 11
    with layer_beside_a_victim() as folder, pytest.raises(CorruptImage, match="more than 10"):
        unpack(archive_of(members), folder)
