# SPDX-License-Identifier: Apache-2.0
"""Mounts that are taken away."""

import errno
from pathlib import Path

import pytest

from pycri.kernel.mounts import unmount_all
from pycri.kernel.syscalls import MountFlag, mount


def mount_tmpfs(at: Path) -> None:
    mount("test", str(at), "tmpfs", MountFlag(0))


def test_mounts_on_top_of_each_other_go_with_all_beneath_them(tmp_path: Path) -> None:
    mount_tmpfs(tmp_path)
    mount_tmpfs(tmp_path)
    inner = tmp_path / "inner"
    inner.mkdir()
    mount_tmpfs(inner)
    unmount_all(str(tmp_path))
    assert not tmp_path.is_mount()
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_unmount_is_fine(tmp_path: Path) -> None:
    unmount_all(str(tmp_path))
    unmount_all(str(tmp_path / "absent"))


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.mkdir()
    link.symlink_to(target)
    mount_tmpfs(target)
    unmount_all(str(link))
    assert target.is_mount()
    unmount_all(str(target))


def test_other_errors_are_told(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(OSError, match="Not a directory") as raised:
        unmount_all(str(file / "beneath"))
    assert raised.value.errno == errno.ENOTDIR
