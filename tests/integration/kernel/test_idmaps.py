# SPDX-License-Identifier: Apache-2.0
"""User namespaces and id-mapped mounts, each in a forked child with mounts of its own."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pycri.kernel import idmaps, mounts, process
from pycri.kernel.fds import close_all
from pycri.kernel.syscalls import Clone, MountFlag, mount, sethostname, umount2, unshare
from pycri.model.security import IdMapping, IdMappings

HOST_ID, LENGTH = 400_000, 1000
LINES = (IdMapping(host_id=HOST_ID, container_id=0, length=LENGTH),)
IDS = IdMappings(uids=LINES, gids=LINES)
CAP_NET_BIND_SERVICE_V2 = bytes.fromhex("0100000200040000000000000000000000000000")
"""security.capability: permitted and effective CAP_NET_BIND_SERVICE, of no namespace's root."""


def in_child(work: Callable[[], Any]) -> Any:
    """Run `work` in a forked child and return what it returns, by way of JSON."""
    reader, writer = os.pipe()

    def child() -> None:
        try:
            answer = {"value": work()}
        except BaseException as error:  # noqa: BLE001 - told to the parent, which fails
            answer = {"error": repr(error)}
        os.write(writer, json.dumps(answer).encode())

    pid = process.fork(child)
    os.close(writer)
    with open(reader, "rb") as file:
        answer = json.loads(file.read() or b'{"error": "killed"}')
    os.waitpid(pid, 0)
    assert "error" not in answer, answer
    return answer["value"]


def enter_mapped_overlay(folder: Path, layers: list[str], *, append: bool) -> int:
    """Make an overlay of the folders in `folder`, make it the caller's root, and return the
    descriptor of the user namespace."""
    userns_fd = idmaps.new_user_namespace(IDS)
    trees = []
    for name in layers:
        trees.append(mounts.clone_tree(str(folder / name), recursive=False))
        idmaps.set_idmap(trees[-1], userns_fd)
    writable = mounts.clone_tree(str(folder / "writable"), recursive=False)
    mounts.enter_empty_root(str(folder))
    mounts.attach_at(mounts.new_filesystem("tmpfs"), "/root")
    os.mkdir("/root/place")
    os.mkdir("/root/root")
    tree = idmaps.new_mapped_overlay(trees, writable, "/root/place", append=append)
    mounts.attach_at(tree, "/root/root")
    idmaps.act_as(HOST_ID, HOST_ID)
    mounts.pivot_into(os.open("/root/root", os.O_PATH | os.O_DIRECTORY))
    return userns_fd


@pytest.fixture
def layers(tmp_path: Path) -> Path:
    for name in ("upper-layer", "lower-layer", "writable/upper", "writable/work"):
        (tmp_path / name).mkdir(parents=True)
    os.chown(tmp_path / "writable" / "upper", HOST_ID, HOST_ID)
    (tmp_path / "lower-layer" / "file").write_text("lower")
    (tmp_path / "upper-layer" / "other").write_text("upper")
    os.chown(tmp_path / "upper-layer" / "other", 7, 8)
    return tmp_path


@pytest.mark.parametrize("append", [True, False], ids=["lowerdir+", "lowerdir="])
def test_an_overlay_of_mapped_layers_shows_and_makes_mapped_files(
    layers: Path, append: bool
) -> None:
    def work() -> list[list[int]]:
        userns_fd = enter_mapped_overlay(layers, ["upper-layer", "lower-layer"], append=append)
        os.mkdir("/by-host")
        idmaps.enter(userns_fd)
        os.mkdir("/by-root")
        with open("/file", "a") as file:
            file.write(", changed")
        return [
            [os.stat(name).st_uid, os.stat(name).st_gid]
            for name in ("/", "/file", "/other", "/by-host", "/by-root")
        ]

    assert in_child(work) == [[0, 0], [0, 0], [7, 8], [0, 0], [0, 0]]
    upper = layers / "writable" / "upper"
    assert {path.name for path in upper.iterdir()} == {"file", "by-host", "by-root"}
    assert {path.stat().st_uid for path in upper.iterdir()} == {HOST_ID}
    assert (upper / "file").read_text() == "lower, changed"
    assert (layers / "lower-layer" / "file").read_text() == "lower"
    assert (layers / "lower-layer" / "file").stat().st_uid == 0


def test_file_capabilities_of_a_layer_count_in_the_user_namespace(layers: Path) -> None:
    program = layers / "lower-layer" / "busybox"
    program.write_bytes(Path("/bin/busybox").read_bytes())
    program.chmod(0o755)
    os.setxattr(program, "security.capability", CAP_NET_BIND_SERVICE_V2)

    def work() -> str:
        reader, writer = os.pipe()

        def executes() -> None:
            enter = enter_mapped_overlay(layers, ["lower-layer", "upper-layer"], append=True)
            os.mkdir("/proc")
            tree = mounts.new_filesystem("proc")
            mounts.attach_at(tree, "/proc")
            idmaps.enter(enter)
            os.setresgid(5, 5, 5)
            os.setresuid(5, 5, 5)
            os.dup2(writer, 1)
            os.execv("/busybox", ["busybox", "grep", "CapEff", "/proc/self/status"])

        pid = process.fork(executes)
        os.close(writer)
        os.waitpid(pid, 0)
        with open(reader) as file:
            return file.read()

    assert int(in_child(work).split()[1], 16) == 1 << 10


def test_rights_stay_when_files_are_made_as_another_user(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)

    def work() -> int:
        idmaps.act_as(HOST_ID, HOST_ID + 1)
        (closed / "file").touch()
        os.mknod(closed / "device", 0o20600, os.makedev(1, 3))
        return os.geteuid()

    assert in_child(work) == 0
    for name in ("file", "device"):
        status = (closed / name).stat()
        assert (status.st_uid, status.st_gid) == (HOST_ID, HOST_ID + 1)


def test_rights_on_the_host_end_where_the_user_namespace_begins(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)

    def work() -> list[int]:
        idmaps.act_as(HOST_ID, HOST_ID)
        fd = idmaps.new_user_namespace(IDS)
        idmaps.enter(fd)
        failures = []
        for forbidden in (
            lambda: os.listdir(closed),
            lambda: os.chown("/", 0, 0),
            lambda: umount2("/proc"),
            lambda: sethostname("never"),
        ):
            try:
                forbidden()
            except OSError as error:
                failures.append(error.errno or 0)
        return [os.getuid(), os.getgid(), len(os.getgroups()), *failures]

    assert in_child(work) == [0, 0, 0, errno.EACCES, errno.EPERM, errno.EPERM, errno.EPERM]


def test_what_is_copied_into_the_user_namespace_is_locked(tmp_path: Path) -> None:
    def work() -> list[int]:
        userns_fd = idmaps.new_user_namespace(IDS)
        tree = mounts.clone_tree(str(tmp_path), recursive=False)
        mounts.set_attributes(tree, ("ro",))
        mounts.enter_empty_root(str(tmp_path))
        mounts.attach_at(tree, "/root")
        idmaps.enter(userns_fd)
        unshare(Clone.NEWNS)
        failures = []
        remount = MountFlag.BIND | MountFlag(32)  # MS_REMOUNT
        undoings: tuple[Callable[[], None], ...] = (
            lambda: umount2("/root"),
            lambda: mount("", "/root", "", remount),
        )
        for undo in undoings:
            try:
                undo()
            except OSError as error:
                failures.append(error.errno or 0)
        return failures

    assert in_child(work) == [errno.EINVAL, errno.EPERM]


def test_a_namespace_that_cannot_be_made_is_an_error_with_its_number() -> None:
    """A line may not be mapped twice: the kernel's EINVAL comes to the caller."""
    twice = IdMappings(uids=LINES * 2, gids=LINES)

    def work() -> int:
        try:
            idmaps.new_user_namespace(twice)
        except OSError as error:
            return error.errno or 0
        return 0

    assert in_child(work) == errno.EINVAL


def test_a_file_system_that_cannot_be_mapped_says_einval() -> None:
    def work() -> int:
        userns_fd = idmaps.new_user_namespace(IDS)
        tree = mounts.clone_tree("/proc", recursive=False)
        try:
            idmaps.set_idmap(tree, userns_fd)
        except OSError as error:
            return error.errno or 0
        finally:
            close_all((tree, userns_fd))
        return 0

    assert in_child(work) == errno.EINVAL
