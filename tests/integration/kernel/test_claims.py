# SPDX-License-Identifier: Apache-2.0
"""What layers claim of those beneath them: the merged tree is what tar makes of one folder.

Every layer is unpacked alone, then what it claims is settled, bottom first, by the processes that a
pull starts; an overlay of all is compared with the archives extracted in turn by GNU tar.
"""

import hashlib
import json
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pycri.errors import CorruptImage
from pycri.images.claims import Claims, claims_path, read_claims
from pycri.images.pack import pack
from pycri.images.settle import settle
from tests.world import session
from tests.world.oci import Layer


def program(name: str, *arguments: str, data: bytes = b"") -> dict[str, Any]:
    """Run a program of the image store; return what it says."""
    command = [sys.executable, "-X", "utf8", "-m", f"pycri.images.{name}", *arguments]
    root = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    result = subprocess.run(
        command, input=data, capture_output=True, env=session.environment() | root, check=True
    )
    assert result.stderr == b""
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


class Stack:
    """Layers unpacked and settled in `folder`, as the store does it. paths: topmost first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths: tuple[str, ...] = ()
        self.answers: list[dict[str, Any]] = []

    def add(self, archive: bytes) -> dict[str, Any]:
        """Put a layer on top, settled if it claims anything; return the last answer."""
        number = len(self.answers)
        layer, recipe = self.folder / f"layer{number}", self.recipe(number)
        layer.mkdir()
        digest = "sha256:" + hashlib.sha256(archive).hexdigest()
        answer = program("unpack", str(layer), digest, digest, recipe, data=archive)
        self.answers.append(answer)
        if os.path.exists(recipe):
            assert pack(str(layer), recipe, digest, None) == len(archive)
        assert os.path.exists(claims_path(recipe)) == bool(answer["claims"])
        if answer["claims"]:
            settled = self.folder / f"settled{number}"
            settled.mkdir()
            answer = program("settle", str(settled), claims_path(recipe), str(layer), *self.paths)
            self.paths = (str(settled), str(layer), *self.paths)
        else:
            self.paths = (str(layer), *self.paths)
        return answer

    def recipe(self, number: int) -> str:
        return str(self.folder / f"recipe{number}")

    @contextmanager
    def mounted(self) -> Iterator[Path]:
        """Mount it as a container's root is."""
        root = self.folder / "root"
        root.mkdir()
        (self.folder / "empty").mkdir()
        lower = ":".join((*self.paths, str(self.folder / "empty")))
        subprocess.run(
            ["mount", "-t", "overlay", "overlay", "-o", f"lowerdir={lower}", root], check=True
        )
        try:
            yield root
        finally:
            subprocess.run(["umount", root], check=True)


@pytest.fixture
def layers(tmp_path: Path) -> Stack:
    return Stack(tmp_path)


def extracted(archives: list[bytes], folder: Path) -> Path:
    """Extract archives in turn into one folder, by GNU tar."""
    folder.mkdir()
    command = ["tar", "-x", "-p", "--same-owner", "--numeric-owner", "--xattrs"]
    for archive in archives:
        subprocess.run(
            [*command, "--xattrs-include=*", "-C", str(folder)], input=archive, check=True
        )
    return folder


def described(root: Path) -> dict[str, tuple[object, ...]]:
    """Return all that one sees of each file below a folder, but the times of folders."""
    tree: dict[str, tuple[object, ...]] = {}
    names: dict[int, list[str]] = {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            names.setdefault(os.lstat(path).st_ino, []).append(os.path.relpath(path, root))
    for paths in names.values():
        path = os.path.join(root, paths[0])
        found = os.lstat(path)
        content: object = None
        if stat.S_ISREG(found.st_mode):
            content = Path(path).read_bytes()
        elif stat.S_ISLNK(found.st_mode):
            content = os.readlink(path)
        time_ns = None if stat.S_ISDIR(found.st_mode) else found.st_mtime_ns
        attributes = {
            name: os.getxattr(path, name, follow_symlinks=False)
            for name in os.listxattr(path, follow_symlinks=False)
        }
        for each in paths:
            tree[each] = (
                found.st_mode, found.st_uid, found.st_gid, time_ns, content, attributes,
                tuple(sorted(paths)),
            )  # fmt: skip
    return tree


def base() -> Layer:
    """Return a layer whose folders and files have something to lose."""
    layer = Layer().directory("data", mode=0o2750, uid=7, gid=8)
    layer.directory("data/deep", mode=0o1777).directory("data/deep/er", mode=0o700, uid=9)
    layer.file("data/file", "from below", mode=0o640, uid=5, gid=6, xattrs={"user.colour": "red"})
    layer.file("data/deep/er/tool", b"\x7fELF", mode=0o4755)
    layer.directory("usr").directory("usr/lib").file("usr/lib/so", "library")
    layer.symlink("lib", "usr/lib").symlink("data/pointer", "file").fifo("data/pipe")
    return layer


MERGES: dict[str, Callable[[], list[Layer]]] = {
    "a link to a file beneath": lambda: [base(), Layer().hardlink("data/new", "data/file")],
    "a link in the root": lambda: [base(), Layer().hardlink("new", "data/file")],
    "a link to a set-user-id program": lambda: [
        base(), Layer().directory("bin").hardlink("bin/tool", "data/deep/er/tool")
    ],
    "a link to a symbolic link": lambda: [base(), Layer().hardlink("new", "data/pointer")],
    "a link to a pipe": lambda: [base(), Layer().hardlink("new", "data/pipe")],
    "a link through a link beneath": lambda: [base(), Layer().hardlink("new", "lib/so")],
    "a link through a link of its own": lambda: [
        base(), Layer().symlink("way", "usr/lib").hardlink("new", "way/so")
    ],
    "links to a link to a file beneath": lambda: [
        base(), Layer().hardlink("one", "data/file").hardlink("two", "one").hardlink("d/3", "two")
    ],
    "a link and files beside it": lambda: [
        base(), Layer().file("data/deep/own").hardlink("data/deep/new", "data/file")
    ],
    "a link over a file beneath": lambda: [base(), Layer().hardlink("usr/lib/so", "data/file")],
    "a link over a file of its own": lambda: [
        base(), Layer().file("new", "own").hardlink("new", "data/file")
    ],
    "a file over a link": lambda: [
        base(), Layer().hardlink("new", "data/file").file("new", "own", mode=0o600)
    ],
    "a folder over a link": lambda: [
        base(), Layer().hardlink("new", "data/file").directory("new").file("new/own")
    ],
    "a link whose target the layer replaces later": lambda: [
        base(), Layer().hardlink("new", "data/file").file("data/file", "replaced")
    ],
    "a link in a folder by a link": lambda: [
        base(), Layer().directory("real").symlink("way", "real").hardlink("way/new", "data/file")
    ],
    "a link to what the layer between linked": lambda: [
        base(), Layer().hardlink("one", "data/file"), Layer().hardlink("two", "one"),
    ],
    "a link to what a layer between replaced": lambda: [
        base(), Layer().file("data/file", "between"), Layer().hardlink("new", "data/file"),
    ],
    "folders that are not described": lambda: [base(), Layer().file("data/deep/er/own", "x")],
    "folders that are not described, twice": lambda: [
        base(), Layer().file("data/deep/one"), Layer().file("data/deep/er/two"),
    ],
    "folders that are described between": lambda: [
        base(), Layer().directory("data", mode=0o711, uid=1), Layer().file("data/deep/own"),
    ],
    "folders that nobody describes": lambda: [base(), Layer().file("a/b/c/own").file("usr/x/y")],
    "folders that are described later": lambda: [
        base(), Layer().file("data/own").directory("data", mode=0o711, uid=3)
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", MERGES)
def test_layers_above_one_another_are_what_tar_makes_of_one_folder(
    name: str, layers: Stack, tmp_path: Path
) -> None:
    archives = [layer.tar() for layer in MERGES[name]()]
    for archive in archives:
        assert "kind" not in layers.add(archive)
    expected = described(extracted(archives, tmp_path / "tar"))
    with layers.mounted() as root:
        found = described(root)
    assert found == expected


def test_only_layers_that_claim_something_are_settled(layers: Stack) -> None:
    layers.add(base().tar())
    layers.add(Layer().directory("data").file("data/a").hardlink("data/b", "data/a").tar())
    assert [answer["claims"] for answer in layers.answers] == ["", ""]


def test_a_settlement_holds_no_content_of_its_own(layers: Stack) -> None:
    layers.add(base().tar())
    answer = layers.add(Layer().hardlink("data/new", "data/file").tar())
    file = Path(layers.paths[-1], "data/file")
    assert Path(layers.paths[0], "data/new").samefile(file)
    assert (answer["size_bytes"], answer["inodes"]) == (4096, 1)


def test_nothing_is_settled_for_a_folder_that_is_as_it_was(layers: Stack) -> None:
    layers.add(Layer().file("d/below").tar())
    os.utime(Path(layers.paths[-1], "d"), ns=(5, 5))
    own = Layer().file("d/own").tar()
    answer = layers.add(own)
    with layers.mounted() as root:
        assert (root / "d").stat().st_mtime_ns == 5
    assert answer["inodes"] == 1
    again = layers.folder / "again"
    again.mkdir()
    claims = claims_path(layers.recipe(1))
    os.utime(Path(layers.paths[1], "d"), ns=(5, 5))
    assert settle(str(again), claims, layers.paths[1:]).fingerprint == 0
    assert os.listdir(again) == []


@pytest.mark.parametrize("mark_first", [True, False])
def test_a_folder_that_hides_what_is_beneath_is_still_that_folder(
    mark_first: bool, layers: Stack
) -> None:
    layers.add(base().tar())
    own = Layer()
    own = own.opaque("data").file("data/own") if mark_first else own.file("data/own").opaque("data")
    layers.add(own.tar())
    with layers.mounted() as root:
        found = (root / "data").stat()
        assert os.listdir(root / "data") == ["own"]
        assert (found.st_mode & 0o7777, found.st_uid, found.st_gid) == (0o2750, 7, 8)


def test_what_a_default_access_list_says_of_a_folder_stays_there(layers: Stack) -> None:
    layers.add(base().tar())
    nobody = 2**32 - 1
    entries = (1, 7, nobody), (2, 7, 77), (4, 7, nobody), (16, 7, nobody), (32, 0, nobody)
    acl = b"\2\0\0\0" + b"".join(struct.pack("<HHI", *fields) for fields in entries)
    os.setxattr(Path(layers.paths[0], "data"), "system.posix_acl_default", acl)
    layers.add(Layer().file("data/own").hardlink("data/deep/new", "data/file").tar())
    with layers.mounted() as root:
        assert "system.posix_acl_default" in os.listxattr(root / "data")
        assert os.listxattr(root / "data/own") == []
        assert os.listxattr(root / "data/deep") == []


def test_a_link_to_what_the_same_layer_removes_afterwards_keeps_the_file(layers: Stack) -> None:
    """As a layer may say that a file was renamed."""
    layers.add(base().tar())
    layers.add(Layer().hardlink("data/new", "data/file").whiteout("data/file").tar())
    with layers.mounted() as root:
        assert (root / "data/new").read_text() == "from below"
        assert not (root / "data/file").exists()


def test_a_whiteout_of_a_link_is_about_what_is_beneath(layers: Stack) -> None:
    layers.add(base().tar())
    layers.add(Layer().whiteout("usr/lib/so").hardlink("usr/lib/so", "data/file").tar())
    layers.add(Layer().hardlink("data/pipe", "data/file").whiteout("data/pipe").tar())
    with layers.mounted() as root:
        assert (root / "usr/lib/so").read_text() == (root / "data/pipe").read_text() == "from below"


HOSTILE: dict[str, tuple[list[Layer], str]] = {
    "out of the root": (
        [Layer().symlink("up", "../../.."), Layer().hardlink("new", "up/etc/shadow")],
        "leads nowhere",
    ),
    "by an absolute link": (
        [Layer().symlink("up", "/etc"), Layer().hardlink("new", "up/passwd")],
        "leads nowhere",
    ),
    "a folder": ([base(), Layer().hardlink("new", "data")], "it is a folder"),
    "removed beneath": (
        [base(), Layer().whiteout("data/file"), Layer().hardlink("new", "data/file")],
        "no layer beneath has it",
    ),
    "hidden beneath": (
        [base(), Layer().directory("data").opaque("data"), Layer().hardlink("new", "data/file")],
        "no layer beneath has it",
    ),
    "below a file": ([base(), Layer().hardlink("new", "data/file/x")], "Not a directory"),
    "a loop": ([Layer().symlink("a", "b").symlink("b", "a"), Layer().hardlink("n", "a/x")], "Too"),
    "nothing": ([base(), Layer().hardlink("new", "data/nothing")], "no layer beneath has it"),
    "itself": ([base(), Layer().hardlink("new", "new")], "no layer beneath has it"),
    "nothing beneath": ([Layer().hardlink("new", "data/file")], "no layer beneath has it"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_link_that_leads_nowhere_is_refused_by_its_names(name: str, layers: Stack) -> None:
    stack, words = HOSTILE[name]
    answers = [layers.add(layer.tar()) for layer in stack]
    assert [answer.get("kind") for answer in answers] == [None] * (len(stack) - 1) + ["corrupt"]
    assert "is a hard link to" in answers[-1]["message"] and words in answers[-1]["message"]


@pytest.mark.parametrize(
    "own",
    [
        Layer().whiteout("data/file").hardlink("new", "data/file"),
        Layer().whiteout("data").hardlink("new", "data/file"),
        Layer().hardlink("new", "../data/file"),
    ],
)
def test_a_link_that_cannot_be_meant_is_refused_at_once(own: Layer, tmp_path: Path) -> None:
    archive = own.tar()
    digest = "sha256:" + hashlib.sha256(archive).hexdigest()
    (tmp_path / "layer").mkdir()
    recipe = str(tmp_path / "recipe")
    answer = program("unpack", str(tmp_path / "layer"), digest, digest, recipe, data=archive)
    assert answer["kind"] == "corrupt" and "'new'" in answer["message"] + repr("new")


def test_claims_are_read_as_they_were_written_or_not_at_all(layers: Stack) -> None:
    odd = "d/nicht-\udce4-utf8\nline"
    layers.add(Layer().hardlink(odd, "a/../b".replace("../", "")).file("e/f").tar())
    path = claims_path(layers.recipe(0))
    assert read_claims(path) == Claims({odd: "a/b"}, ("d", "e"))
    for size in (0, 5, os.path.getsize(path) - 1):
        os.truncate(path, size)
        with pytest.raises(CorruptImage, match="cannot be read"):
            read_claims(path)
    os.unlink(path)
    with pytest.raises(CorruptImage, match="No such file"):
        read_claims(path)
