# SPDX-License-Identifier: Apache-2.0
"""The short way from pod to pod, past the bridge (decision 0048).

Each pod's host end runs one program (`shortcut_program.py`) with two maps: who may send what, and
which port leads to which MAC. The kernel keeps them as long as a link runs the program, so pods do
not need the daemon. A new daemon begins with a new program and maps of its own.

The way is shut while the host's IP tables are to see what bridges carry (`br_netfilter`): no MAC
is in the map then. That is looked up whenever a pod is added or removed, and by each `refresh`.

Without it, on a kernel that lacks what it needs, packets take the bridge, as all others do.
"""

import contextlib
import errno
import os
import struct
from collections.abc import Collection, Iterable
from typing import Final

import msgspec

from pycri.kernel import bpf
from pycri.logs import Log
from pycri.model.ids import PodId
from pycri.network import classifiers, sysctls
from pycri.network.ipam import Endpoint
from pycri.network.netlink import Link, Netlink
from pycri.network.shortcut_program import (
    INDEX_BYTES,
    SENDER_BYTES,
    WAY_BYTES,
    assemble,
    sender_key,
    way_key,
)

ENTRIES: Final = 1 << 14
"""The most in each map. Pods beyond that take the bridge."""

_PROG_TYPE_SCHED_CLS = 3
_CALLS_IP_TABLES = ("net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables")

_log = Log("network")


class _Way(msgspec.Struct, frozen=True, kw_only=True):
    """What a pod has in the maps. index: of its host end."""

    index: int
    senders: tuple[bytes, ...]
    key: bytes


class Shortcut:
    """The program, its maps, and what is to be in them. For one thread; all calls block."""

    def __init__(self, host: Netlink) -> None:
        """Borrows `host`. Loads the program, if the kernel takes it."""
        self._host = host
        self._ways: dict[PodId, _Way] = {}
        self._open = False
        self._fds: list[int] = []
        self._program_fd: int | None = None
        try:
            self._senders_fd = self._keep(bpf.bpf_hash_create(SENDER_BYTES, INDEX_BYTES, ENTRIES))
            self._ways_fd = self._keep(bpf.bpf_hash_create(WAY_BYTES, INDEX_BYTES, ENTRIES))
            program = assemble(self._senders_fd, self._ways_fd)
            self._program_fd = self._keep(bpf.bpf_prog_load(_PROG_TYPE_SCHED_CLS, program))
        except OSError as error:
            self._do_without(error)

    def add(self, endpoint: Endpoint, index: int) -> None:
        """Let the pod whose host end this is send and receive by the short way."""
        if self._program_fd is None:
            return
        mac = bytes.fromhex(endpoint.mac.replace(":", ""))
        senders = tuple(sender_key(index, mac, address) for address in endpoint.addresses)
        self._ways[endpoint.pod_id] = way = _Way(index=index, senders=senders, key=way_key(mac))
        try:
            for sender in way.senders:
                bpf.bpf_map_update(self._senders_fd, sender, bytes(INDEX_BYTES))
            if self._open:
                self._lead_to(way)
        except OSError as error:  # the maps are full
            _log.warning("a pod takes the bridge", pod=endpoint.pod_id, reason=str(error))
        self._classify(index)
        self.look()

    def remove(self, pod_ids: Iterable[PodId]) -> None:
        """Forget pods whose links are gone; absent is fine."""
        for pod_id in pod_ids:
            way = self._ways.pop(pod_id, None)
            if way is not None:
                for sender in way.senders:
                    _delete(self._senders_fd, sender)
                self._lead_no_more_to(way)
        self.look()

    def look(self) -> None:
        """Open or shut the way, as the host asks for it now."""
        wanted = self._program_fd is not None and is_wanted()
        if wanted != self._open:
            self._open = wanted
            for way in self._ways.values():
                if wanted:
                    self._lead_to(way)
                else:
                    self._lead_no_more_to(way)

    def refresh(self) -> None:
        """Put right what others changed: the way's state, and links that lack the program."""
        self.look()
        for index in self._unclassified():
            self._classify(index)

    def check(self, links: Iterable[Link]) -> list[str]:
        """Return what is not as it is to be. links: all that are there."""
        if self._program_fd is None:
            return []
        lost = self._unclassified()
        found = [f"the link {link.name} lacks its program" for link in links if link.index in lost]
        if self._open != is_wanted():
            found.append("the short way between pods is not as the host asks for it")
        return found

    def close(self) -> None:
        """Let go of program and maps, which the links keep. Idempotent."""
        self._program_fd = None
        self._ways.clear()
        while self._fds:
            os.close(self._fds.pop())

    def _classify(self, index: int) -> None:
        if self._program_fd is None:
            return
        try:
            classifiers.classify(self._host, index, self._program_fd)
        except OSError as error:
            if error.errno != errno.ENODEV:  # its pod is going
                self._do_without(error)

    def _do_without(self, error: OSError) -> None:
        _log.info("no short way between pods: packets take the bridge", reason=str(error))
        self.close()

    def _unclassified(self) -> Collection[int]:
        if not self._ways:
            return ()
        have = classifiers.list_classified(self._host)
        return [way.index for way in self._ways.values() if way.index not in have]

    def _lead_to(self, way: _Way) -> None:
        bpf.bpf_map_update(self._ways_fd, way.key, struct.pack("=I", way.index))

    def _lead_no_more_to(self, way: _Way) -> None:
        _delete(self._ways_fd, way.key)

    def _keep(self, fd: int) -> int:
        self._fds.append(fd)
        return fd


def is_wanted() -> bool:
    """Tell whether no IP table of the host is to see what bridges carry."""
    return all(sysctls.read(name) in (None, "0") for name in _CALLS_IP_TABLES)


def _delete(map_fd: int, key: bytes) -> None:
    with contextlib.suppress(FileNotFoundError):
        bpf.bpf_map_delete(map_fd, key)
