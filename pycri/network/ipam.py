# SPDX-License-Identifier: Apache-2.0
"""Who has which addresses, MAC and host ports: one endpoint a pod, in three tables.

    (none) ──allocate──▶ held ──release──▶ releasing ──free──▶ (none)

Rows are written before what they say is used. Host ports are free as soon as their rules are gone
(`free_ports`), addresses and the MAC only after the pod's link is: so no two pods ever have one
address. Addresses are given in turn, the next free one after the last given: a freed address rests
until the range has come round, as peers may still remember it.

The functions run inside `Database.transact`. The first address of a range is the bridge's.
"""

import secrets
import sqlite3
from collections.abc import Collection, Sequence
from ipaddress import ip_address
from typing import Final

import msgspec

from pycri import errors
from pycri.model.ids import PodId
from pycri.model.pod import PortMapping, Protocol
from pycri.model.ranges import Address, Network, bounds_of, gateway_of, mac_of, owns
from pycri.network import annotations, hostports
from pycri.state import records

LAST_GIVEN_KEY: Final = "address_last_given"


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What a pod is to have. addresses, mac: that it insists on; none: any will do."""

    addresses: tuple[Address, ...] = ()
    mac: str = ""
    ports: tuple[PortMapping, ...] = ()


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """What a pod has. releasing: it has given all up, its link may still be there."""

    pod_id: PodId
    mac: str
    addresses: tuple[Address, ...]
    ports: tuple[PortMapping, ...] = ()
    releasing: bool = False


class NotFree(errors.OutOfResources):
    """What is asked for is taken, but may be on its way back."""


def allocate(
    connection: sqlite3.Connection,
    pod_id: PodId,
    wish: Wish,
    ranges: Sequence[Network],
    spare: Collection[PodId] = (),
) -> Endpoint:
    """Give `pod_id` an address of each range, a MAC and its host ports.

    spare: pods that are not there yet; what they have can be had back.
    Raises: NotFree; AlreadyExists if another pod has an address, the MAC or a port that it insists
        on; InvalidRequest if such an address is of no range; WrongState if it has an endpoint.
    """
    if connection.execute("SELECT 1 FROM endpoints WHERE pod_id = ?", (pod_id,)).fetchone():
        raise errors.WrongState(f"pod {pod_id} has a network already")
    _check_ports(connection, wish.ports, frozenset(network.version for network in ranges))
    addresses = _choose_addresses(connection, wish.addresses, ranges, spare)
    if wish.mac in {mac_of(gateway_of(network).ip) for network in ranges}:
        field = annotations.field_of(annotations.MAC)
        raise errors.InvalidRequest(field, f"{wish.mac} is the bridge's")
    mac = _choose_mac(connection, wish.mac, addresses[0], spare)
    connection.execute("INSERT INTO endpoints VALUES (?, ?, 0)", (pod_id, mac))
    rows = [(address.version, address.packed, pod_id) for address in addresses]
    connection.executemany("INSERT INTO addresses VALUES (?, ?, ?)", rows)
    _save_ports(connection, pod_id, wish.ports)
    return Endpoint(pod_id=pod_id, mac=mac, addresses=addresses, ports=wish.ports)


def add_ports(
    connection: sqlite3.Connection, endpoint: Endpoint, ports: Sequence[PortMapping]
) -> Endpoint:
    """Give the endpoint's pod host ports, of which it has none. Raises: as `allocate`."""
    _check_ports(connection, ports, frozenset(address.version for address in endpoint.addresses))
    _save_ports(connection, endpoint.pod_id, ports)
    return msgspec.structs.replace(endpoint, ports=tuple(ports))


def release(connection: sqlite3.Connection, pod_id: PodId) -> Endpoint | None:
    """Mark the pod's endpoint as given up and return it; None if the pod has none."""
    connection.execute("UPDATE endpoints SET releasing = 1 WHERE pod_id = ?", (pod_id,))
    return next(iter(load_endpoints(connection, pod_id)), None)


def free_ports(connection: sqlite3.Connection, pod_id: PodId) -> None:
    """Make the pod's host ports available; nothing leads from them any more."""
    connection.execute("DELETE FROM host_ports WHERE pod_id = ?", (pod_id,))


def free(connection: sqlite3.Connection, pod_ids: Sequence[PodId]) -> None:
    """Make all available that the pods had; their links are gone."""
    rows = [(pod_id,) for pod_id in pod_ids]
    for table in ("host_ports", "addresses", "endpoints"):
        connection.executemany(f"DELETE FROM {table} WHERE pod_id = ?", rows)  # noqa: S608


def load_endpoints(connection: sqlite3.Connection, pod_id: PodId | None = None) -> list[Endpoint]:
    """Return all endpoints, or that of one pod; of its addresses IPv4 comes first."""
    where, what = ("WHERE pod_id = ?", (pod_id,)) if pod_id is not None else ("", ())
    addresses: dict[str, list[Address]] = {}
    query = f"SELECT pod_id, address FROM addresses {where} ORDER BY version"  # noqa: S608
    for owner, packed in connection.execute(query, what):
        addresses.setdefault(owner, []).append(ip_address(packed))
    ports: dict[str, list[PortMapping]] = {}
    query = f"SELECT * FROM host_ports {where}"  # noqa: S608
    for protocol, host_port, host_ip, container_port, owner in connection.execute(query, what):
        mapping = PortMapping(
            protocol=Protocol(protocol),
            host_port=host_port,
            host_ip=host_ip,
            container_port=container_port,
        )
        ports.setdefault(owner, []).append(mapping)
    query = f"SELECT pod_id, mac, releasing FROM endpoints {where}"  # noqa: S608
    return [
        Endpoint(
            pod_id=owner,
            mac=mac,
            addresses=tuple(addresses.get(owner, ())),
            ports=tuple(ports.get(owner, ())),
            releasing=bool(releasing),
        )
        for owner, mac, releasing in connection.execute(query, what)
    ]


def _save_ports(
    connection: sqlite3.Connection, pod_id: PodId, ports: Sequence[PortMapping]
) -> None:
    rows = [(p.protocol.value, p.host_port, p.host_ip, p.container_port, pod_id) for p in ports]
    connection.executemany("INSERT INTO host_ports VALUES (?, ?, ?, ?, ?)", rows)


def _check_ports(
    connection: sqlite3.Connection, ports: Sequence[PortMapping], versions: frozenset[int]
) -> None:
    hostports.check_families(ports, versions)
    for mapping in ports:
        _check_port(connection, mapping)


def _check_port(connection: sqlite3.Connection, wanted: PortMapping) -> None:
    rows = connection.execute(
        "SELECT host_ip, pod_id FROM host_ports WHERE protocol = ? AND host_port = ?",
        (wanted.protocol.value, wanted.host_port),
    )
    for host_ip, pod_id in rows:
        taken = msgspec.structs.replace(wanted, host_ip=host_ip)
        if hostports.exclude(wanted, taken):
            raise errors.AlreadyExists(
                f"host port {hostports.name_of(wanted)}: pod {pod_id} has"
                f" {hostports.name_of(taken)}"
            )


def _choose_addresses(
    connection: sqlite3.Connection,
    wanted: Sequence[Address],
    ranges: Sequence[Network],
    spare: Collection[PodId],
) -> tuple[Address, ...]:
    insisted = {address.version: address for address in wanted}
    chosen = []
    for network in ranges:
        address = insisted.pop(network.version, None)
        if address is None:
            chosen.append(_next_free(connection, network))
        else:
            _check_address(connection, address, network, spare)
            chosen.append(address)
    for address in insisted.values():
        field = annotations.field_of(annotations.ADDRESSES)
        raise errors.InvalidRequest(field, f"{address}: pods have no IPv{address.version} range")
    return tuple(chosen)


def _check_address(
    connection: sqlite3.Connection, address: Address, network: Network, spare: Collection[PodId]
) -> None:
    if not owns(network, address):
        field = annotations.field_of(annotations.ADDRESSES)
        raise errors.InvalidRequest(field, f"{address} is not for a pod of the range {network}")
    row = connection.execute(
        "SELECT pod_id, releasing FROM addresses JOIN endpoints USING (pod_id)"
        " WHERE version = ? AND address = ?",
        (address.version, address.packed),
    ).fetchone()
    _refuse_taken(str(address), row, spare)


def _choose_mac(
    connection: sqlite3.Connection, wanted: str, address: Address, spare: Collection[PodId]
) -> str:
    mac = wanted or mac_of(address)
    query = "SELECT pod_id, releasing FROM endpoints WHERE mac = ?"
    row = connection.execute(query, (mac,)).fetchone()
    if wanted:
        _refuse_taken(wanted, row, spare)
    elif row is not None:
        # Another pod insisted on it: then any of the locally administered ones.
        mac = f"0a:58:{secrets.token_bytes(4).hex(':')}"
    return mac


def _refuse_taken(what: str, row: tuple[PodId, int] | None, spare: Collection[PodId]) -> None:
    if row is None:
        return
    if row[0] in spare:
        raise NotFree(f"{what} is kept ready for a pod to come")
    if row[1]:
        raise NotFree(f"{what} is still being released by pod {row[0]}")
    raise errors.AlreadyExists(f"{what} is pod {row[0]}'s")


def _next_free(connection: sqlite3.Connection, network: Network) -> Address:
    first, last = bounds_of(network)
    key = f"{LAST_GIVEN_KEY}_{network.version}"
    given = records.load_meta(connection, key)
    start = first
    if given is not None and owns(network, ip_address(given)):
        start = ip_address(given) + 1
    found = _free_from(connection, start, last) or _free_from(connection, first, last)
    if found is None:
        raise NotFree(f"all pod addresses of {network} are in use")
    records.save_meta(connection, key, str(found))
    return found


def _free_from(connection: sqlite3.Connection, first: Address, last: Address) -> Address | None:
    """Return the lowest free address of first..last: `first`, or the one behind a given one."""
    taken = connection.execute(
        "SELECT address FROM addresses WHERE version = ? AND address BETWEEN ? AND ?"
        " ORDER BY address",
        (first.version, first.packed, last.packed),
    )
    for (packed,) in taken:
        if packed != first.packed:
            break
        first += 1
    return first if int(first) <= int(last) else None
