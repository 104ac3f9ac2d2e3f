# SPDX-License-Identifier: Apache-2.0
"""Labels of files, which any kernel keeps, with SELinux or without."""

import os
import subprocess
from pathlib import Path

from pycri.kernel import lsm

LABEL = "system_u:object_r:container_file_t:s0"


def label_of(path: Path) -> bytes:
    try:
        return os.getxattr(path, "security.selinux", follow_symlinks=False).rstrip(b"\0")
    except OSError:
        return b""


def test_all_in_a_folder_gets_the_label_and_nothing_that_a_link_leads_to(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    outside.write_text("")
    (folder / "deep").mkdir(parents=True)
    (folder / "deep/file").write_text("")
    (folder / "deep/link").symlink_to(outside)
    (folder / "dangling").symlink_to("nowhere")
    lsm.relabel(str(folder), LABEL)
    for name in (".", "deep", "deep/file", "deep/link", "dangling"):
        assert label_of(folder / name) == LABEL.encode(), name
    assert label_of(outside) == b""


def test_a_single_file_gets_the_label(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    lsm.relabel(str(tmp_path / "file"), LABEL)
    assert label_of(tmp_path / "file") == LABEL.encode()


def test_a_file_system_without_labels_is_left_alone(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "ramfs", "ramfs", tmp_path], check=True)
    try:
        (tmp_path / "file").write_text("")
        lsm.relabel(str(tmp_path), LABEL)
        assert label_of(tmp_path / "file") == b""
    finally:
        subprocess.run(["umount", tmp_path], check=True)
