# SPDX-License-Identifier: Apache-2.0
"""What containers have written to their own layers: bytes and inodes, kept up to date by walks.

A thread walks the writable layers one after the other, all of them every ROUND_S, and rests after
every few entries: at most about STRIDE / REST_S entries a second, and one that took long is left
alone for REST_FACTOR times as long. So however much containers write, the walks take a small part
of one CPU, and calls answer from memory. A layer that cannot change any more is walked once more.

The thread has no lower priority of its own: with the interpreter's lock in its hands it would make
the daemon wait for as long as busy neighbours make it wait (decision 0033).
"""

import asyncio
import contextlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import msgspec

from pycri.kernel.counters import device_name
from pycri.kernel.syscalls import Resolve, openat2
from pycri.logs import Log
from pycri.model.container import ContainerRecord, ContainerState
from pycri.model.ids import ContainerId
from pycri.model.image import FilesystemUsage
from pycri.model.stats import Capacity
from pycri.pods.catalogue import Catalogue
from pycri.pods.layout import Layout

_log = Log("usage")

ROUND_S = 10.0
STRIDE = 200
REST_S = 0.004
REST_FACTOR = 20
LONGEST_PATH = 3000
"""Deeper folders are opened from one on the way: the kernel takes paths of 4096 characters."""
MOST_ANCHORS = 64
MOST_PENDING = 100_000
MOST_LINKS = 100_000

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_BENEATH = Resolve.BENEATH | Resolve.NO_SYMLINKS


class Walked(msgspec.Struct):
    """What a walk found. whole: False if a bound cut it short; then there is at least this."""

    used_bytes: int = 0
    inodes: int = 0
    whole: bool = True


class _Measured(msgspec.Struct, frozen=True):
    usage: FilesystemUsage
    state: ContainerState
    not_before_s: float


class _Closing(Exception):
    """The walk is to end at once."""


class LayerUsage:
    """The usage of every container's writable layer. Answers from memory."""

    def __init__(self, catalogue: Catalogue, layout: Layout) -> None:
        self._catalogue = catalogue
        self._layout = layout
        self._capacity: Capacity | None = None
        self._measured: dict[ContainerId, _Measured] = {}
        self._since_ns = time.time_ns()
        self._thread = ThreadPoolExecutor(1, "layers")
        self._closing = False

    def of(self, container: ContainerRecord) -> FilesystemUsage | None:
        """Return what is known; None for one of an earlier daemon that is not walked yet."""
        measured = self._measured.get(container.id)
        if measured is not None:
            return measured.usage
        if container.created_ns < self._since_ns:
            return None
        # It was empty when it was made, and nobody has looked since.
        return self._usage(container, Walked(inodes=1), container.created_ns)

    def total(self) -> tuple[int, int]:
        """Return the bytes and inodes of all writable layers, as far as they are known."""
        known = [usage for c in self._catalogue.containers() if (usage := self.of(c))]
        return sum(u.used_bytes for u in known), sum(u.inodes_used for u in known)

    def capacity(self) -> Capacity | None:
        """Return what the layers' file system holds; None before the first round."""
        return self._capacity

    async def watch(self) -> None:
        """Walk for as long as the daemon runs."""
        loop = asyncio.get_running_loop()
        while True:
            started_s = time.monotonic()
            await loop.run_in_executor(self._thread, self._measure_all, self._due(started_s))
            self._forget_removed()
            await asyncio.sleep(max(0.0, started_s + ROUND_S - time.monotonic()))

    def close(self) -> None:
        """End the walk under way."""
        self._closing = True
        self._thread.shutdown()

    def _due(self, now_s: float) -> list[ContainerRecord]:
        return [c for c in self._catalogue.containers() if self._is_due(c, now_s)]

    def _is_due(self, container: ContainerRecord, now_s: float) -> bool:
        measured = self._measured.get(container.id)
        if measured is None:
            return True
        if container.state is measured.state is not ContainerState.RUNNING:
            return False
        return now_s >= measured.not_before_s

    def _measure_all(self, containers: list[ContainerRecord]) -> None:
        self._capacity = self._read_capacity()
        for container in containers:
            if self._closing:
                return
            self._measure(container)

    def _measure(self, container: ContainerRecord) -> None:
        started_s, now_ns = time.monotonic(), time.time_ns()
        try:
            walked = walk(f"{self._layout.container(container.id)}/upper", self._rest)
        except (FileNotFoundError, _Closing):
            return  # removed meanwhile, or the daemon stops
        except OSError as error:
            _log.warning("layer cannot be measured", container=container.id, error=str(error))
            return
        if not walked.whole:
            _log.warning("layer has more than is counted", container=container.id)
        took_s = time.monotonic() - started_s
        self._measured[container.id] = _Measured(
            self._usage(container, walked, now_ns),
            container.state,
            started_s + REST_FACTOR * took_s,
        )

    def _read_capacity(self) -> Capacity:
        status = os.statvfs(self._layout.containers)
        number = os.stat(self._layout.containers).st_dev
        return Capacity(
            device=device_name(f"{os.major(number)}:{os.minor(number)}"),
            size_bytes=status.f_blocks * status.f_frsize,
            inodes=status.f_files,
            free_inodes=status.f_favail,
        )

    def _rest(self) -> None:
        if self._closing:
            raise _Closing
        time.sleep(REST_S)

    def _usage(
        self, container: ContainerRecord, walked: Walked, timestamp_ns: int
    ) -> FilesystemUsage:
        return FilesystemUsage(
            timestamp_ns=timestamp_ns,
            mountpoint=self._layout.container(container.id),
            used_bytes=walked.used_bytes,
            inodes_used=walked.inodes,
        )

    def _forget_removed(self) -> None:
        for container_id in list(self._measured):
            if not self._catalogue.has_container(container_id):
                del self._measured[container_id]


def walk(folder: str, rest: Callable[[], None]) -> Walked:
    """Count what is in `folder` and below, itself included; a file with several names once.

    Safe beside whoever changes the tree: no link is followed, nothing beside it is entered.
    rest: called after every STRIDE entries. Raises: OSError if `folder` is not there.
    """
    found = Walked()
    links: set[int] = set()
    with contextlib.closing(_Tree(folder)) as tree:
        for entry in tree.entries():
            if entry.st_nlink > 1 and not stat.S_ISDIR(entry.st_mode):
                if entry.st_ino in links:
                    continue
                if len(links) < MOST_LINKS:
                    links.add(entry.st_ino)
            found.used_bytes += entry.st_blocks * 512
            found.inodes += 1
            if found.inodes % STRIDE == 0:
                rest()
        found.whole = not tree.cut_short
    return found


class _Tree:
    """The folders still to be listed: (an open folder, a path beneath it)."""

    def __init__(self, folder: str) -> None:
        self._anchors = [os.open(folder, _FOLDER)]
        self._pending = [(self._anchors[0], ".")]
        self.cut_short = False

    def close(self) -> None:
        for fd in self._anchors:
            os.close(fd)

    def entries(self) -> Iterator[os.stat_result]:
        """Yield the status of the folder and of all below."""
        yield os.fstat(self._anchors[0])
        while self._pending and not self.cut_short:
            anchor, path = self._pending.pop()
            try:
                opened = openat2(anchor, path, _FOLDER, 0, _BENEATH)
            except OSError:
                continue  # gone meanwhile, or not a folder any more
            if len(path) > LONGEST_PATH and len(self._anchors) < MOST_ANCHORS:
                self._anchors.append(opened)
                yield from self._list(opened, opened, ".")
                continue
            try:
                yield from self._list(opened, anchor, path)
            finally:
                os.close(opened)

    def _list(self, fd: int, anchor: int, path: str) -> Iterator[os.stat_result]:
        """Yield the status of what is in the folder `fd`, which is at `path` beneath `anchor`."""
        for name, status in _scan(fd):
            yield status
            if stat.S_ISDIR(status.st_mode):
                self._pending.append((anchor, f"{path}/{name}"))
        self.cut_short = len(self._pending) > MOST_PENDING or len(path) > LONGEST_PATH


def _scan(fd: int) -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(fd) as entries:
        for entry in entries:
            try:
                yield entry.name, entry.stat(follow_symlinks=False)
            except OSError:
                continue  # removed since it was listed
