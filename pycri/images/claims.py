# SPDX-License-Identifier: Apache-2.0
"""Claims: what a layer says of the layers beneath it, and so cannot do alone.

A layer is unpacked alone and shared by images whose other layers differ. Two things depend on
what is beneath it, and are noted instead of done:

    a hard link whose target is not in this layer
    a folder that the archive has files in but does not describe: it is what it was beneath

They lie beside the layer's recipe, RECIPE.claims; most layers have none. `settle.py` does them.

    zlib of     b"link" 0 path 0 target 0       both relative to the root, the target as written
                b"folder" 0 path 0

A path leads through folders of the layer only, never through a link.
"""

import os
import stat
import zlib
from typing import Final, NamedTuple

from pycri.errors import CorruptImage
from pycri.kernel.paths import open_beneath
from pycri.kernel.syscalls import Resolve

LINKS: Final = "links"
FOLDERS: Final = "folders"
_LOOK: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


class Claims(NamedTuple):
    """links: by their paths, what they lead to. folders: what is not described."""

    links: dict[str, str]
    folders: tuple[str, ...]

    @property
    def kind(self) -> str:
        """ "", FOLDERS, or LINKS if there are any."""
        return LINKS if self.links else FOLDERS if self.folders else ""


NOTHING: Final = Claims({}, ())


def claims_path(recipe: str) -> str:
    """Return where the claims of a layer with this recipe are."""
    return f"{recipe}.claims"


def write_claims(path: str, claims: Claims) -> None:
    """Write the claims of a layer to a new file; none if it has none."""
    if not claims.kind:
        return
    records = [_record("link", *link) for link in claims.links.items()]
    records += [_record("folder", folder) for folder in claims.folders]
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(zlib.compress(b"".join(records)))


def _record(*fields: str) -> bytes:
    return b"".join(os.fsencode(field) + b"\0" for field in fields)


def read_claims(path: str) -> Claims:
    """Return the claims of a layer. Raises: CorruptImage if they are missing or damaged."""
    try:
        with open(path, "rb") as file:
            fields = iter(os.fsdecode(zlib.decompress(file.read())).split("\0"))
    except (OSError, zlib.error) as error:
        raise CorruptImage(f"the claims of a layer cannot be read: {error}") from error
    links, folders = {}, []
    for kind in fields:
        if kind == "link":
            path = next(fields)
            links[path] = next(fields)
        elif kind == "folder":
            folders.append(next(fields))
    return Claims(links, tuple(folders))


class Links:
    """The hard links of a layer that is being unpacked whose targets it does not have.

    Borrows root_fd, of its folder.
    """

    def __init__(self, root_fd: int) -> None:
        self._root_fd = root_fd
        self._targets: dict[str, str] = {}

    def add(self, path: str, target: str) -> None:
        """Note a link, in the place of what has been noted of its path."""
        self._targets[path] = target

    def target(self, path: str) -> str | None:
        """Return what a link that was noted leads to."""
        return self._targets.get(path)

    def left(self) -> dict[str, str]:
        """Return those in whose place nothing else came. A whiteout is about lower layers only."""
        return {path: target for path, target in self._targets.items() if self._is_free(path)}

    def _is_free(self, path: str) -> bool:
        above, _, name = path.rpartition("/")
        try:
            parent_fd = open_beneath(self._root_fd, above, _LOOK, extra=Resolve.NO_SYMLINKS)
        except OSError:
            return False
        try:
            return is_whiteout(os.stat(name, dir_fd=parent_fd, follow_symlinks=False))
        except FileNotFoundError:
            return True
        finally:
            os.close(parent_fd)


def real_path(root_fd: int, path: str, fd: int) -> str:
    """Return the path without links of a folder of a layer, opened by `path` as `fd`."""
    try:
        os.close(open_beneath(root_fd, path, _LOOK, extra=Resolve.NO_SYMLINKS))
    except OSError:
        # There are links in it: the kernel knows where they led.
        root, found = (os.readlink(f"/proc/self/fd/{number}") for number in (root_fd, fd))
        return found[len(root) + 1 :]
    return path


def join(folder: str, name: str) -> str:
    """Return the path of what is called `name` in a folder; "" is the root."""
    return f"{folder}/{name}" if folder else name


def is_whiteout(found: os.stat_result) -> bool:
    """Tell whether a file is overlay's mark for one that is hidden."""
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0
