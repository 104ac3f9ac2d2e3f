# SPDX-License-Identifier: Apache-2.0
"""Files of stacked layers, read without a mount, against what overlayfs itself shows."""

import os
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from pycri.images.merged import read_merged_file

LIMIT = 1 << 16
Tree = dict[str, str | None]
"""A path to its content: text; "-> TARGET" a link; "dir"; "opaque"; None a whiteout; "fifo"."""


def make_layers(folder: Path, trees: list[Tree]) -> tuple[str, ...]:
    """Make the layers, given topmost first."""
    paths = []
    for number, tree in enumerate(trees):
        layer = folder / f"layer{number}"
        layer.mkdir()
        paths.append(str(layer))
        for name, content in tree.items():
            path = layer / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                os.mknod(path, 0o020000, 0)
            elif content in ("dir", "opaque"):
                path.mkdir(exist_ok=True)
                if content == "opaque":
                    os.setxattr(path, "trusted.overlay.opaque", b"y")
            elif content == "fifo":
                os.mkfifo(path)
            elif content.startswith("-> "):
                path.symlink_to(content[3:])
            else:
                path.write_text(content)
    return tuple(paths)


def overlay_reads(folder: Path, layers: tuple[str, ...], path: str) -> str | None:
    """Read the file through a mount, a process with its root there following the links."""
    merged = folder / "merged"
    merged.mkdir()
    empty = folder / "empty"
    empty.mkdir()
    lower = ":".join((*layers, str(empty)))
    subprocess.run(["mount", "-t", "overlay", "-o", f"lowerdir={lower}", "x", merged], check=True)
    try:
        return _read_in_root(str(merged), path)
    finally:
        subprocess.run(["umount", merged], check=True)


def _read_in_root(root: str, path: str) -> str | None:
    from pycri.kernel.paths import open_beneath

    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        with suppress(OSError), open(open_beneath(root_fd, path, os.O_RDONLY)) as file:
            return file.read()
    finally:
        os.close(root_fd)
    return None


CASES: dict[str, tuple[list[Tree], str | None]] = {
    "topmost": ([{"etc/passwd": "top"}, {"etc/passwd": "low"}], "top"),
    "lower": ([{"etc/other": "x"}, {"etc/passwd": "low"}], "low"),
    "missing": ([{"etc/other": "x"}], None),
    "whiteout": ([{"etc/passwd": None}, {"etc/passwd": "low"}], None),
    "folder whited out": ([{"etc": None}, {"etc/passwd": "low"}], None),
    "between": ([{"a": "x"}, {"etc/passwd": None}, {"etc/passwd": "low"}], None),
    "opaque": ([{"etc": "opaque"}, {"etc/passwd": "low"}], None),
    "opaque above": (
        [{"etc": "opaque", "etc/passwd": "top"}, {"etc/passwd": "low"}],
        "top",
    ),
    "opaque in the middle": (
        [{"etc/x": "x"}, {"etc": "opaque"}, {"etc/passwd": "low"}],
        None,
    ),
    "a file hides a folder": ([{"etc": "file"}, {"etc/passwd": "low"}], None),
    "a folder over a file": ([{"etc/passwd": "top"}, {"etc": "file"}, {"etc/y": "z"}], "top"),
    "link to a lower layer": (
        [{"etc/passwd": "-> ../usr/lib/passwd"}, {"usr/lib/passwd": "low"}],
        "low",
    ),
    "absolute link": ([{"etc/passwd": "-> /usr/passwd"}, {"usr/passwd": "low"}], "low"),
    "folder is a link": ([{"etc": "-> usr/etc"}, {"usr/etc/passwd": "low"}], "low"),
    "link above the root": ([{"etc/passwd": "-> ../../../../x"}, {"x": "low"}], "low"),
    "link through a whiteout": (
        [{"etc/passwd": "-> ../x", "x": None}, {"x": "low", "etc/passwd": "low"}],
        None,
    ),
    "link to the host": (
        [{"etc/passwd": "-> /proc/self/environ", "proc": "dir"}, {"etc/passwd": "low"}],
        None,
    ),
    "loop": ([{"etc/passwd": "-> passwd"}], None),
    "below a file": ([{"etc/passwd": "-> ../x/y", "x": "file"}], None),
}


@pytest.mark.parametrize("name", CASES)
def test_a_file_is_read_as_overlayfs_shows_it(name: str, tmp_path: Path) -> None:
    trees, expected = CASES[name]
    layers = make_layers(tmp_path, trees)
    found: bytes | None = None
    with suppress(OSError):
        found = read_merged_file(layers, "etc/passwd", LIMIT)
    assert (found.decode() if found is not None else None) == expected
    assert overlay_reads(tmp_path, layers, "etc/passwd") == expected


@pytest.mark.parametrize(
    ("tree", "problem"),
    [
        ({"etc/passwd": "-> /proc/self/environ"}, "is a link that leads nowhere"),
        ({"etc/passwd": "-> passwd"}, "Too many levels"),
        ({"etc/passwd": "fifo"}, "is not a regular file"),
        ({"etc/passwd": "dir"}, "is not a regular file"),
        ({"etc": "file"}, "Not a directory"),
    ],
)
def test_what_is_no_file_is_named(tree: Tree, problem: str, tmp_path: Path) -> None:
    layers = make_layers(tmp_path, [tree])
    with pytest.raises(OSError, match=problem):
        read_merged_file(layers, "etc/passwd", LIMIT)


def test_no_more_than_the_limit_is_read(tmp_path: Path) -> None:
    layers = make_layers(tmp_path, [{"etc/passwd": "x" * 100}])
    assert read_merged_file(layers, "etc/passwd", 10) == b"x" * 10


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    def count(work: Callable[[], object]) -> int:
        before = len(os.listdir("/proc/self/fd"))
        with suppress(OSError):
            work()
        return len(os.listdir("/proc/self/fd")) - before

    layers = make_layers(tmp_path, [{"etc/passwd": "-> a", "etc/a": "-> passwd"}, {"etc/b": "x"}])
    assert count(lambda: read_merged_file(layers, "etc/passwd", LIMIT)) == 0
    assert count(lambda: read_merged_file(layers, "etc/b", LIMIT)) == 0
