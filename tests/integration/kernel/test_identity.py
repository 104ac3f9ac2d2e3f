# SPDX-License-Identifier: Apache-2.0
"""Files of images as layers show them: the daemon's reading beside the kernel's overlay."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pycri.errors import InvalidRequest
from pycri.kernel.syscalls import MNT_DETACH, MountFlag, mount, umount2
from pycri.pods.identity import FILE_LIMIT, read_file

Make = Callable[[Path], None]


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def white_out(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mknod(path, 0o20000, os.makedev(0, 0))


def make_opaque(path: Path, value: bytes = b"y") -> None:
    path.mkdir(parents=True, exist_ok=True)
    os.setxattr(path, "trusted.overlay.opaque", value)


def nothing(_: Path) -> None:
    return


def replaced(layer: Path) -> None:
    write(layer / "etc/passwd", "upper")


def hidden(layer: Path) -> None:
    white_out(layer / "etc/passwd")


def folder_hidden(layer: Path) -> None:
    white_out(layer / "etc")


def opaque(layer: Path) -> None:
    make_opaque(layer / "etc")


def opaque_with_another_file(layer: Path) -> None:
    make_opaque(layer / "etc")
    write(layer / "etc/group", "upper")


def opaque_and_replaced(layer: Path) -> None:
    make_opaque(layer / "etc")
    replaced(layer)


def marked_as_not_opaque(layer: Path) -> None:
    make_opaque(layer / "etc", b"n")


def folder_merged(layer: Path) -> None:
    write(layer / "etc/group", "upper")


def folder_replaced_by_a_file(layer: Path) -> None:
    write(layer / "etc", "upper")


def file_replaced_by_a_folder(layer: Path) -> None:
    (layer / "etc/passwd").mkdir(parents=True)


def link_that_loops(layer: Path) -> None:
    (layer / "etc").mkdir()
    (layer / "etc/passwd").symlink_to("passwd")


def link_within(layer: Path) -> None:
    write(layer / "usr/passwd", "linked")
    (layer / "etc").mkdir()
    (layer / "etc/passwd").symlink_to("../usr/passwd")


EMPTY = ""
UPPER_LAYERS: list[tuple[Make, str]] = [
    (nothing, "lower"),
    (folder_merged, "lower"),
    (marked_as_not_opaque, "lower"),
    (replaced, "upper"),
    (opaque_and_replaced, "upper"),
    (link_within, "linked"),
    (hidden, EMPTY),
    (folder_hidden, EMPTY),
    (opaque, EMPTY),
    (opaque_with_another_file, EMPTY),
    (folder_replaced_by_a_file, EMPTY),
    (file_replaced_by_a_folder, EMPTY),
    (link_that_loops, EMPTY),
]


@pytest.fixture
def layers(tmp_path: Path) -> tuple[str, ...]:
    """Three layers, the uppermost first; the lowest has the file, the one between nothing."""
    folders = [tmp_path / name for name in ("upper", "between", "lower")]
    for folder in folders:
        folder.mkdir()
    write(folders[-1] / "etc/passwd", "lower")
    return tuple(map(str, folders))


@contextmanager
def overlay(layers: tuple[str, ...], target: Path) -> Iterator[Path]:
    target.mkdir()
    mount("overlay", str(target), "overlay", MountFlag.RDONLY, f"lowerdir={':'.join(layers)}")
    try:
        yield target
    finally:
        umount2(str(target), MNT_DETACH)


@pytest.mark.parametrize(
    ("make", "expected"), UPPER_LAYERS, ids=lambda item: getattr(item, "__name__", "")
)
def test_a_file_reads_as_the_overlay_shows_it(
    make: Make, expected: str, layers: tuple[str, ...], tmp_path: Path
) -> None:
    make(Path(layers[0]))
    try:
        content = read_file(layers, "etc/passwd").decode()
    except InvalidRequest:
        # What is no file, and not absent either, is refused by name.
        content = EMPTY
    assert content == expected
    with overlay(layers, tmp_path / "merged") as merged:
        try:
            shown = (merged / "etc/passwd").read_text()
        except OSError:
            shown = EMPTY
    assert shown == expected


def test_a_file_above_what_hides_it_is_read(layers: tuple[str, ...]) -> None:
    hidden(Path(layers[1]))
    assert read_file(layers, "etc/passwd") == b""
    replaced(Path(layers[0]))
    assert read_file(layers, "etc/passwd") == b"upper"


def test_a_link_out_of_the_layer_stays_in_it(layers: tuple[str, ...]) -> None:
    etc = Path(layers[0], "etc")
    etc.mkdir()
    (etc / "passwd").symlink_to("../../../../../../../../etc/hostname")
    write(Path(layers[0], "etc/hostname"), "the layer's")
    assert read_file(layers, "etc/passwd") == b"the layer's"


def test_a_fifo_or_a_device_in_its_place_does_not_block(layers: tuple[str, ...]) -> None:
    etc = Path(layers[0], "etc")
    etc.mkdir()
    os.mkfifo(etc / "passwd")
    with pytest.raises(InvalidRequest, match="/etc/passwd"):
        read_file(layers, "etc/passwd")
    (etc / "passwd").unlink()
    os.mknod(etc / "passwd", 0o20666, os.makedev(1, 5))
    with pytest.raises(InvalidRequest, match="/etc/passwd"):
        read_file(layers, "etc/passwd")


def test_a_file_too_large_is_refused_by_name(layers: tuple[str, ...]) -> None:
    path = Path(layers[0], "etc/passwd")
    write(path, "x" * FILE_LIMIT)
    assert len(read_file(layers, "etc/passwd")) == FILE_LIMIT
    write(path, "x" * (FILE_LIMIT + 1))
    with pytest.raises(InvalidRequest, match="/etc/passwd"):
        read_file(layers, "etc/passwd")
