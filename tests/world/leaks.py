# SPDX-License-Identifier: Apache-2.0
"""What the host looks like, and what a test left behind on it.

A snapshot maps each kind of thing to the things there are: a key that names one thing for its
whole life, and a text for people. Leftovers are the keys of a later snapshot that an earlier one
lacks. The kernel frees some things late (a veth goes with its namespace), so `wait_clean` looks
again until a deadline.

On a host of its own a session answers for every new thing. While other sessions run beside it, or
with PYCRI_TEST_SHARED_HOST set, only for what carries its mark: its id in a name, or a path below
its folders.
"""

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from tests.world import session

NAME_PREFIX = "pct"
"""With the session's id after it: how names of links, tables and cgroups made by tests begin."""

Things = dict[str, str]
Snapshot = dict[str, Things]

STATE_GLOBS = ("/run/pycri*", "/var/lib/pycri*", "/run/netns", "/tmp/pycri*")


class Scope(msgspec.Struct, kw_only=True):
    """What belongs to this session, beyond its id.

    folders: all its files are below them. watched: folders whose entries are compared too.
    adopted: pids that a longer-lived fixture started and will end.
    """

    folders: tuple[str, ...]
    watched: set[str] = msgspec.field(default_factory=set)
    adopted: set[int] = msgspec.field(default_factory=set)

    @property
    def marks(self) -> tuple[str, ...]:
        """Words of which one is in the name of everything that is ours."""
        return (*self.folders, f"{NAME_PREFIX}{session.session_id}")


def read_mounts(_: Scope) -> Things:
    """Mounts of our namespace; the text has the options and the propagation."""
    things = {}
    with open("/proc/self/mountinfo") as table:
        for line in table:
            fields, source = line.split(" - ")
            mount_id, _parent, _device, root, point, *options = fields.split()
            # Options are part of the key: a mount made read-only or shared is a change left behind.
            things[f"{mount_id} {point} {options}"] = f"{point} {root} {options} {source.strip()}"
    return things


def read_links(_: Scope) -> Things:
    """Network links of our namespace."""
    return {f"{index} {name}": name for index, name in socket.if_nameindex()}


def read_cgroups(_: Scope) -> Things:
    """Groups of every mounted hierarchy."""
    with open("/proc/self/mountinfo") as table:
        mounts = [line.split() for line in table]
    roots = [words[4] for words in mounts if words[words.index("-") + 1].startswith("cgroup")]
    return {path: path for root in roots for path in _folders_below(root)}


def _folders_below(root: str) -> Iterator[str]:
    try:
        with os.scandir(root) as entries:
            folders = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):  # removed while we look
        return
    for folder in folders:
        yield folder
        yield from _folders_below(folder)


class _Process(msgspec.Struct, frozen=True):
    pid: int
    parent: int
    state: str
    started: str
    command: str


def _read_process(pid: int) -> _Process | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return None
    name, _, rest = stat.partition(" (")[2].rpartition(") ")
    fields = rest.split()
    return _Process(pid, int(fields[1]), fields[0], fields[19], command.strip() or f"[{name}]")


def _all_processes() -> dict[int, _Process]:
    pids = (int(name) for name in os.listdir("/proc") if name.isdigit())
    return {pid: found for pid in pids if (found := _read_process(pid)) is not None}


def _is_ours(process: _Process, everyone: dict[int, _Process], scope: Scope) -> bool:
    return _descends_from_us(process, everyone) or _carries_mark(process, scope)


def _descends_from_us(process: _Process, everyone: dict[int, _Process]) -> bool:
    current: _Process | None = process
    while current is not None:
        if current.parent == os.getpid():
            return True
        current = everyone.get(current.parent)
    return False


def _carries_mark(process: _Process, scope: Scope) -> bool:
    if any(folder in process.command for folder in scope.folders):
        return True
    with contextlib.suppress(OSError):
        variables = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
        if f"{session.MARK_VARIABLE}={session.session_id}".encode() in variables:
            return True
    with contextlib.suppress(OSError):
        if any(mark in Path(f"/proc/{process.pid}/cgroup").read_text() for mark in scope.marks):
            return True
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{process.pid}/cwd").startswith(scope.folders)
    return False


def _waits_for_work(process: _Process, everyone: dict[int, _Process]) -> bool:
    """Tell whether it is the child that a living spawner has ahead, or just had."""
    parent = everyone.get(process.parent)
    if parent is None or "pycri.spawner" not in parent.command:
        return False
    try:
        return Path(f"/proc/{process.pid}/comm").read_text() == "pycri-waiting\n"
    except OSError:
        return True


def read_processes(scope: Scope) -> Things:
    """Processes of this session, zombies too."""
    everyone = _all_processes()
    return {
        f"{process.pid} {process.started}": (
            f"pid {process.pid} ({process.state}, parent {process.parent}): {process.command[:120]}"
        )
        for process in everyone.values()
        if process.pid != os.getpid()
        and process.pid not in scope.adopted
        and _is_ours(process, everyone, scope)
        and not _waits_for_work(process, everyone)
    }


def read_network_namespaces(scope: Scope) -> Things:
    """Network namespaces but ours in which a process of this session is; pins are mounts."""
    everyone = _all_processes()
    ours = os.stat("/proc/self/ns/net").st_ino
    things = {}
    for process in everyone.values():
        with contextlib.suppress(OSError):
            inode = os.stat(f"/proc/{process.pid}/ns/net").st_ino
            if inode != ours and str(inode) not in things and _is_ours(process, everyone, scope):
                things[str(inode)] = f"net:[{inode}] of pid {process.pid}: {process.command[:80]}"
    return things


def read_tables(_: Scope) -> Things:
    """nftables tables."""
    try:
        listed = subprocess.run(
            ["nft", "list", "tables"], capture_output=True, text=True, check=True
        ).stdout
    except FileNotFoundError:
        return {}
    return {line: line for line in listed.splitlines()}


def read_sockets(scope: Scope) -> Things:
    """Unix sockets bound to paths of ours; a TCP listener has a process, which is looked for."""
    things = {}
    with open("/proc/net/unix") as table:
        for line in table:
            words = line.split()
            if len(words) == 8 and words[7].startswith((*scope.folders, "/run/pycri")):
                things[f"unix {words[6]} {words[7]}"] = f"unix {words[7]}"
    return things


def read_files(scope: Scope) -> Things:
    """Files of pycri in their default places, and entries of the watched folders."""
    found = [path for pattern in STATE_GLOBS for path in Path("/").glob(pattern.lstrip("/"))]
    folders = [str(path) for path in found if not str(path).startswith(scope.folders)]
    things = {folder: folder for folder in folders}
    for folder in [*folders, *scope.watched]:
        for parent, directories, files in os.walk(folder):
            things |= {f"{parent}/{name}": f"{parent}/{name}" for name in directories + files}
    return things


def read_descriptors(_: Scope) -> Things:
    """Open descriptors of this process."""
    things = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            target = os.readlink(f"/proc/self/fd/{name}")
            things[f"{name} {target}"] = f"descriptor {name} -> {target}"
    return things


READERS: dict[str, Callable[[Scope], Things]] = {
    "mount": read_mounts,
    "link": read_links,
    "cgroup": read_cgroups,
    "process": read_processes,
    "network namespace": read_network_namespaces,
    "nft table": read_tables,
    "socket": read_sockets,
    "file": read_files,
    "descriptor": read_descriptors,
}

ALWAYS_OURS = {"process", "network namespace", "descriptor"}
"""Kinds whose reader already returns only this session's things."""


def read_snapshot(scope: Scope, *, without: frozenset[str] = frozenset()) -> Snapshot:
    """Return what there is now, kind by kind, but for the kinds in `without`."""
    return {kind: read(scope) for kind, read in READERS.items() if kind not in without}


def find_leftovers(before: Snapshot, after: Snapshot, scope: Scope) -> list[str]:
    """Return a line for each thing of ours in `after` that `before` lacks."""
    alone = session.is_alone()
    return [
        f"{kind}: {text}"
        for kind, things in after.items()
        for key, text in things.items()
        if key not in before[kind] and (kind in ALWAYS_OURS or _answers_for(text, scope, alone))
    ]


def _answers_for(text: str, scope: Scope, alone: bool) -> bool:
    return alone or any(mark in text for mark in scope.marks)


def wait_clean(
    before: Snapshot, scope: Scope, *, timeout_s: float, without: frozenset[str] = frozenset()
) -> list[str]:
    """Return what is left over once nothing is, or after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        leftovers = find_leftovers(before, read_snapshot(scope, without=without), scope)
        if not leftovers or time.monotonic() > deadline:
            return leftovers
        time.sleep(0.02)
