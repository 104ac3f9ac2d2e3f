# SPDX-License-Identifier: Apache-2.0
"""Targets of mounts are made beneath a root whatever links an image has laid there.

In each case the outside is a folder beside the root, which must stay as it was.
"""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pycri.kernel.paths import make_directory_beneath, make_file_beneath


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """An empty root with a folder beside it that must stay empty."""
    (tmp_path / "root").mkdir()
    (tmp_path / "outside").mkdir()
    yield tmp_path / "root"
    assert set(os.listdir(tmp_path)) == {
        "root",
        "outside",
    }
    assert not os.listdir(tmp_path / "outside")


def made(make: Callable[..., int], root: Path, path: str, **words: bool) -> str:
    """Make a path and return where it is, as seen from the root."""
    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        fd = make(root_fd, path, **words)
        try:
            return os.readlink(f"/proc/self/fd/{fd}").removeprefix(str(root))
        finally:
            os.close(fd)
    finally:
        os.close(root_fd)


@pytest.mark.parametrize(
    ("link", "destination", "path", "found"),
    [
        ("", "", "/a/b/c", "/a/b/c"),
        ("run", "kept", "/run/x", "/kept/x"),
        ("run", "made", "/run/x", "/made/x"),
        ("run", "/made", "/run/x", "/made/x"),
        ("run", "../../../outside", "/run/x", "/outside/x"),
        ("run", "/../outside/deep", "/run/x", "/outside/deep/x"),
        ("kept/run", "../made/deep", "/kept/run/x", "/made/deep/x"),
    ],
    ids=["plain", "link", "dangling", "absolute", "out", "absolute-out", "up"],
)
@pytest.mark.parametrize("make", [make_directory_beneath, make_file_beneath])
def test_links_are_followed_inside_the_root_only(
    make: Callable[..., int], link: str, destination: str, path: str, found: str, root: Path
) -> None:
    (root / "kept").mkdir()
    if link:
        (root / link).symlink_to(destination)
    assert made(make, root, path) == found
    assert (root / found[1:]).is_dir() is (make is make_directory_beneath)


def test_a_file_behind_a_dangling_link_is_made_where_it_leads(root: Path) -> None:
    (root / "etc").mkdir()
    (root / "etc/resolv.conf").symlink_to("../run/resolve/stub.conf")
    assert made(make_file_beneath, root, "/etc/resolv.conf") == "/run/resolve/stub.conf"
    assert (root / "run/resolve/stub.conf").is_file()


@pytest.mark.parametrize("make", [make_directory_beneath, make_file_beneath])
@pytest.mark.parametrize("path", ["/loop", "/loop/x", "/one", "/one/x"])
def test_loops_of_links_are_refused(make: Callable[..., int], path: str, root: Path) -> None:
    (root / "loop").symlink_to("loop")
    (root / "one").symlink_to("/two")
    (root / "two").symlink_to("one")
    with pytest.raises(OSError) as caught:
        made(make, root, path)
    assert caught.value.errno == errno.ELOOP
    assert caught.value.filename


@pytest.mark.parametrize("make", [make_directory_beneath, make_file_beneath])
def test_a_chain_of_links_that_grows_ends(make: Callable[..., int], root: Path) -> None:
    (root / "grow").symlink_to("made/grow/grow")
    (root / "made").symlink_to(".")
    with pytest.raises(OSError) as caught:
        made(make, root, "/grow/x")
    assert caught.value.errno == errno.ELOOP


@pytest.mark.parametrize("make", [make_directory_beneath, make_file_beneath])
def test_a_file_where_a_folder_is_needed_is_named(make: Callable[..., int], root: Path) -> None:
    (root / "file").write_text("kept")
    with pytest.raises(NotADirectoryError) as caught:
        made(make, root, "/file/x/y")
    assert caught.value.filename in ("/file", "file")
    assert (root / "file").read_text() == "kept"


@pytest.mark.parametrize("make", [make_directory_beneath, make_file_beneath])
def test_dots_in_the_asked_path_are_refused(make: Callable[..., int], root: Path) -> None:
    with pytest.raises(OSError, match=r"must not contain '\.\.'"):
        made(make, root, "/a/../b")


def test_no_link_is_followed_where_none_is_wanted(root: Path) -> None:
    (root / "proc").symlink_to("elsewhere")
    (root / "elsewhere").mkdir()
    with pytest.raises(OSError) as caught:
        made(make_directory_beneath, root, "/proc", follow=False)
    assert caught.value.errno == errno.ELOOP
    assert made(make_directory_beneath, root, "/sys", follow=False) == "/sys"
