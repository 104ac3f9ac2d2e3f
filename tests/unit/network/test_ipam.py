# SPDX-License-Identifier: Apache-2.0
import sqlite3
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycri import errors
from pycri.model.ids import PodId
from pycri.network import ipam
from pycri.state.database import migrate

RANGE = IPv4Network("10.88.0.0/29")
"""Six hosts: the gateway .1 and pods .2 to .6."""


def _connect() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    migrate(connection, Path(":memory:"))
    return connection


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    connection = _connect()
    yield connection
    connection.close()


def _allocate(connection: sqlite3.Connection, pod: str, network: IPv4Network = RANGE) -> str | None:
    address = ipam.allocate(connection, PodId(pod), network)
    return None if address is None else str(address)


def test_addresses_are_given_in_turn_from_behind_the_gateway(
    connection: sqlite3.Connection,
) -> None:
    given = [_allocate(connection, str(n)) for n in range(6)]
    assert given == [*(f"10.88.0.{n}/29" for n in range(2, 7)), None]
    assert str(ipam.gateway_of(RANGE)) == "10.88.0.1/29"


def test_a_pod_that_asks_again_gets_the_address_it_holds(connection: sqlite3.Connection) -> None:
    assert _allocate(connection, "a") == _allocate(connection, "a")
    assert len(ipam.load_leases(connection)) == 1


def test_a_freed_address_rests_until_the_range_has_come_round(
    connection: sqlite3.Connection,
) -> None:
    _allocate(connection, "a")
    _allocate(connection, "b")
    ipam.free(connection, [PodId("a"), PodId("b")])
    assert [_allocate(connection, str(n)) for n in range(4)] == [
        f"10.88.0.{n}/29" for n in (4, 5, 6, 2)
    ]


def test_an_address_on_its_way_back_is_not_given(connection: sqlite3.Connection) -> None:
    for n in range(5):
        _allocate(connection, str(n))
    assert ipam.release(connection, PodId("3"))
    assert _allocate(connection, "new") is None
    with pytest.raises(errors.WrongState):
        _allocate(connection, "3")
    ipam.free(connection, [PodId("3")])
    assert _allocate(connection, "new") == "10.88.0.5/29"


def test_releasing_an_unknown_pod_says_so(connection: sqlite3.Connection) -> None:
    assert not ipam.release(connection, PodId("a"))


def test_another_range_starts_at_its_own_first_address(connection: sqlite3.Connection) -> None:
    _allocate(connection, "a")
    assert _allocate(connection, "b", IPv4Network("10.244.1.0/24")) == "10.244.1.2/24"
    assert [lease.address for lease in ipam.load_leases(connection)] == [
        IPv4Address("10.88.0.2"),
        IPv4Address("10.244.1.2"),
    ]


@given(st.lists(st.tuples(st.sampled_from("adr"), st.integers(0, 9)), max_size=40))
def test_no_two_pods_have_one_address_and_none_is_given_while_free_ones_are_left(
    actions: list[tuple[str, int]],
) -> None:
    connection = _connect()
    try:
        for action, number in actions:
            leases = {lease.pod_id: lease for lease in ipam.load_leases(connection)}
            pod = PodId(str(number))
            if action == "r":
                assert ipam.release(connection, pod) == (pod in leases)
            elif action == "d":
                ipam.free(connection, [pod])
            elif pod not in leases or not leases[pod].releasing:
                assert (_allocate(connection, pod) is None) == (
                    pod not in leases and len(leases) == 5
                )
            addresses = [lease.address for lease in ipam.load_leases(connection)]
            assert len(set(addresses)) == len(addresses)
            assert all(IPv4Address("10.88.0.2") <= a <= IPv4Address("10.88.0.6") for a in addresses)
    finally:
        connection.close()
