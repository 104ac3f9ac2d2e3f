# SPDX-License-Identifier: Apache-2.0
"""Walks of writable layers: what is counted, and that no tree leads one astray."""

import os
from pathlib import Path

import pytest

from pycri.pods import usage
from pycri.pods.usage import Walked, walk


def count(folder: Path) -> Walked:
    return walk(str(folder), lambda: None)


def test_bytes_on_disk_and_inodes_are_those_of_du(tmp_path: Path) -> None:
    empty = count(tmp_path)
    (tmp_path / "data").write_bytes(os.urandom(100_000))
    os.link(tmp_path / "data", tmp_path / "again")
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(1 << 40)
    (tmp_path / "sub").mkdir()
    os.mkfifo(tmp_path / "sub/pipe")
    found = count(tmp_path)
    assert found.inodes - empty.inodes == 4
    assert 100_000 <= found.used_bytes - empty.used_bytes < 130_000
    assert found.whole


def test_links_are_counted_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "layer").mkdir()
    for number, target in enumerate(("/", "..", "loop", "/proc/self/root")):
        (tmp_path / f"layer/{number}").symlink_to(target)
    assert count(tmp_path / "layer").inodes == 5


def test_a_tree_deeper_than_a_path_may_be_long_is_counted_to_its_end(tmp_path: Path) -> None:
    depth, name = 400, "d" * 40
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    found = count(tmp_path)
    assert (found.inodes, found.whole) == (depth + 1, True)


def test_a_bound_cuts_a_walk_short_and_what_was_found_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "MOST_PENDING", 5)
    for number in range(10):
        (tmp_path / str(number)).mkdir()
    found = count(tmp_path)
    assert (found.inodes, found.whole) == (11, False)


def test_a_walk_rests_after_every_few_entries(tmp_path: Path) -> None:
    rests = []
    for number in range(3 * usage.STRIDE):
        (tmp_path / str(number)).touch()
    walk(str(tmp_path), lambda: rests.append(1))
    assert len(rests) == 3


def test_a_folder_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        count(tmp_path / "absent")
