# SPDX-License-Identifier: Apache-2.0
"""The members of a layer's tar to files in its folder, as overlay wants to find them.

What lower layers hold is not looked at: whiteouts become overlay's own marks, and what depends on
lower layers is noted (claims.py), so layers can be unpacked in any order and shared by images:

    .wh.NAME         character device 0/0 at NAME
    .wh..wh..opq     trusted.overlay.opaque=y on the folder
    .wh..wh.*        other marks of aufs: ignored

Every path is resolved beneath the folder by the kernel (openat2, RESOLVE_IN_ROOT); ".." is refused.
A file costs as few calls as its attributes allow, four for the plain ones: open, write, utimensat,
close. Source: OCI image-spec layer.md; kernel, filesystems/overlayfs.rst.
"""

import errno
import os
import stat
from collections.abc import Iterator
from typing import Final

from pycri.errors import CorruptImage
from pycri.images import tarheader
from pycri.images.attributes import mode_to_create, set_attributes, set_xattrs
from pycri.images.blobs import PlainInput
from pycri.images.claims import Claims, Links, is_whiteout, join, real_path
from pycri.images.directories import DIRECTORY, Directories, split
from pycri.images.recipes import RecipeWriter
from pycri.images.tar import Member, read_members
from pycri.kernel.trees import remove_tree

MOST_MEMBERS: Final = 4_000_000
MOST_BYTES: Final = 512 * 1024**3
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
OPAQUE: Final = "trusted.overlay.opaque"
# What the kernel says of a member that cannot be made where it says.
_BAD_MEMBER: Final = frozenset(
    {
        errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG,
        errno.EXDEV, errno.EMLINK, errno.EINVAL, errno.EPERM, errno.ENOTEMPTY, errno.ERANGE,
        errno.E2BIG, errno.ENXIO, errno.EFBIG,
    }
)  # fmt: skip


class Unpacking:
    """The folder being filled. Borrows `root_fd`. recipe: told when something is replaced."""

    def __init__(self, root_fd: int, recipe: RecipeWriter) -> None:
        self._directories = Directories(root_fd)
        self._links = Links(root_fd)
        self._root_fd = root_fd
        self._recipe = recipe

    def unpack(self, stream: PlainInput) -> Claims:
        """Make every member of the archive; return what it claims of lower layers.

        Raises: CorruptImage, OSError.
        """
        try:
            for count, member in enumerate(read_members(stream), 1):
                if count > MOST_MEMBERS:
                    raise CorruptImage(f"the layer has more than {MOST_MEMBERS} members")
                self._make(member, stream)
            return Claims(folders=self._directories.finish(), links=self._links.left())
        finally:
            self._directories.close()

    def _make(self, member: Member, stream: PlainInput) -> None:
        above, _, name = member.name.rpartition("/")
        try:
            if name in ("", ".", ".."):
                names = split(member.name)
                if not names:
                    self._make_root(member)
                    return
                above, name = "/".join(names[:-1]), names[-1]
            parent_fd, parent = self._directories.open_parent(above)
            path = f"{parent}/{name}" if parent else name
            if name.startswith(".wh."):
                self._make_whiteout(parent_fd, name)
                stream.skip(member.size)
            elif member.kind == tarheader.DIRECTORY:
                self._make_directory(member, parent_fd, name, path)
            else:
                self._make_other(member, stream, parent_fd, name, path)
        except OSError as error:
            if error.errno not in _BAD_MEMBER:
                raise
            raise CorruptImage(f"{member.name!r} cannot be unpacked: {error.strerror}") from error

    def _make_root(self, member: Member) -> None:
        if member.kind != tarheader.DIRECTORY:
            raise CorruptImage("the layer's root is not a folder")
        self._directories.describe("", member, self._root_fd)

    def _make_whiteout(self, parent_fd: int, name: str) -> None:
        if name == ".wh..wh..opq":
            os.setxattr(parent_fd, OPAQUE, b"y")
            return
        hidden = name[len(".wh.") :]
        if hidden.startswith(".wh."):
            return
        if hidden in ("", ".", ".."):
            raise CorruptImage(f"the layer's tar has a whiteout of nothing: {name!r}")
        try:
            os.mknod(hidden, stat.S_IFCHR, os.makedev(0, 0), dir_fd=parent_fd)
        except FileExistsError:
            # The layer has such a file itself, and a whiteout is about lower layers only.
            if stat.S_ISDIR(_stat(hidden, parent_fd).st_mode):
                _set_opaque(hidden, parent_fd)

    def _make_directory(self, member: Member, parent_fd: int, name: str, path: str) -> None:
        replaced_whiteout = False
        try:
            os.mkdir(name, 0o700, dir_fd=parent_fd)
        except FileExistsError:
            found = _stat(name, parent_fd)
            if not stat.S_ISDIR(found.st_mode):
                replaced_whiteout = is_whiteout(found)
                self._remove(parent_fd, name)
                os.mkdir(name, 0o700, dir_fd=parent_fd)
        fd = os.open(name, DIRECTORY | os.O_NOFOLLOW, dir_fd=parent_fd)
        try:
            self._directories.describe(path, member, fd)
            if replaced_whiteout:
                os.setxattr(fd, OPAQUE, b"y")
        finally:
            os.close(fd)

    def _make_other(
        self, member: Member, stream: PlainInput, parent_fd: int, name: str, path: str
    ) -> None:
        match member.kind:
            case tarheader.LINK:
                self._make_hard_link(member, parent_fd, path)
            case tarheader.SYMLINK | tarheader.CHARACTER_DEVICE | tarheader.BLOCK_DEVICE:
                self._make_node(member, parent_fd, name)
            case tarheader.FIFO:
                self._make_node(member, parent_fd, name)
            case _:
                fd = self._create(parent_fd, name, mode_to_create(member))
                try:
                    _write_content(fd, member, stream, path)
                    set_attributes(fd, member, mode_to_create(member))
                finally:
                    os.close(fd)

    def _create(self, parent_fd: int, name: str, mode: int) -> int:
        try:
            return os.open(name, _NEW_FILE, mode, dir_fd=parent_fd)
        except FileExistsError:
            self._remove(parent_fd, name)
            return os.open(name, _NEW_FILE, mode, dir_fd=parent_fd)

    def _make_hard_link(self, member: Member, parent_fd: int, path: str) -> None:
        target = "/".join(split(member.linkname))
        if not target:
            raise CorruptImage(f"{member.name!r} is a link to the layer's root")
        above, _, name = target.rpartition("/")
        try:
            source_fd = self._directories.open_existing(above)
        except FileNotFoundError:
            self._claim_link(parent_fd, path, target)
            return
        try:
            found = _find(name, source_fd)
            if found is not None and not is_whiteout(found):
                self._link(source_fd, name, parent_fd, path.rpartition("/")[2])
                return
            # It may be one that is itself a link to a lower layer.
            claimed = self._links.target(join(real_path(self._root_fd, above, source_fd), name))
        finally:
            os.close(source_fd)
        if found is not None and claimed is None:
            raise CorruptImage(
                f"{member.name!r} is a hard link to {member.linkname!r}, which the layer removes"
            )
        self._claim_link(parent_fd, path, claimed or target)

    def _claim_link(self, parent_fd: int, path: str, target: str) -> None:
        above, _, name = path.rpartition("/")
        found = _find(name, parent_fd)
        if found is not None and not is_whiteout(found):
            self._remove(parent_fd, name)
        self._links.add(join(real_path(self._root_fd, above, parent_fd), name), target)

    def _link(self, source_fd: int, source: str, parent_fd: int, name: str) -> None:
        try:
            _link(source_fd, source, parent_fd, name)
        except FileExistsError:
            self._remove(parent_fd, name)
            _link(source_fd, source, parent_fd, name)

    def _make_node(self, member: Member, parent_fd: int, name: str) -> None:
        try:
            _make_node(member, parent_fd, name)
        except FileExistsError:
            self._remove(parent_fd, name)
            _make_node(member, parent_fd, name)
        os.chown(name, member.uid, member.gid, dir_fd=parent_fd, follow_symlinks=False)
        # There is no setxattrat(2) before Linux 6.13: the folder is named by its descriptor.
        set_xattrs(f"/proc/self/fd/{parent_fd}/{name}", member, follow_symlinks=False)
        if member.kind != tarheader.SYMLINK:
            os.chmod(name, member.mode, dir_fd=parent_fd)
        times = (member.mtime_ns, member.mtime_ns)
        os.utime(name, ns=times, dir_fd=parent_fd, follow_symlinks=False)

    def _remove(self, parent_fd: int, name: str) -> None:
        """Make room for a member: the last one of a name counts."""
        self._directories.forget_opened()
        found = _stat(name, parent_fd)
        if stat.S_ISDIR(found.st_mode):
            self._recipe.give_up()
            remove_tree(parent_fd, name)
            return
        if found.st_size and stat.S_ISREG(found.st_mode):
            self._recipe.give_up()
        os.unlink(name, dir_fd=parent_fd)


def _stat(name: str, parent_fd: int) -> os.stat_result:
    return os.stat(name, dir_fd=parent_fd, follow_symlinks=False)


def _find(name: str, parent_fd: int) -> os.stat_result | None:
    try:
        return _stat(name, parent_fd)
    except FileNotFoundError:
        return None


def _set_opaque(name: str, parent_fd: int) -> None:
    fd = os.open(name, DIRECTORY | os.O_NOFOLLOW, dir_fd=parent_fd)
    try:
        os.setxattr(fd, OPAQUE, b"y")
    finally:
        os.close(fd)


def _link(source_fd: int, source: str, parent_fd: int, name: str) -> None:
    os.link(source, name, src_dir_fd=source_fd, dst_dir_fd=parent_fd, follow_symlinks=False)


def _make_node(member: Member, parent_fd: int, name: str) -> None:
    match member.kind:
        case tarheader.SYMLINK:
            os.symlink(member.linkname, name, dir_fd=parent_fd)
        case tarheader.FIFO:
            os.mkfifo(name, member.mode, dir_fd=parent_fd)
        case kind:
            of_kind = stat.S_IFCHR if kind == tarheader.CHARACTER_DEVICE else stat.S_IFBLK
            os.mknod(name, of_kind | member.mode, os.makedev(*member.device), dir_fd=parent_fd)


def _write_content(fd: int, member: Member, stream: PlainInput, path: str) -> None:
    if member.sparse is None:
        _write(fd, stream.content(member.size, path))
        return
    for offset, length in member.sparse.parts:
        os.lseek(fd, offset, os.SEEK_SET)
        _write(fd, stream.pieces(length))
    os.ftruncate(fd, member.sparse.size)


def _write(fd: int, pieces: Iterator[memoryview]) -> None:
    for piece in pieces:
        rest = piece
        while rest:
            rest = rest[os.write(fd, rest) :]
