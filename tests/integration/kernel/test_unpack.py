# SPDX-License-Identifier: Apache-2.0
"""Layers unpacked by the process itself: what is made, and what hostile archives cannot do."""

import hashlib
import io
import json
import os
import stat
import struct
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from pycri.kernel.trees import measure_tree
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
    assert (answer["size_bytes"], answer["inodes"]) == (12288, 4)
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
    nothing = {"size_bytes": 4096, "inodes": 1, "fingerprint": 0, "claims": "", "tree": ""}
    assert unpack(layer, bytes(10240)) == nothing


@pytest.mark.parametrize(
    "form",
    [
        ["--format=gnu"],
        ["--format=posix", "--sparse-version=0.0"],
        ["--format=posix", "--sparse-version=0.1"],
        ["--format=posix", "--sparse-version=1.0"],
    ],
)
@pytest.mark.parametrize("parts", [0, 1, 4, 5, 40])
def test_sparse_files_of_gnu_tar_keep_their_holes(
    form: list[str], parts: int, layer: Path, tmp_path: Path
) -> None:
    (tmp_path / "tree").mkdir()
    original = tmp_path / "tree" / "sparse"
    with open(original, "wb") as file:
        for number in range(parts):
            file.seek(number * 1_000_000 + 4096)
            file.write(f"part {number}".encode() * 700)
        file.truncate(parts * 1_000_000 + 12_345)
    command = ["tar", *form, "--sparse", "-C", str(tmp_path / "tree"), "-c", "sparse"]
    archive = subprocess.run(command, capture_output=True, check=True).stdout
    unpack(layer, archive)
    assert (layer / "sparse").read_bytes() == original.read_bytes()
    assert (layer / "sparse").stat().st_blocks <= original.stat().st_blocks


def test_what_a_folder_passes_on_does_not_reach_what_the_layer_has_in_it(layer: Path) -> None:
    """The set-group-ID bit gives new files a group, a default access list gives them a list."""
    # acl(5): user::rwx, user:7:rwx, group::rwx, mask::rwx, other::---
    nobody = 2**32 - 1
    entries = (1, 7, nobody), (2, 7, 7), (4, 7, nobody), (16, 7, nobody), (32, 0, nobody)
    acl = b"\2\0\0\0" + b"".join(struct.pack("<HHI", *fields) for fields in entries)
    os.setxattr(layer.parent, "system.posix_acl_default", acl)
    os.chown(layer.parent, 0, 33)
    layer.parent.chmod(0o2755)
    default = entry("d", mode=0o2777, gid=9, **FOLDER)
    default[0].pax_headers = {"SCHILY.xattr.system.posix_acl_default": os.fsdecode(acl)}
    inside = [entry("d/file", b"x"), entry("d/folder", mode=0o750, **FOLDER), link("d/link", "x")]
    unpack(layer, tar_of(default, *inside, entry("top", b"x")))
    for name, mode in {"d/file": 0o644, "d/folder": 0o750, "d/link": 0o777, "top": 0o644}.items():
        found = (layer / name).lstat()
        assert (found.st_gid, found.st_mode & 0o7777) == (0, mode), name
        assert os.listxattr(layer / name, follow_symlinks=False) == [], name
    assert layer.stat().st_gid == 0
    assert ((layer / "d").stat().st_mode & 0o7777, (layer / "d").stat().st_gid) == (0o2777, 9)
    assert os.listxattr(layer / "d") == ["system.posix_acl_default"]


def test_a_folder_that_was_replaced_keeps_its_attributes_from_its_successor(layer: Path) -> None:
    first = entry("d", mode=0o700, uid=7, mtime=5, **FOLDER)
    archive = tar_of(
        first,
        entry("d/old", b"x"),
        link("d", "other"),
        entry("other", mode=0o711, mtime=6, **FOLDER),
        entry("d/new", b"x"),
    )
    unpack(layer, archive)
    found = (layer / "other").stat()
    assert (found.st_mode & 0o7777, found.st_uid, found.st_mtime) == (0o711, 0, 6)
    assert os.listdir(layer / "other") == ["new"]


def test_a_tree_deeper_than_any_stack_is_replaced_and_removed(layer: Path) -> None:
    deep = "/".join(["d"] * 2000)
    unpack(layer, tar_of(entry(deep + "/f", b"x"), entry("d", b"a file")))
    assert (layer / "d").read_text() == "a file"


@pytest.mark.parametrize("damage", ["truncate", "unlink", "chmod", "rename", "extra", "replace"])
def test_the_fingerprint_of_a_layer_tells_of_damage(damage: str, layer: Path) -> None:
    archive = Layer().directory("d").file("d/a", "1").hardlink("d/b", "d/a").symlink("l", "d")
    answer = unpack(layer, archive.whiteout("gone").fifo("f").tar())
    assert measure_tree(str(layer)).fingerprint == answer["fingerprint"]
    match damage:
        case "truncate":
            os.truncate(layer / "d/a", 0)
        case "unlink":
            os.unlink(layer / "d/b")
        case "chmod":
            os.chmod(layer / "d", 0o700)
        case "rename":
            os.rename(layer / "l", layer / "m")
        case "extra":
            os.mkdir(layer / "lost+found")
        case "replace":
            os.unlink(layer / "gone")
            (layer / "gone").write_text("")
    assert measure_tree(str(layer)).fingerprint != answer["fingerprint"]


def test_a_hard_link_to_a_file_of_another_layer_is_left_to_those_who_know_it(layer: Path) -> None:
    """`test_claims.py` tells what becomes of it."""
    answer = unpack(layer, tar_of(entry("d", **FOLDER), hard_link("d/new", "d/below")))
    assert answer["claims"] == "links" and os.listdir(layer / "d") == []


def test_a_file_that_was_linked_above_its_layer_comes_with_the_link(layer: Path) -> None:
    """What overlay copied up for the new name is in the archive, whole, under the old one."""
    archive = Layer().directory("d").file("d/below", "copied up", mode=0o4755)
    unpack(layer, archive.hardlink("d/new", "d/below").tar())
    assert (layer / "d/new").samefile(layer / "d/below")
    assert (layer / "d/new").stat().st_mode & 0o7777 == 0o4755
