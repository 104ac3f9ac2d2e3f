# SPDX-License-Identifier: Apache-2.0
"""What a layer claims of the layers beneath it, done. Run as a process of its own:

    python -m pycri.images.settle FOLDER CLAIMS LAYER LOWER...  > one JSON object

FOLDER becomes a layer to be mounted above LAYER; LOWER are those beneath, topmost first, with what
was settled for them. It holds nothing that is not theirs:

    links       of claims: further names of the very files of the lower layers, no copies
    folders     with the attributes of the topmost layer that has any to say

So layers stay as they are, shared and verified by diff id, and only this depends on what is
beneath. A process for the same reasons as `unpack.py`; `settler.py` is the daemon's side.
"""

import os
import stat
import sys
from contextlib import ExitStack
from typing import Final

from pycri.errors import CorruptImage
from pycri.images.answering import answer
from pycri.images.attributes import Attributes, read_attributes, set_attributes
from pycri.images.claims import Claims, read_claims
from pycri.images.directories import Directories
from pycri.images.merged import Entry, look, open_root, resolve
from pycri.images.writeback import sync_and_measure
from pycri.kernel.trees import Measure

_PAGE: Final = 4096
_DEFAULT_MODE: Final = 0o755


class _Settling:
    """A folder being filled, borrowed as `folder_fd`. merged: the layer and those beneath."""

    def __init__(self, folder_fd: int, merged: Entry) -> None:
        self._directories = Directories(folder_fd)
        self._merged = merged
        self._made: dict[str, Attributes] = {}

    def settle(self, claims: Claims) -> int:
        """Do what is claimed; return the number of folders made."""
        try:
            for path in claims.folders:
                self._settle_folder(path)
            for path, target in claims.links.items():
                self._settle_link(path, target)
            for path in sorted(self._made, reverse=True):
                # The last ones first: what is made in a folder changes its time.
                fd = self._directories.open_existing(path)
                try:
                    set_attributes(fd, self._made[path], _DEFAULT_MODE)
                finally:
                    os.close(fd)
        finally:
            self._directories.close()
        return len(self._made)

    def _settle_folder(self, path: str) -> None:
        above, _, name = path.rpartition("/")
        with ExitStack() as opened:
            folder = self._walk(above, opened)
            own = look(folder, name, opened)
            # Though it hides what they have in it, it is still the folder that they have.
            lower = look(folder.beneath(), name, opened)
            if own and lower and stat.S_ISDIR(lower.mode):
                attributes = read_attributes(lower.fds[0])
                if attributes != read_attributes(own.fds[0]):
                    self._make(path)
                    self._made[path] = attributes

    def _make(self, path: str) -> int:
        """Make a folder and those above it, as they are in the merged tree; it stays ours."""
        fd = self._directories.open_parent(path).fd
        while path and path not in self._made:
            with ExitStack() as opened:
                self._made[path] = read_attributes(self._walk(path, opened).fds[0])
            path = path.rpartition("/")[0]
        return fd

    def _walk(self, path: str, opened: ExitStack) -> Entry:
        """Return the folder of the layer at `path`, merged with those beneath."""
        folder = self._merged
        for name in filter(None, path.split("/")):
            found = look(folder, name, opened)
            assert found is not None
            folder = found
        return folder

    def _settle_link(self, path: str, target: str) -> None:
        above, _, name = path.rpartition("/")
        with ExitStack() as opened:
            source_fd = self._find_target(path, target, opened)
            source = f"/proc/self/fd/{source_fd}"
            os.link(source, name, dst_dir_fd=self._make(above), follow_symlinks=True)

    def _find_target(self, path: str, target: str, opened: ExitStack) -> int:
        """Return a descriptor of the file that lower layers show at `target`."""
        above, _, name = target.rpartition("/")
        try:
            folder = resolve(self._merged, above, opened)
            found = look(folder.beneath(), name, opened) if folder else None
        except OSError as error:
            raise CorruptImage(_words(path, target, str(error.strerror))) from error
        if found is None:
            raise CorruptImage(_words(path, target, "no layer beneath has it"))
        if stat.S_ISDIR(found.mode):
            raise CorruptImage(_words(path, target, "it is a folder"))
        return found.fds[0]


def _words(path: str, target: str, reason: str) -> str:
    return f"{path!r} is a hard link to {target!r}, which is not in this layer: {reason}"


def settle(folder: str, claims: str, layers: tuple[str, ...]) -> Measure:
    """Fill `folder`, empty, and sync it. layers: topmost first, that of the claims the first.

    Returns: what the folders take; the files are the layers'. Raises: CorruptImage, OSError.
    """
    with ExitStack() as opened:
        folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        opened.callback(os.close, folder_fd)
        merged = open_root(layers, opened)
        made = _Settling(folder_fd, merged).settle(read_claims(claims))
        fingerprint = sync_and_measure(folder_fd, folder).fingerprint
    return Measure(made * _PAGE, made, fingerprint)


def main() -> None:
    """Do as the arguments say; print what came of it."""
    folder, claims, *layers = sys.argv[1:]
    answer(lambda: settle(folder, claims, tuple(layers))._asdict(), bounded=True)


if __name__ == "__main__":
    main()
