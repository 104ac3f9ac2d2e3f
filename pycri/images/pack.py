# SPDX-License-Identifier: Apache-2.0
"""A layer's folder back to its archive, or compared with it. Run as a process of its own:

    python -m pycri.images.pack FOLDER RECIPE DIFF-ID OUTPUT-FD  > one JSON object
    python -m pycri.images.pack FOLDER RECIPE DIFF-ID check      > one JSON object
    python -m pycri.images.pack FOLDER                           > one JSON object

The other way of `unpack.py`, and a process for the same reasons; `packer.py` is the daemon's side.
Either way the archive must have the digest that it had when it was unpacked. `check` looks besides
whether the folder is what the archive's headers say: kinds, owners, modes, times, links, extended
attributes, and nothing that is not in the archive. The last form, for a layer whose archive cannot
be made again, tells the folder's digest (tree_digest.py).
"""

import os
import stat
import sys
import tarfile
from collections.abc import Iterator
from typing import Final

from pycri.errors import CorruptImage
from pycri.images.answering import Answer, answer
from pycri.images.attributes import FOREIGN_XATTRS
from pycri.images.blobs import Hashed, PlainInput
from pycri.images.claims import NOTHING, Claims, claims_path, join, read_claims, real_path
from pycri.images.directories import split
from pycri.images.recipes import read_recipe
from pycri.images.sparse import SparseMap
from pycri.images.tar import Member, read_members
from pycri.images.tree_digest import digest_tree
from pycri.images.unpacking import MOST_BYTES, OPAQUE
from pycri.kernel.paths import open_beneath

_PIECE: Final = 1024 * 1024
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_LOOK: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: a pipe in the place of a file must not hold us up.
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_KINDS: Final = {
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
    tarfile.FIFOTYPE: stat.S_IFIFO,
}


def read_archive(root_fd: int, recipe: str) -> Iterator[bytes]:
    """Yield the pieces of the archive that was unpacked below `root_fd`.

    Raises: CorruptImage if a file is not as long as it was; FileNotFoundError without a recipe.
    """
    for part in read_recipe(recipe):
        if isinstance(part, bytes):
            yield part
        else:
            yield from _read_content(root_fd, *part)


def _read_content(root_fd: int, path: str, size: int) -> Iterator[bytes]:
    try:
        fd = open_beneath(root_fd, path, _READ)
    except OSError as error:
        raise CorruptImage(f"{path!r} cannot be opened: {error.strerror}") from error
    with open(fd, "rb", buffering=0) as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size != size:
            raise CorruptImage(f"{path!r} is not the file of {size} bytes that it was")
        while size and (piece := file.read(min(size, _PIECE))):
            size -= len(piece)
            yield piece
    if size:
        raise CorruptImage(f"{path!r} ends too early")


class Comparison:
    """A folder against the members of its archive. Borrows `root_fd`.

    claims: what the archive has and the folder has not.
    Files are told apart by inode: a member may be named through a link, or twice, and of two that
    are one file the last one's attributes count.
    """

    def __init__(self, root_fd: int, claims: Claims) -> None:
        self._root_fd = root_fd
        self._claims = claims
        self._seen: dict[int, Member | None] = {}

    def compare(self, stream: PlainInput) -> None:
        """Raises: CorruptImage, naming the first file that is not as it was."""
        for member in read_members(stream):
            self._note(member)
            if member.sparse is None:
                stream.skip(member.size)
            else:
                self._compare_parts(member.name, member.sparse, stream)
        for last in self._seen.values():
            if last is not None:
                self._check(last)
        self._check_nothing_else()

    def _compare_parts(self, path: str, sparse: SparseMap, stream: PlainInput) -> None:
        """Compare a sparse file with its data, which the recipe has: its digest tells nothing."""
        fd = open_beneath(self._root_fd, path, _READ)
        try:
            if os.fstat(fd).st_size != sparse.size:
                raise CorruptImage(f"{path!r} is not the file of {sparse.size} bytes that it was")
            for offset, length in sparse.parts:
                for piece in stream.pieces(length):
                    if os.pread(fd, len(piece), offset) != piece:
                        raise CorruptImage(f"{path!r} is not what it was")
                    offset += len(piece)
        finally:
            os.close(fd)

    def _note(self, member: Member) -> None:
        parent, _, name = member.name.rstrip("/").rpartition("/")
        if member.kind == tarfile.LNKTYPE and self._is_claimed(parent, name):
            return
        if not name.startswith(".wh."):
            inode = self._look(member.name).st_ino
            # What is said of a link's file was said with its first name.
            self._seen.setdefault(inode, None)
            if member.kind != tarfile.LNKTYPE:
                self._seen[inode] = member
        elif name == ".wh..wh..opq":
            self._check_opaque(parent)
        elif not name.startswith(".wh..wh."):
            self._seen.setdefault(self._look(f"{parent}/{name[4:]}").st_ino, None)

    def _is_claimed(self, parent: str, name: str) -> bool:
        if not self._claims.links:
            return False
        fd = open_beneath(self._root_fd, parent, _FOLDER)
        try:
            folder = real_path(self._root_fd, "/".join(split(parent)), fd)
        finally:
            os.close(fd)
        return join(folder, name) in self._claims.links

    def _look(self, path: str) -> os.stat_result:
        try:
            fd = open_beneath(self._root_fd, path, _LOOK)
        except OSError as error:
            raise CorruptImage(f"{path!r} is missing: {error.strerror}") from error
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)

    def _check(self, member: Member) -> None:
        fd = open_beneath(self._root_fd, member.name, _LOOK)
        try:
            found = os.fstat(fd)
            if differing := list(_differences(member, found, fd)):
                raise CorruptImage(f"{member.name!r} has another {', '.join(differing)}")
        finally:
            os.close(fd)

    def _check_opaque(self, path: str) -> None:
        fd = open_beneath(self._root_fd, path, _LOOK)
        try:
            if os.getxattr(f"/proc/self/fd/{fd}", OPAQUE) != b"y":
                raise CorruptImage(f"{path!r} does not hide what lower layers have")
        except OSError as error:
            raise CorruptImage(f"{path!r} lacks its mark: {error.strerror}") from error
        finally:
            os.close(fd)

    def _check_nothing_else(self) -> None:
        for folder, _, names, fd in os.fwalk(".", dir_fd=self._root_fd):
            for name in names:
                if os.stat(name, dir_fd=fd, follow_symlinks=False).st_ino not in self._seen:
                    raise CorruptImage(f"{os.path.join(folder, name)[2:]!r} is not of the layer")


def _differences(member: Member, found: os.stat_result, fd: int) -> Iterator[str]:
    kind = _KINDS.get(member.kind, stat.S_IFREG)
    if stat.S_IFMT(found.st_mode) != kind:
        yield "kind"
        return
    if (found.st_uid, found.st_gid) != (member.uid, member.gid):
        yield "owner"
    if kind != stat.S_IFLNK and stat.S_IMODE(found.st_mode) != member.mode:
        yield "mode"
    if found.st_mtime_ns != member.mtime_ns:
        yield "time"
    if kind == stat.S_IFLNK and os.readlink("", dir_fd=fd) != member.linkname:
        yield "target"
    if kind in (stat.S_IFCHR, stat.S_IFBLK) and found.st_rdev != os.makedev(*member.device):
        yield "device"
    if kind in (stat.S_IFREG, stat.S_IFDIR) and not _has_xattrs(member, fd):
        yield "extended attribute"


def _has_xattrs(member: Member, fd: int) -> bool:
    file = f"/proc/self/fd/{fd}"
    wanted = {k: v for k, v in member.xattrs.items() if not k.startswith(FOREIGN_XATTRS)}
    return all(
        name in os.listxattr(file) and os.getxattr(file, name) == value
        for name, value in wanted.items()
    )


def pack(folder: str, recipe: str, diff_id: str, output_fd: int | None) -> int:
    """Write the archive to `output_fd`, or compare it with the folder; return its size in bytes.

    Raises: CorruptImage if the folder is not what was unpacked; OSError.
    """
    root_fd = os.open(folder, _FOLDER)
    try:
        archive = Hashed(read_archive(root_fd, recipe))
        stream = PlainInput(iter(archive), MOST_BYTES)
        if output_fd is None:
            beside = claims_path(recipe)
            claims = read_claims(beside) if os.path.exists(beside) else NOTHING
            Comparison(root_fd, claims).compare(stream)
        else:
            for piece in stream.rest():
                _write_all(output_fd, piece)
        stream.finish()
    finally:
        os.close(root_fd)
    if archive.digest != diff_id:
        words = "its files are not what they were: the archive's digest is"
        raise CorruptImage(f"{words} {archive.digest}")
    return stream.size_bytes


def _write_all(fd: int, piece: memoryview) -> None:
    while piece:
        piece = piece[os.write(fd, piece) :]


def _do(folder: str, recipe: str = "", diff_id: str = "", output: str = "") -> Answer:
    if recipe:
        return {
            "size_bytes": pack(folder, recipe, diff_id, None if output == "check" else int(output))
        }
    root_fd = os.open(folder, _FOLDER)
    try:
        return {"tree": digest_tree(root_fd)}
    finally:
        os.close(root_fd)


def main() -> None:
    """Do as the arguments say; print what came of it."""
    answer(lambda: _do(*sys.argv[1:]), bounded=False)


if __name__ == "__main__":
    main()
