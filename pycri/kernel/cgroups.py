# SPDX-License-Identifier: Apache-2.0
"""What both versions of control groups share: write, list, remove (cgroups(7))."""

import errno
import os
from contextlib import suppress


def write(path: str, value: str) -> None:
    """Write one control file. The OSError names the file.

    Three system calls; a file object would make six, and these are the most frequent ones we make.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(fd)


def read(path: str) -> str:
    """Return a control file's content without the newline at its end."""
    with open(path) as file:
        return file.read().rstrip("\n")


def read_numbers(path: str) -> dict[str, int]:
    """Return a flat-keyed file of numbers ("cgroup-v2.rst", Format); {} when it is missing."""
    try:
        lines = read(path).splitlines()
    except FileNotFoundError:
        return {}
    return {key: int(value) for key, _, value in (line.partition(" ") for line in lines)}


def processes(directory: str) -> list[int]:
    """Return the pids in the group and all groups below it; a missing group has none."""
    pids: list[int] = []
    for folder, _, _ in os.walk(directory):
        try:
            with open(f"{folder}/cgroup.procs") as file:
                pids += [int(line) for line in file]
        except OSError:
            # ENODEV: the group was removed between the walk and the read.
            continue
    return pids


def move_processes(directory: str, target: str) -> int:
    """Move the processes of a group, not of those below it, to another. Returns how many; a
    missing group has none."""
    try:
        with open(f"{directory}/cgroup.procs") as file:
            pids = file.read().split()
    except OSError:
        return 0
    moved = 0
    for pid in pids:
        # ESRCH: it has ended meanwhile.
        with suppress(ProcessLookupError):
            write(f"{target}/cgroup.procs", pid)
            moved += 1
    return moved


def remove(directory: str) -> bool:
    """Remove the group and all below it; absent is fine. False while a process is in it."""
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        return True
    except OSError:
        # EBUSY: a process is in it, or there are groups below.
        return _remove_below(directory)
    return True


def _remove_below(directory: str) -> bool:
    for folder, _, _ in os.walk(directory, topdown=False):
        try:
            os.rmdir(folder)
        except FileNotFoundError:
            continue
        except OSError:
            return False
    return True


def read_counter(path: str, key: str) -> int:
    """Return the number behind `key` in a flat-keyed file, 0 when file or key is missing."""
    try:
        with open(path) as file:
            for line in file:
                name, _, value = line.partition(" ")
                if name == key:
                    return int(value)
    except OSError as error:
        # ENODEV: the group was removed since the file was opened.
        if error.errno not in (errno.ENOENT, errno.ENODEV):
            raise
    return 0
