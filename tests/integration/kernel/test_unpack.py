# SPDX-License-Identifier: Apache-2.0
"""Layers unpacked by the process itself: what is made, and what hostile archives cannot do."""

import hashlib
import io
import json
import os
import stat
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.world import session
from tests.world.image_stores import read_tree
from tests.world.oci import Layer

Entry = tuple[tarfile.TarInfo, bytes]
FOLDER = {"type": tarfile.DIRTYPE}
OUTSIDE = "/outside-of-the-layer"


def entry(name: str, data: bytes = b"", **fields: Any) -> Entry:
    member = tarfile.TarInfo(name)
    member.mode = 0o644
    for key, value in fields.items():
        setattr(member, key, value)
    member.size = len(data)
    return member, data


def link(name: str, target: str) -> Entry:
    return entry(name, type=tarfile.SYMTYPE, linkname=target)


def hard_link(name: str, target: str) -> Entry:
    return entry(name, type=tarfile.LNKTYPE, linkname=target)


def tar_of(*entries: Entry) -> bytes:
    buffer = io.BytesIO()
    with tarfile.TarFile(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member, data in entries:
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def unpack(folder: Path, archive: bytes) -> dict[str, Any]:
    """Run the unpack process on an uncompressed layer; return what it says."""
    folder.mkdir()
    digest = "sha256:" + hashlib.sha256(archive).hexdigest()
    recipe = str(folder.parent.with_name("recipe"))
    command = [sys.executable, "-m", "pycri.images.unpack", str(folder), digest, digest, recipe]
    root = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    result = subprocess.run(
        command, input=archive, capture_output=True, env=session.environment() | root, check=True
    )
    assert result.stderr == b""
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    return tmp_path / "parent" / "layer"


@pytest.fixture(autouse=True)
def _nothing_outside(tmp_path: Path) -> Any:
    """Fail a test whose archive made something beside the layer's folder."""
    (tmp_path / "parent").mkdir()
    (tmp_path / "parent" / "victim").write_text("safe")
    yield
    assert set(os.listdir(tmp_path / "parent")) <= {"victim", "layer"}
    assert (tmp_path / "parent" / "victim").read_text() == "safe"
    assert not Path(OUTSIDE).exists()


@pytest.mark.parametrize(
    "entries",
    [
        [entry("../victim", b"x")],
        [entry("a/../../victim", b"x")],
        [entry("a/..", **FOLDER)],
        [entry("../.wh.victim")],
        [entry("a/.wh...")],
        [entry(".wh.")],
        [entry(".wh..")],
        [hard_link("a", "../victim")],
        [hard_link("a", "/nowhere")],
        [hard_link("a", "a")],
        [entry("d", **FOLDER), hard_link("a", "d")],
        [entry("a", b"x"), entry("a/b", b"x")],
        [link("loop", "loop"), entry("loop/a", b"x")],
        [link("up", "../../victim-folder"), entry("up/a", b"x")],
        [entry("a" * 300, b"x")],
        [entry("d/" * 3000 + "f", b"x")],
        [entry(".", b"x")],
    ],
)
def test_a_hostile_archive_is_refused(entries: list[Entry], layer: Path) -> None:
    answer = unpack(layer, tar_of(*entries))
    assert answer["kind"] == "corrupt" and answer["message"]


@pytest.mark.parametrize(
    ("entries", "found"),
    [
        ([entry(OUTSIDE, b"x")], [OUTSIDE[1:]]),
        ([entry("/" + OUTSIDE, b"x")], [OUTSIDE[1:]]),
        ([link("d", "/"), entry("d/f", b"x")], ["d", "f"]),
        ([link("d", "../.."), entry("d/victim", b"x")], ["d", "victim"]),
        ([link("f", "../victim"), entry("f", b"x")], ["f"]),
        ([link("f", OUTSIDE), hard_link("g", "f")], ["f", "g"]),
        ([entry("d", **FOLDER), link("d", "../.."), entry("d/x", b"x")], ["d", "x"]),
    ],
)
def test_links_out_of_the_layer_end_inside_of_it(
    entries: list[Entry], found: list[str], layer: Path
) -> None:
    """A link is followed as in a container whose root the layer is, or not at all."""
    assert "kind" not in unpack(layer, tar_of(*entries))
    assert list(read_tree(layer)) == found


def test_owners_modes_times_and_attributes_are_kept(layer: Path) -> None:
    capability = b"\x01\x00\x00\x02\x00\x04" + bytes(14)
    setuid = entry("bin/su", b"x", mode=0o6755, uid=7, gid=3_000_000_000, mtime=1.5)
    setuid[0].pax_headers = {
        "SCHILY.xattr.security.capability": os.fsdecode(capability),
        "SCHILY.xattr.user.colour": "green",
        "SCHILY.xattr.trusted.overlay.redirect": "/etc",
        "SCHILY.xattr.security.selinux": "label",
    }
    folder = entry("bin", mode=0o1777, uid=5, mtime=100, **FOLDER)
    symlink = link("link", "target")
    symlink[0].uid = 9
    answer = unpack(
        layer, tar_of(entry("./", mode=0o711, mtime=7, **FOLDER), folder, setuid, symlink)
    )
    assert answer == {"size_bytes": 12288, "inodes": 4}
    file, found = (layer / "bin/su").stat(), (layer / "bin").stat()
    assert (file.st_uid, file.st_gid, file.st_mode) == (7, 3_000_000_000, stat.S_IFREG | 0o6755)
    assert (file.st_mtime_ns, found.st_mtime, layer.stat().st_mtime) == (1_500_000_000, 100, 7)
    assert (found.st_uid, found.st_mode & 0o7777) == (5, 0o1777)
    assert layer.stat().st_mode & 0o7777 == 0o711
    assert (layer / "link").lstat().st_uid == 9
    assert os.getxattr(layer / "bin/su", "security.capability") == capability
    assert set(os.listxattr(layer / "bin/su")) == {"security.capability", "user.colour"}


def test_device_nodes_and_pipes_are_made(layer: Path) -> None:
    null = entry("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666, gid=5)
    disk = entry("disk", type=tarfile.BLKTYPE, devmajor=7, devminor=300, mode=0o600)
    unpack(layer, tar_of(null, disk, entry("pipe", type=tarfile.FIFOTYPE, mode=0o622)))
    found = {path.name: path.lstat() for path in layer.iterdir()}
    assert found["null"].st_mode == stat.S_IFCHR | 0o666 and found["null"].st_gid == 5
    assert found["null"].st_rdev == os.makedev(1, 3)
    assert found["disk"].st_mode == stat.S_IFBLK | 0o600
    assert found["disk"].st_rdev == os.makedev(7, 300)
    assert found["pipe"].st_mode == stat.S_IFIFO | 0o622


def test_whiteouts_become_the_marks_of_overlay(layer: Path) -> None:
    archive = Layer().whiteout("gone").directory("cleared").opaque("cleared")
    archive.whiteout("cleared/too").file("implied/.wh..wh..opq").file(".wh..wh.plnk/1")
    unpack(layer, archive.tar())
    gone = (layer / "gone").lstat()
    assert stat.S_ISCHR(gone.st_mode) and gone.st_rdev == 0
    for folder in ("cleared", "implied"):
        assert os.getxattr(layer / folder, "trusted.overlay.opaque") == b"y"


def test_a_whiteout_hides_lower_layers_only(layer: Path) -> None:
    """The order of a whiteout and what the same layer has in its place does not matter."""
    archive = Layer().whiteout("file-after").file("file-after", "x")
    archive.file("file-before", "x").whiteout("file-before")
    archive.whiteout("folder-after").directory("folder-after").file("folder-after/a")
    archive.directory("folder-before").file("folder-before/a").whiteout("folder-before")
    unpack(layer, archive.tar())
    assert (layer / "file-after").read_text() == (layer / "file-before").read_text() == "x"
    for folder in ("folder-after", "folder-before"):
        assert os.listdir(layer / folder) == ["a"]
        assert os.getxattr(layer / folder, "trusted.overlay.opaque") == b"y"


def test_a_later_member_replaces_an_earlier_one(layer: Path) -> None:
    archive = Layer().file("a", "first").file("a", "second").directory("d").file("d/x")
    archive.symlink("d", "a").symlink("l", "nowhere").file("l", "own").directory("e", mode=0o700)
    archive.file("e/kept").directory("e", mode=0o755).file("h", "h").file("a2").hardlink("a2", "h")
    unpack(layer, archive.tar())
    assert (layer / "a").read_text() == "second"
    assert os.readlink(layer / "d") == "a"
    assert (layer / "l").read_text() == "own"
    assert (layer / "e").stat().st_mode & 0o7777 == 0o755 and (layer / "e/kept").exists()
    assert (layer / "a2").samefile(layer / "h")


def test_folders_that_are_not_in_the_archive_are_made(layer: Path) -> None:
    unpack(layer, tar_of(link("usr-link", "usr"), entry("usr/lib/a", b"1"), entry("usr-link/b")))
    assert (layer / "usr/b").exists() and (layer / "usr/lib").stat().st_mode & 0o7777 == 0o755


def test_an_archive_without_members_is_an_empty_layer(layer: Path) -> None:
    assert unpack(layer, bytes(10240)) == {"size_bytes": 4096, "inodes": 1}
