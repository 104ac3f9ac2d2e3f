# SPDX-License-Identifier: Apache-2.0
"""Overlays by either way of making them, on whatever kernel knows the way."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pycri.kernel import mounts
from pycri.kernel.features import probe_host
from pycri.kernel.process import fork

MANY = 120


def make_layers(folder: Path) -> tuple[str, ...]:
    """Make folders with names as long as a digest, each with a file of its number."""
    layers = []
    for number in range(MANY):
        layer = folder / f"{number:064x}"
        layer.mkdir()
        (layer / f"file-{number}").touch()
        (layer / "number").write_text(str(number))
        layers.append(str(layer))
    return tuple(layers)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[tuple[str, ...], str, str]:
    """Layers, upper and work folder of an overlay."""
    for name in ("upper", "work"):
        (tmp_path / name).mkdir()
    return make_layers(tmp_path), str(tmp_path / "upper"), str(tmp_path / "work")


def run_child(child: Callable[[], None]) -> None:
    """Run `child` in a process of its own: what it does to its namespaces stays there."""
    _, status = os.waitpid(fork(child), 0)
    assert status == 0


def check(tree_fd: int) -> None:
    """Close a detached overlay that has the files of all layers, and the first one on top."""
    assert len(os.listdir(f"/proc/self/fd/{tree_fd}")) == MANY + 1
    number_fd = os.open("number", os.O_RDONLY, dir_fd=tree_fd)
    assert os.read(number_fd, 10) == b"0"
    os.close(number_fd)
    os.close(tree_fd)


@pytest.mark.skipif(not probe_host().overlay_lowerdir_append, reason="needs Linux 6.8")
def test_layers_are_appended_one_by_one(folders: tuple[tuple[str, ...], str, str]) -> None:
    run_child(lambda: check(mounts.new_overlay(*folders)))


def test_by_path_there_may_be_more_layers_than_names_fit_on_a_page(
    folders: tuple[tuple[str, ...], str, str],
) -> None:
    """mount(2) takes no more than a page of options."""
    layers, upper, work = folders
    run_child(lambda: check(mounts.new_overlay_by_path(layers, upper, work, upper)))


def test_by_path_leaves_the_caller_where_it_was(
    folders: tuple[tuple[str, ...], str, str],
) -> None:
    """Sources cloned afterwards in another mount namespace would get no propagation."""
    layers, upper, work = folders

    def child() -> None:
        before = os.readlink("/proc/self/ns/mnt"), os.listdir("/proc/self/fd")
        os.close(mounts.new_overlay_by_path(layers, upper, work, upper))
        assert (os.readlink("/proc/self/ns/mnt"), os.listdir("/proc/self/fd")) == before

    run_child(child)
