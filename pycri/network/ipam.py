# SPDX-License-Identifier: Apache-2.0
"""Who has which pod address: rows of the table `addresses`, one a pod.

    (none) ──allocate──▶ held ──release──▶ releasing ──free──▶ (none)

A row is written before the address is used and freed only after the pod's link is gone, so no two
pods ever have one address. Addresses are given in turn, the next free one after the last given: a
freed address rests until the range has come round, as peers may still remember it.

The functions run inside `Database.transact`. The first address of a range is the gateway's, on the
bridge. Addresses are kept as numbers, whatever range they are from.
"""

import sqlite3
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Final

import msgspec

from pycri import errors
from pycri.model.ids import PodId
from pycri.state import records

LAST_GIVEN_KEY: Final = "address_last_given"


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """One row. releasing: the pod has given the address up, its link may still be there."""

    pod_id: PodId
    address: IPv4Address
    releasing: bool


def gateway_of(network: IPv4Network) -> IPv4Interface:
    """Return the address of the bridge in a range of at least four addresses."""
    return IPv4Interface((network.network_address + 1, network.prefixlen))


def allocate(
    connection: sqlite3.Connection, pod_id: PodId, network: IPv4Network
) -> IPv4Interface | None:
    """Give `pod_id` an address of `network`, or the one that it holds; None if all are given.

    Raises: WrongState if the pod is giving its address up.
    """
    query = "SELECT address, releasing FROM addresses WHERE pod_id = ?"
    row = connection.execute(query, (pod_id,)).fetchone()
    if row is None:
        number = _next_free(connection, network)
        if number is None:
            return None
        connection.execute("INSERT INTO addresses VALUES (?, ?, 0)", (number, pod_id))
        records.save_meta(connection, LAST_GIVEN_KEY, str(number))
        return IPv4Interface((number, network.prefixlen))
    if row[1]:
        raise errors.WrongState(f"the address of pod {pod_id} is being released")
    return IPv4Interface((row[0], network.prefixlen))


def release(connection: sqlite3.Connection, pod_id: PodId) -> bool:
    """Mark the pod's address as given up; return False if the pod has none."""
    query = "UPDATE addresses SET releasing = 1 WHERE pod_id = ?"
    return connection.execute(query, (pod_id,)).rowcount == 1


def free(connection: sqlite3.Connection, pod_ids: list[PodId]) -> None:
    """Make the pods' addresses available; their links are gone."""
    rows = [(pod_id,) for pod_id in pod_ids]
    connection.executemany("DELETE FROM addresses WHERE pod_id = ?", rows)


def load_leases(connection: sqlite3.Connection) -> list[Lease]:
    rows = connection.execute("SELECT pod_id, address, releasing FROM addresses")
    return [Lease(pod_id=p, address=IPv4Address(a), releasing=bool(r)) for p, a, r in rows]


def _next_free(connection: sqlite3.Connection, network: IPv4Network) -> int | None:
    first = int(network.network_address) + 2
    last = int(network.broadcast_address) - 1
    given = records.load_meta(connection, LAST_GIVEN_KEY)
    start = int(given) + 1 if given is not None else first
    if not first <= start <= last:
        start = first
    free = _free_from(connection, start, last)
    return free if free is not None else _free_from(connection, first, start - 1)


def _free_from(connection: sqlite3.Connection, first: int, last: int) -> int | None:
    """Return the lowest free number of first..last: `first`, or the one behind a given one."""
    row = connection.execute(
        "SELECT min(number) FROM"
        " (SELECT :first AS number"
        "  UNION ALL SELECT address + 1 FROM addresses WHERE address BETWEEN :first AND :last)"
        " WHERE number <= :last AND number NOT IN (SELECT address FROM addresses)",
        {"first": first, "last": last},
    ).fetchone()
    return None if row[0] is None else int(row[0])
