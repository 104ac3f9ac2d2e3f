# SPDX-License-Identifier: Apache-2.0
"""Our tables of nftables in the kernel: the only user of the program `nft` (nft(8)).

Tables are written whole by the program: at start, when the ranges change, and when somebody else
has changed rules of this host. A pod adds and removes only its elements, by messages of our own
(<linux/netfilter/nf_tables.h>): 0.1 ms in place of a program's 3 (decision 0029).

The tables are ours alone, and no other is touched. A host whose own forward chains drop by default
must let the bridge through itself.
"""

import struct
import subprocess
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from pycri import errors
from pycri.config import NetworkSettings
from pycri.logs import Log
from pycri.model.ids import PodId
from pycri.model.ranges import Network
from pycri.network.attributes import attribute, nested, parse, parse_list, text
from pycri.network.ipam import Endpoint
from pycri.network.rules import (
    SETS,
    Element,
    Field,
    port_elements,
    render_removal,
    render_tables,
    sender_elements,
)
from pycri.network.sockets import CREATE, DUMP, NETLINK_NETFILTER, NetlinkSocket, Request

NFT_TIMEOUT_S: Final = 30.0

_BATCH_BEGIN, _BATCH_END = 16, 17
_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_NEWSETELEM, _GETSETELEM, _DELSETELEM, _GETGEN = (_SUBSYSTEM << 8 | n for n in (12, 13, 14, 16))
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS = 1, 2, 3
_ELEMENT, _KEY, _DATA, _VALUE = 1, 1, 2, 1
_GEN_ID = 1
_FAMILIES: Final = {"inet": 1, "bridge": 7}

_log = Log("network")


class Ruleset:
    """Our tables, and what is to be in them. For one thread; all calls block."""

    def __init__(
        self, settings: NetworkSettings, prefix: str, host_end: Callable[[PodId], str]
    ) -> None:
        """prefix: how host ends begin; host_end: the name of a pod's."""
        self._settings = settings
        self._prefix = prefix
        self._host_end = host_end
        self._socket: NetlinkSocket | None = None
        self._ranges: tuple[Network, ...] = ()
        self._endpoints: dict[PodId, Endpoint] = {}
        self._generation = 0

    @property
    def endpoints(self) -> list[Endpoint]:
        """Those that the tables are for."""
        return list(self._endpoints.values())

    def replace(self, ranges: Sequence[Network], endpoints: Sequence[Endpoint]) -> None:
        """Write the tables for pods of these ranges. Raises: Unavailable if nft fails."""
        self._ranges = tuple(ranges)
        self._endpoints = {endpoint.pod_id: endpoint for endpoint in endpoints}
        self._write()

    def set_ranges(self, ranges: Sequence[Network]) -> None:
        """Write the tables anew if the ranges have changed."""
        if tuple(ranges) != self._ranges:
            self._ranges = tuple(ranges)
            self._write()

    def add(self, endpoint: Endpoint) -> None:
        """Let the pod speak, and lead its host ports to it. Raises: Unavailable, OSError."""
        self._endpoints[endpoint.pod_id] = endpoint
        self._change(_NEWSETELEM, self._elements(endpoint))

    def close_ports(self, pod_id: PodId) -> None:
        """Let no host port lead to the pod any more; absent is fine."""
        endpoint = self._endpoints.get(pod_id)
        if endpoint is not None and endpoint.ports:
            self._endpoints[pod_id] = _without_ports(endpoint)
            self._change(_DELSETELEM, port_elements(endpoint))

    def remove(self, pod_ids: Sequence[PodId]) -> None:
        """Forget the pods; absent is fine."""
        endpoints = [self._endpoints.pop(pod_id, None) for pod_id in pod_ids]
        elements = [e for endpoint in endpoints if endpoint for e in self._elements(endpoint)]
        if elements:
            self._change(_DELSETELEM, elements)

    def restore(self) -> None:
        """Write the tables anew if any rule of this host was changed by others since."""
        if self._read_generation() != self._generation:
            self._write()

    def check(self) -> list[str]:
        """Return which elements are missing from the tables, and which are nobody's."""
        wanted = {
            (element.family, element.set, b"".join(field.data for field in element.key)): pod_id
            for pod_id, endpoint in self._endpoints.items()
            for element in self._elements(endpoint)
        }
        present = set()
        for family, name in SETS:
            try:
                keys = self._read_keys(family, name)
            except FileNotFoundError:
                return [f"the table {family} {self._settings.table} is not there, or not whole"]
            present |= {(family, name, key) for key in keys}
        lost = [(wanted[key], key[1]) for key in wanted.keys() - present]
        found = sorted(f"pod {pod}: rules lack its element in {name}" for pod, name in lost)
        strange = [name for _, name, _ in present - wanted.keys()]
        return found + sorted(f"an element in {name} is nobody's" for name in strange)

    def remove_tables(self) -> None:
        """Remove the tables, for good; absent is fine. Raises: Unavailable if nft fails."""
        self._endpoints.clear()  # what is freed from here on has no elements
        run_nft(render_removal(self._settings.table))

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _elements(self, endpoint: Endpoint) -> list[Element]:
        name = self._host_end(endpoint.pod_id)
        return [*sender_elements(endpoint, name), *port_elements(endpoint)]

    def _write(self) -> None:
        elements = [e for endpoint in self._endpoints.values() for e in self._elements(endpoint)]
        settings = self._settings
        run_nft(
            render_tables(settings.table, settings.bridge, self._prefix, self._ranges, elements)
        )
        self._generation = self._read_generation()

    def _change(self, kind: int, elements: Sequence[Element]) -> None:
        """Add or delete elements; if others have changed our tables, write them whole instead."""
        try:
            self._open().change(_batch(kind, self._settings.table, elements))
        except OSError as error:
            _log.warning("rules are not as they were left, written anew", reason=str(error))
            self._generation = -1  # if this fails, too, the next round tries again
            self._write()
            return
        # The number of one change is the next after that of the last, unless others came between.
        generation = self._read_generation()
        if generation == self._generation + 1:
            self._generation = generation

    def _read_generation(self) -> int:
        """Return the number of changes of all rules of this network namespace."""
        request = Request(_GETGEN, _header(0))
        (answer,) = self._open().ask(request)
        return int.from_bytes(parse(answer[4:])[_GEN_ID], "big")

    def _read_keys(self, family: str, name: str) -> list[bytes]:
        table = self._settings.table
        body = _header(_FAMILIES[family]) + text(_LIST_TABLE, table) + text(_LIST_SET, name)
        return [
            parse(parse(element)[_KEY])[_VALUE]
            for answer in self._open().ask(Request(_GETSETELEM, body, DUMP))
            for element in parse_list(parse(answer[4:])[_LIST_ELEMENTS], _ELEMENT)
        ]

    def _open(self) -> NetlinkSocket:
        if self._socket is None:
            self._socket = NetlinkSocket.open(NETLINK_NETFILTER)
        return self._socket


def run_nft(script: str, *, only_check: bool = False) -> None:
    """Run a script in one transaction, or only ask the kernel whether it would take it.

    Raises: Unavailable if nft is missing or refuses the script.
    """
    check = ["--check"] if only_check else []
    try:
        done = subprocess.run(
            ["nft", *check, "-f", "-"],
            input=script,
            text=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=NFT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise errors.Unavailable(f"the program nft (nftables) cannot run: {error}") from error
    if done.returncode != 0:
        complaint = done.stderr.strip()
        raise errors.Unavailable(f"nft failed with status {done.returncode}: {complaint}")


def _without_ports(endpoint: Endpoint) -> Endpoint:
    return msgspec.structs.replace(endpoint, ports=())


def _batch(kind: int, table: str, elements: Sequence[Element]) -> list[Request]:
    """Return the requests that change the elements together, or none of them."""
    sets: dict[tuple[str, str], list[bytes]] = {}
    for element in elements:
        encoded = nested(_ELEMENT, _value(_KEY, element.key), *_data(element))
        sets.setdefault((element.family, element.set), []).append(encoded)
    flags = CREATE if kind == _NEWSETELEM else 0
    requests = [
        Request(
            kind,
            _header(_FAMILIES[family])
            + text(_LIST_TABLE, table)
            + text(_LIST_SET, name)
            + nested(_LIST_ELEMENTS, *encoded),
            flags,
        )
        for (family, name), encoded in sets.items()
    ]
    border = _header(0, _SUBSYSTEM)
    return [
        Request(_BATCH_BEGIN, border, answered=False),
        *requests,
        Request(_BATCH_END, border, answered=False),
    ]


def _header(family: int, resource: int = 0) -> bytes:
    return struct.pack("!BBH", family, 0, resource)  # struct nfgenmsg


def _data(element: Element) -> list[bytes]:
    return [_value(_DATA, element.data)] if element.data else []


def _value(kind: int, fields: Sequence[Field]) -> bytes:
    return nested(kind, attribute(_VALUE, b"".join(field.data for field in fields)))
