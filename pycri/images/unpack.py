# SPDX-License-Identifier: Apache-2.0
"""A layer blob to a folder that overlay can mount. Run as a process of its own:

    python -m pycri.images.unpack FOLDER BLOB-DIGEST DIFF-ID RECIPE  < blob  > one JSON object

A process, because tar is Python's work: in a thread it would take turns with the daemon's event
loop; and because a process can be killed at any instant and gives all its memory back. It knows
nothing of the daemon and imports little, to start fast; `unpacker.py` is the other side.

What lower layers hold is not looked at: whiteouts become overlay's own marks, so layers can be
unpacked in any order and shared by images:

    .wh.NAME         character device 0/0 at NAME
    .wh..wh..opq     trusted.overlay.opaque=y on the folder
    .wh..wh.*        other marks of aufs: ignored

RECIPE is the file to make for `recipes.py`; there is none of an archive that cannot be made again.
Every path is resolved beneath the folder by the kernel (openat2, RESOLVE_IN_ROOT); ".." is refused.
Source: OCI image-spec layer.md; kernel, filesystems/overlayfs.rst.
"""

import contextlib
import errno
import json
import os
import shutil
import stat
import sys
import tarfile
from typing import Final

from pycri.errors import CorruptImage
from pycri.images.blobs import BlobInput, PlainInput, decompressed
from pycri.images.recipes import RecipeWriter
from pycri.images.tar import Member, read_members
from pycri.kernel.paths import make_directory_beneath, open_beneath
from pycri.kernel.syscalls import syncfs

MOST_MEMBERS: Final = 4_000_000
MOST_BYTES: Final = 512 * 1024**3
_PAGE: Final = 4096
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
OPAQUE: Final = "trusted.overlay.opaque"
# Overlay's marks are ours to set; a label of the builder's host means nothing here.
FOREIGN_XATTRS: Final = ("trusted.overlay.", "user.overlay.", "security.selinux")
_FULL_DISK: Final = (errno.ENOSPC, errno.EDQUOT)
# What the kernel says of a member that cannot be made where it says.
_BAD_MEMBER: Final = frozenset(
    {
        errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG,
        errno.EXDEV, errno.EMLINK, errno.EINVAL, errno.EPERM, errno.ENOTEMPTY, errno.ERANGE,
        errno.E2BIG, errno.ENXIO,
    }
)  # fmt: skip


class Unpacking:
    """The folder being filled. Borrows `root_fd`. recipe: told when something is replaced.

    size_bytes: what the files take, in whole pages; inodes: how many.
    """

    def __init__(self, root_fd: int, recipe: RecipeWriter) -> None:
        self._root_fd = root_fd
        self._recipe = recipe
        self._parent: tuple[str, int] | None = None
        self._directory_times: dict[str, int] = {}
        self.size_bytes = 0
        self.inodes = 0

    def unpack(self, stream: PlainInput) -> None:
        """Make every member of the archive. Raises: CorruptImage, OSError."""
        try:
            for count, member in enumerate(read_members(stream), 1):
                if count > MOST_MEMBERS:
                    raise CorruptImage(f"the layer has more than {MOST_MEMBERS} members")
                self._make(member, stream)
            self._set_directory_times()
        finally:
            self._forget_parent()

    def _make(self, member: Member, stream: PlainInput) -> None:
        names = [name for name in member.name.split("/") if name not in ("", ".")]
        if ".." in names:
            raise CorruptImage(f"the layer's tar has a member outside of it: {member.name!r}")
        try:
            if not names:
                self._make_root(member)
                return
            parent, name = "/".join(names[:-1]), names[-1]
            parent_fd = self._open_parent(parent)
            if name.startswith(".wh."):
                self._make_whiteout(parent_fd, name)
                stream.skip(member.size)
            else:
                self._make_member(member, parent_fd, name, stream)
            if member.kind == tarfile.DIRTYPE:
                self._directory_times["/".join(names)] = member.mtime_ns
        except OSError as error:
            if error.errno not in _BAD_MEMBER:
                raise
            raise CorruptImage(f"{member.name!r} cannot be unpacked: {error.strerror}") from error

    def _make_root(self, member: Member) -> None:
        if member.kind != tarfile.DIRTYPE:
            raise CorruptImage("the layer's root is not a folder")
        _set_attributes(self._root_fd, member)
        self._directory_times["."] = member.mtime_ns

    def _open_parent(self, path: str) -> int:
        """Return a descriptor of a folder, made if missing; it stays ours.

        Members of one folder follow each other, so the last one is kept open.
        """
        if self._parent is not None and self._parent[0] == path:
            return self._parent[1]
        self._forget_parent()
        try:
            fd = open_beneath(self._root_fd, path, _DIRECTORY)
        except FileNotFoundError:
            os.close(make_directory_beneath(self._root_fd, path, dangling=False))
            fd = open_beneath(self._root_fd, path, _DIRECTORY)
        self._parent = (path, fd)
        return fd

    def _forget_parent(self) -> None:
        if self._parent is not None:
            os.close(self._parent[1])
            self._parent = None

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

    def _make_member(self, member: Member, parent_fd: int, name: str, stream: PlainInput) -> None:
        match member.kind:
            case tarfile.DIRTYPE:
                self._make_directory(member, parent_fd, name)
            case tarfile.LNKTYPE:
                self._make_hard_link(member, parent_fd, name)
            case tarfile.SYMTYPE | tarfile.CHRTYPE | tarfile.BLKTYPE | tarfile.FIFOTYPE:
                self._make_node(member, parent_fd, name)
            case _:
                self._make_file(member, parent_fd, name, stream)

    def _make_file(self, member: Member, parent_fd: int, name: str, stream: PlainInput) -> None:
        self._count(member.size)
        try:
            fd = os.open(name, _NEW_FILE, 0o600, dir_fd=parent_fd)
        except FileExistsError:
            self._remove(parent_fd, name)
            fd = os.open(name, _NEW_FILE, 0o600, dir_fd=parent_fd)
        try:
            for piece in stream.content(member.size, self._path(name)):
                _write_all(fd, piece)
            _set_attributes(fd, member)
            os.utime(fd, ns=(member.mtime_ns, member.mtime_ns))
        finally:
            os.close(fd)

    def _make_directory(self, member: Member, parent_fd: int, name: str) -> None:
        replaced_whiteout = False
        try:
            os.mkdir(name, 0o700, dir_fd=parent_fd)
            self._count(_PAGE)
        except FileExistsError:
            found = _stat(name, parent_fd)
            if not stat.S_ISDIR(found.st_mode):
                replaced_whiteout = stat.S_ISCHR(found.st_mode) and found.st_rdev == 0
                self._remove(parent_fd, name)
                os.mkdir(name, 0o700, dir_fd=parent_fd)
        fd = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=parent_fd)
        try:
            _set_attributes(fd, member)
            if replaced_whiteout:
                os.setxattr(fd, OPAQUE, b"y")
        finally:
            os.close(fd)

    def _make_hard_link(self, member: Member, parent_fd: int, name: str) -> None:
        names = [part for part in member.linkname.split("/") if part not in ("", ".")]
        if not names or ".." in names:
            raise CorruptImage(f"{member.name!r} is a link out of the layer: {member.linkname!r}")
        source_fd = open_beneath(self._root_fd, "/".join(names[:-1]), _DIRECTORY)
        try:
            try:
                os.link(
                    names[-1], name,
                    src_dir_fd=source_fd, dst_dir_fd=parent_fd, follow_symlinks=False,
                )  # fmt: skip
            except FileExistsError:
                self._remove(parent_fd, name)
                os.link(
                    names[-1], name,
                    src_dir_fd=source_fd, dst_dir_fd=parent_fd, follow_symlinks=False,
                )  # fmt: skip
        finally:
            os.close(source_fd)

    def _make_node(self, member: Member, parent_fd: int, name: str) -> None:
        self._count(0)
        try:
            _make_node(member, parent_fd, name)
        except FileExistsError:
            self._remove(parent_fd, name)
            _make_node(member, parent_fd, name)
        os.chown(name, member.uid, member.gid, dir_fd=parent_fd, follow_symlinks=False)
        # There is no setxattrat(2) before Linux 6.13: the folder is named by its descriptor.
        _set_xattrs(f"/proc/self/fd/{parent_fd}/{name}", member, follow_symlinks=False)
        if member.kind != tarfile.SYMTYPE:
            os.chmod(name, member.mode, dir_fd=parent_fd)
        times = (member.mtime_ns, member.mtime_ns)
        os.utime(name, ns=times, dir_fd=parent_fd, follow_symlinks=False)

    def _path(self, name: str) -> str:
        """Return where a member of the folder that is kept open lies."""
        assert self._parent is not None
        return f"{self._parent[0]}/{name}".lstrip("/")

    def _remove(self, parent_fd: int, name: str) -> None:
        found = _stat(name, parent_fd)
        if stat.S_ISDIR(found.st_mode):
            self._recipe.give_up()
            shutil.rmtree(name, dir_fd=parent_fd)
            return
        if found.st_size and stat.S_ISREG(found.st_mode):
            self._recipe.give_up()
        os.unlink(name, dir_fd=parent_fd)

    def _count(self, size: int) -> None:
        self.inodes += 1
        self.size_bytes += -(-size // _PAGE) * _PAGE
        if self.size_bytes > MOST_BYTES:
            raise CorruptImage(f"the layer unpacks to more than {MOST_BYTES} bytes")

    def _set_directory_times(self) -> None:
        """Set them last: making a file in a folder changes the folder's time."""
        for path, mtime_ns in self._directory_times.items():
            # A later member may have put something else in its place.
            with contextlib.suppress(FileNotFoundError, NotADirectoryError, OverflowError):
                fd = open_beneath(self._root_fd, path, _DIRECTORY | os.O_NOFOLLOW)
                try:
                    os.utime(fd, ns=(mtime_ns, mtime_ns))
                finally:
                    os.close(fd)


def _stat(name: str, parent_fd: int) -> os.stat_result:
    return os.stat(name, dir_fd=parent_fd, follow_symlinks=False)


def _set_opaque(name: str, parent_fd: int) -> None:
    fd = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=parent_fd)
    try:
        os.setxattr(fd, OPAQUE, b"y")
    finally:
        os.close(fd)


def _make_node(member: Member, parent_fd: int, name: str) -> None:
    match member.kind:
        case tarfile.SYMTYPE:
            os.symlink(member.linkname, name, dir_fd=parent_fd)
        case tarfile.FIFOTYPE:
            os.mkfifo(name, member.mode, dir_fd=parent_fd)
        case kind:
            of_kind = stat.S_IFCHR if kind == tarfile.CHRTYPE else stat.S_IFBLK
            os.mknod(name, of_kind | member.mode, os.makedev(*member.device), dir_fd=parent_fd)


def _set_attributes(fd: int, member: Member) -> None:
    # In this order: a change of owner takes the set-user-ID bit and the file capabilities away.
    os.fchown(fd, member.uid, member.gid)
    os.fchmod(fd, member.mode)
    _set_xattrs(fd, member, follow_symlinks=True)


def _set_xattrs(target: int | str, member: Member, *, follow_symlinks: bool) -> None:
    for name, value in member.xattrs.items():
        if name.startswith(FOREIGN_XATTRS):
            continue
        try:
            os.setxattr(target, name, value, follow_symlinks=follow_symlinks)
        except OSError as error:
            # A file system without this kind of attribute is no fault of the image.
            if error.errno != errno.ENOTSUP:
                raise


def _write_all(fd: int, piece: memoryview) -> None:
    while piece:
        piece = piece[os.write(fd, piece) :]


def unpack_blob(
    blob_fd: int, folder: str, blob_digest: str, diff_id: str, recipe_path: str
) -> dict[str, int]:
    """Unpack the blob read from `blob_fd` into `folder`, empty, verified and synced.

    recipe_path: of a file on the same file system, made, and left if the archive can be made again.
    Returns: size_bytes and inodes of the layer.
    Raises: CorruptImage if either digest differs or the archive is bad; OSError.
    """
    blob = BlobInput(blob_fd)
    with contextlib.ExitStack() as opened:
        root_fd = os.open(folder, _DIRECTORY)
        opened.callback(os.close, root_fd)
        recipe_fd = os.open(recipe_path, _NEW_FILE, 0o600)
        opened.callback(os.close, recipe_fd)
        recipe = RecipeWriter(recipe_fd)
        stream = PlainInput(decompressed(blob), MOST_BYTES, recipe)
        unpacking = Unpacking(root_fd, recipe)
        unpacking.unpack(stream)
        _check_digests(blob, stream, blob_digest, diff_id)
        if not recipe.finish():
            os.unlink(recipe_path)
        recipe_bytes = os.fstat(recipe_fd).st_blocks * 512
        syncfs(root_fd)
    return {"size_bytes": unpacking.size_bytes + recipe_bytes, "inodes": unpacking.inodes + 1}


def _check_digests(blob: BlobInput, stream: PlainInput, blob_digest: str, diff_id: str) -> None:
    unpacked = stream.finish()
    while blob.read():
        pass
    if blob.digest != blob_digest:
        raise CorruptImage(f"the layer {blob_digest} has the digest {blob.digest}")
    if unpacked != diff_id:
        raise CorruptImage(f"the layer {diff_id} unpacks to the digest {unpacked}")


def main() -> None:
    """Unpack standard input; print what came of it. A bad layer is an answer, not a failure."""
    os.umask(0)
    answer: dict[str, int | str]
    try:
        answer = {**unpack_blob(0, *sys.argv[1:5])}
    except CorruptImage as error:
        answer = {"kind": "corrupt", "message": str(error)}
    except OSError as error:
        kind = "full" if error.errno in _FULL_DISK else "failed"
        answer = {"kind": kind, "message": str(error)}
    os.write(1, json.dumps(answer).encode())


if __name__ == "__main__":
    main()
