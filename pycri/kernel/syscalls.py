# SPDX-License-Identifier: Apache-2.0
"""System calls that the standard library lacks; those of bpf(2) are in `bpf.py`.

Prototypes are declared once, at import. A wrapper is one call plus `check`, arguments in the man
page's order. Every failure is an OSError whose `filename` is the path, where there is one.
Numbers are those of the unified table (asm-generic), the same on x86-64 and arm64.
"""

from __future__ import annotations

import ctypes  # noqa: TID251 - one of its homes
import enum
import errno
import os

from pycri.kernel.foreign import check, prototype, syscall

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_FSOPEN = 430
_SYS_FSCONFIG = 431
_SYS_FSMOUNT = 432
_SYS_OPENAT2 = 437
_SYS_MOUNT_SETATTR = 442

_int, _uint, _ulong, _char_p = ctypes.c_int, ctypes.c_uint, ctypes.c_ulong, ctypes.c_char_p
_size, _long, _void_p = ctypes.c_size_t, ctypes.c_long, ctypes.c_void_p

_unshare = prototype("unshare", _int, _int)
_setns = prototype("setns", _int, _int, _int)
_mount = prototype("mount", _int, _char_p, _char_p, _char_p, _ulong, _char_p)
_umount2 = prototype("umount2", _int, _char_p, _int)
_fstatfs = prototype("fstatfs", _int, _int, _void_p)
_syncfs = prototype("syncfs", _int, _int)
_madvise = prototype("madvise", _int, _void_p, _size, _int)
_tee = prototype("tee", ctypes.c_ssize_t, _int, _int, _size, _uint)
_prctl = prototype("prctl", _int, _int, _ulong, _ulong, _ulong, _ulong)
_sethostname = prototype("sethostname", _int, _char_p, _size)
_ioctl = prototype("ioctl", _int, _int, _ulong, _void_p)
_setfsuid = prototype("setfsuid", _int, _uint)
_setfsgid = prototype("setfsgid", _int, _uint)

_open_tree = syscall(_int, _char_p, _uint)
_move_mount = syscall(_int, _char_p, _int, _char_p, _uint)
_fsopen = syscall(_char_p, _uint)
_fsconfig = syscall(_int, _uint, _char_p, _char_p, _int)
_fsmount = syscall(_int, _uint, _uint)
_openat2 = syscall(_int, _char_p, _void_p, _size)
_mount_setattr = syscall(_int, _char_p, _uint, _void_p, _size)
_pivot_root = syscall(_char_p, _char_p)
_keyctl = syscall(_int, _ulong)
_ioprio_set = syscall(_int, _int, _int)
_seccomp = syscall(_uint, _uint, _void_p)
_capset = prototype("capset", _int, _void_p, _void_p)

_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}[os.uname().machine]
_SYS_KEYCTL = {"x86_64": 250, "aarch64": 219}[os.uname().machine]
_SYS_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}[os.uname().machine]
_SYS_SECCOMP = {"x86_64": 317, "aarch64": 277}[os.uname().machine]


class Clone(enum.IntFlag):
    """Namespace flags of unshare(2) and setns(2)."""

    NEWNS = 0x00020000
    NEWCGROUP = 0x02000000
    NEWUTS = 0x04000000
    NEWIPC = 0x08000000
    NEWUSER = 0x10000000
    NEWPID = 0x20000000
    NEWNET = 0x40000000


def unshare(flags: Clone) -> None:
    """unshare(2). Needs CAP_SYS_ADMIN."""
    check(_unshare(flags))


def setns(fd: int, flags: Clone) -> None:
    """setns(2): join the namespace, or those of a pidfd's process; borrows `fd`."""
    check(_setns(fd, flags))


class MountFlag(enum.IntFlag):
    """Flags of mount(2) that are used here."""

    RDONLY = 1
    NOSUID = 2
    NODEV = 4
    NOEXEC = 8
    BIND = 4096
    REC = 16384
    PRIVATE = 1 << 18
    SLAVE = 1 << 19
    SHARED = 1 << 20


def mount(source: str, target: str, filesystem: str, flags: MountFlag, data: str = "") -> None:
    """mount(2)."""
    result = _mount(
        os.fsencode(source), os.fsencode(target), os.fsencode(filesystem), flags, os.fsencode(data)
    )
    check(result, target)


MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8


def umount2(target: str, flags: int = 0) -> None:
    """umount(2) with flags."""
    check(_umount2(os.fsencode(target), flags), target)


OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC


def open_tree(dirfd: int, path: str, flags: int) -> int:
    """open_tree(2). Returns a descriptor of the (cloned) tree, caller closes."""
    return check(_open_tree(_SYS_OPEN_TREE, dirfd, os.fsencode(path), flags), path)


MOVE_MOUNT_F_EMPTY_PATH = 4
MOVE_MOUNT_T_EMPTY_PATH = 0x40


def move_mount(from_dirfd: int, from_path: str, to_dirfd: int, to_path: str, flags: int) -> None:
    """move_mount(2)."""
    source, target = os.fsencode(from_path), os.fsencode(to_path)
    check(_move_mount(_SYS_MOVE_MOUNT, from_dirfd, source, to_dirfd, target, flags), to_path)


def fsopen(filesystem: str) -> int:
    """fsopen(2), close-on-exec. Returns a file system context, caller closes."""
    return check(_fsopen(_SYS_FSOPEN, os.fsencode(filesystem), 1), filesystem)


class FsConfig(enum.IntEnum):
    """Commands of fsconfig(2)."""

    SET_FLAG = 0
    SET_STRING = 1
    CMD_CREATE = 6


def fsconfig(fd: int, command: FsConfig, key: str | None, value: str | None) -> None:
    """fsconfig(2); string values are limited to 255 bytes by the kernel."""
    encoded_key = None if key is None else os.fsencode(key)
    encoded_value = None if value is None else os.fsencode(value)
    check(_fsconfig(_SYS_FSCONFIG, fd, command, encoded_key, encoded_value, 0), key)


class MountAttr(enum.IntFlag):
    """Attributes of fsmount(2) and mount_setattr(2)."""

    RDONLY = 0x1
    NOSUID = 0x2
    NODEV = 0x4
    NOEXEC = 0x8
    IDMAP = 0x00100000


def fsmount(fd: int, attributes: MountAttr) -> int:
    """fsmount(2), close-on-exec. Returns a detached mount, caller closes."""
    return check(_fsmount(_SYS_FSMOUNT, fd, 1, attributes))


class _MountAttributes(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def mount_setattr(
    dirfd: int,
    path: str,
    flags: int,
    attributes: MountAttr,
    propagation: MountFlag,
    cleared: MountAttr = MountAttr(0),  # noqa: B008 - an immutable number
) -> None:
    """mount_setattr(2): set and clear attributes, set a propagation type (0 leaves it)."""
    _change_mount(dirfd, path, flags, _MountAttributes(attributes, cleared, propagation, 0))


def mount_setattr_idmap(dirfd: int, path: str, flags: int, userns_fd: int) -> None:
    """mount_setattr(2) with MOUNT_ATTR_IDMAP: show ids as that user namespace maps them; borrows
    `userns_fd`. EINVAL: the file system cannot; EPERM: the mount has a map already."""
    _change_mount(dirfd, path, flags, _MountAttributes(MountAttr.IDMAP, 0, 0, userns_fd))


def _change_mount(dirfd: int, path: str, flags: int, change: _MountAttributes) -> None:
    encoded, size = os.fsencode(path), ctypes.sizeof(change)
    change_ref = ctypes.byref(change)
    check(_mount_setattr(_SYS_MOUNT_SETATTR, dirfd, encoded, flags, change_ref, size), path)


class _Statfs(ctypes.Structure):
    # struct statfs of 64-bit Linux: f_type is its first word, 120 bytes in all
    _fields_ = (("f_type", _long), ("rest", _long * 14))


PROC_SUPER_MAGIC = 0x9FA0


def filesystem_type(fd: int) -> int:
    """fstatfs(2): the magic number of the file system that `fd` lies on, such as
    PROC_SUPER_MAGIC; borrows `fd`, which may be an O_PATH one."""
    status = _Statfs()
    check(_fstatfs(fd, ctypes.byref(status)))
    return int(status.f_type)


class Resolve(enum.IntFlag):
    """Flags of openat2(2)."""

    NO_MAGICLINKS = 0x02
    NO_SYMLINKS = 0x04
    BENEATH = 0x08
    IN_ROOT = 0x10


_KEYCTL_JOIN_SESSION_KEYRING = 1


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def openat2(dirfd: int, path: str, flags: int, mode: int, resolve: Resolve) -> int:
    """openat2(2). Returns a descriptor, caller closes; O_CLOEXEC must be asked for."""
    how = _OpenHow(flags, mode, resolve)
    result = _openat2(_SYS_OPENAT2, dirfd, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how))
    return check(result, path)


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2)."""
    check(_pivot_root(_SYS_PIVOT_ROOT, os.fsencode(new_root), os.fsencode(put_old)), new_root)


def join_session_keyring() -> None:
    """keyctl(2) KEYCTL_JOIN_SESSION_KEYRING without a name: a new, empty one."""
    check(_keyctl(_SYS_KEYCTL, _KEYCTL_JOIN_SESSION_KEYRING, 0))


def sethostname(name: str) -> None:
    """sethostname(2), in the caller's uts namespace."""
    encoded = os.fsencode(name)
    check(_sethostname(encoded, len(encoded)))


def syncfs(fd: int) -> None:
    """syncfs(2): write back the whole file system that `fd` is on; borrows it."""
    check(_syncfs(fd))


_IOPRIO_WHO_PROCESS = 1


def madvise(start: int, length: int, advice: int) -> None:
    """Tell the kernel what to do about memory of the caller's."""
    check(_madvise(start, length, advice))


def ioprio_set(priority: int) -> None:
    """ioprio_set(2) of the calling thread: class << 13 | level."""
    check(_ioprio_set(_SYS_IOPRIO_SET, _IOPRIO_WHO_PROCESS, 0, priority))


SPLICE_F_NONBLOCK = 2


def tee(fd_in: int, fd_out: int, length: int, flags: int) -> int:
    """tee(2): duplicate up to `length` bytes between pipes. Returns how many."""
    return check(_tee(fd_in, fd_out, length, flags))


def prctl(option: int, arg2: int = 0, arg3: int = 0) -> int:
    """prctl(2), for the options python-prctl does not know."""
    return check(_prctl(option, arg2, arg3, 0, 0))


def setfsuid(uid: int) -> None:
    """setfsuid(2). It cannot fail but by doing nothing, so it is asked again."""
    _setfsuid(uid)
    if _setfsuid(uid) != uid:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def setfsgid(gid: int) -> None:
    """setfsgid(2), likewise."""
    _setfsgid(gid)
    if _setfsgid(gid) != gid:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", _int))


class _CapabilityData(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


# Declared once: making a type takes a child longer than the call.
_CapabilitySets = _CapabilityData * 2


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """capset(2) of the calling thread; the sets are bit masks of 64 bits."""
    header = _CapabilityHeader(0x20080522, 0)
    halves = (
        _CapabilityData(
            *(mask >> shift & 0xFFFFFFFF for mask in (effective, permitted, inheritable))
        )
        for shift in (0, 32)
    )
    data = _CapabilitySets(*halves)
    check(_capset(ctypes.byref(header), data))


class _SockFprog(ctypes.Structure):
    # struct sock_fprog, linux/filter.h
    _fields_ = (("len", ctypes.c_ushort), ("filter", _char_p))


_SECCOMP_SET_MODE_FILTER = 1


def seccomp_set_filter(flags: int, instructions: bytes) -> int:
    """seccomp(2) SECCOMP_SET_MODE_FILTER. Returns 0, or with the flag NEW_LISTENER a descriptor."""
    program = _SockFprog(len(instructions) // 8, instructions)
    return check(_seccomp(_SYS_SECCOMP, _SECCOMP_SET_MODE_FILTER, flags, ctypes.byref(program)))


class _PidfdInfo(ctypes.Structure):
    # struct pidfd_info, include/uapi/linux/pidfd.h, size 64 (PIDFD_INFO_SIZE_VER0)
    _fields_ = (
        ("mask", ctypes.c_uint64),
        ("cgroupid", ctypes.c_uint64),
        ("pid", ctypes.c_uint32),
        ("tgid", ctypes.c_uint32),
        ("ppid", ctypes.c_uint32),
        ("ids", ctypes.c_uint32 * 8),
        ("exit_code", ctypes.c_int32),
    )


_PIDFD_GET_INFO = 0xC0000000 | (ctypes.sizeof(_PidfdInfo) << 16) | (0xFF << 8) | 11
_PIDFD_INFO_EXIT = 1 << 3


def pidfd_exit_status(pidfd: int) -> int | None:
    """Return the wait status of an ended process that somebody else has reaped.

    None when the kernel does not say: the process still runs, is not reaped yet, or Linux < 6.15.
    Source: ioctl PIDFD_GET_INFO with PIDFD_INFO_EXIT, include/uapi/linux/pidfd.h.
    """
    info = _PidfdInfo(mask=_PIDFD_INFO_EXIT)
    check(_ioctl(pidfd, _PIDFD_GET_INFO, ctypes.byref(info)))
    return int(info.exit_code) if info.mask & _PIDFD_INFO_EXIT else None
