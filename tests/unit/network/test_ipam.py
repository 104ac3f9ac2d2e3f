# SPDX-License-Identifier: Apache-2.0
import sqlite3
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycri import errors
from pycri.model.ids import PodId
from pycri.model.pod import PortMapping
from pycri.model.ranges import Network
from pycri.network import ipam
from pycri.network.ipam import Wish
from pycri.state.database import MIGRATIONS, migrate

RANGE = ip_network("10.88.0.0/29")
"""Six hosts: the gateway .1 and pods .2 to .6."""
SIX = ip_network("fd00::/125")
"""The network, the gateway ::1 and pods ::2 to ::7."""


def _connect() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    migrate(connection, Path(":memory:"))
    return connection


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    connection = _connect()
    yield connection
    connection.close()


def _allocate(
    connection: sqlite3.Connection,
    pod: str,
    *networks: Network,
    addresses: tuple[str, ...] = (),
    mac: str = "",
    ports: tuple[PortMapping, ...] = (),
) -> list[str] | None:
    wish = Wish(addresses=tuple(map(ip_address, addresses)), mac=mac, ports=ports)
    try:
        endpoint = ipam.allocate(connection, PodId(pod), wish, networks or (RANGE,))
    except ipam.NotFree:
        return None
    return [str(address) for address in endpoint.addresses]


def test_addresses_are_given_in_turn_from_behind_the_gateway(
    connection: sqlite3.Connection,
) -> None:
    given = [_allocate(connection, str(n)) for n in range(6)]
    assert given == [*([f"10.88.0.{n}"] for n in range(2, 7)), None]


def test_a_pod_has_an_address_of_each_range_in_their_order(connection: sqlite3.Connection) -> None:
    assert _allocate(connection, "a", SIX, RANGE) == ["fd00::2", "10.88.0.2"]
    assert _allocate(connection, "b", RANGE, SIX) == ["10.88.0.3", "fd00::3"]
    assert [e.mac for e in ipam.load_endpoints(connection)] == [
        "0a:58:00:00:00:02",
        "0a:58:0a:58:00:03",
    ]


def test_the_smaller_range_ends_and_nothing_is_taken_of_the_other(
    connection: sqlite3.Connection,
) -> None:
    for n in range(5):
        assert _allocate(connection, str(n), RANGE, SIX) is not None
    assert _allocate(connection, "new", RANGE, SIX) is None
    assert _allocate(connection, "six", SIX) == ["fd00::7"]
    assert _allocate(connection, "more", SIX) is None


def test_a_pod_that_has_an_endpoint_gets_no_second(connection: sqlite3.Connection) -> None:
    _allocate(connection, "a")
    with pytest.raises(errors.WrongState):
        _allocate(connection, "a")


def test_a_freed_address_rests_until_the_range_has_come_round(
    connection: sqlite3.Connection,
) -> None:
    _allocate(connection, "a")
    _allocate(connection, "b")
    ipam.free(connection, [PodId("a"), PodId("b")])
    assert [_allocate(connection, str(n)) for n in range(4)] == [
        [f"10.88.0.{n}"] for n in (4, 5, 6, 2)
    ]


def test_an_address_on_its_way_back_is_not_given(connection: sqlite3.Connection) -> None:
    for n in range(5):
        _allocate(connection, str(n))
    released = ipam.release(connection, PodId("3"))
    assert released is not None
    assert released.releasing
    assert _allocate(connection, "new") is None
    assert _allocate(connection, "new", addresses=("10.88.0.5",)) is None
    ipam.free(connection, [PodId("3")])
    assert _allocate(connection, "new") == ["10.88.0.5"]


def test_releasing_an_unknown_pod_says_so(connection: sqlite3.Connection) -> None:
    assert ipam.release(connection, PodId("a")) is None


def test_another_range_starts_at_its_own_first_address(connection: sqlite3.Connection) -> None:
    _allocate(connection, "a")
    assert _allocate(connection, "b", ip_network("10.244.1.0/24")) == ["10.244.1.2"]


def test_ports_are_free_before_addresses(connection: sqlite3.Connection) -> None:
    port = PortMapping(host_port=8080, container_port=80)
    _allocate(connection, "a", ports=(port,))
    assert ipam.load_endpoints(connection)[0].ports == (port,)
    with pytest.raises(errors.AlreadyExists):
        _allocate(connection, "b", ports=(port,))
    ipam.release(connection, PodId("a"))
    ipam.free_ports(connection, PodId("a"))
    assert _allocate(connection, "b", ports=(port,)) == ["10.88.0.3"]


def test_what_is_kept_for_a_pod_to_come_can_be_had_back(connection: sqlite3.Connection) -> None:
    spare = PodId("spare")
    kept = ipam.allocate(connection, spare, Wish(), (RANGE,))
    for wish in (Wish(addresses=kept.addresses), Wish(mac=kept.mac)):
        with pytest.raises(errors.AlreadyExists, match="pod spare's"):
            ipam.allocate(connection, PodId("pod"), wish, (RANGE,))
        with pytest.raises(ipam.NotFree, match="kept ready"):
            ipam.allocate(connection, PodId("pod"), wish, (RANGE,), {spare})


def test_ports_are_added_to_an_endpoint_without(connection: sqlite3.Connection) -> None:
    port = PortMapping(host_port=80, container_port=8080)
    made = ipam.allocate(connection, PodId("a"), Wish(), (RANGE,))
    assert ipam.add_ports(connection, made, [port]).ports == (port,)
    assert ipam.load_endpoints(connection)[0].ports == (port,)
    other = ipam.allocate(connection, PodId("b"), Wish(), (RANGE,))
    with pytest.raises(errors.AlreadyExists, match="pod a has"):
        ipam.add_ports(connection, other, [port])
    six = PortMapping(host_port=81, container_port=8080, host_ip="fd00::9")
    with pytest.raises(errors.InvalidRequest):
        ipam.add_ports(connection, other, [six])


def test_the_mac_of_the_bridge_is_no_pods(connection: sqlite3.Connection) -> None:
    with pytest.raises(errors.InvalidRequest, match="is the bridge's"):
        _allocate(connection, "a", mac="0a:58:0a:58:00:01")


def test_addresses_of_the_former_table_are_kept() -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.executescript(MIGRATIONS[0])
    connection.execute("PRAGMA user_version = 1")
    numbers = [(int(ip_address(f"10.88.0.{n}")), f"pod{n}", n - 2) for n in (2, 3)]
    connection.executemany("INSERT INTO addresses VALUES (?, ?, ?)", numbers)
    migrate(connection, Path(":memory:"))
    assert ipam.load_endpoints(connection) == [
        ipam.Endpoint(
            pod_id=PodId(f"pod{n}"),
            mac=f"0a:58:0a:58:00:0{n}",
            addresses=(ip_address(f"10.88.0.{n}"),),
            releasing=n == 3,
        )
        for n in (2, 3)
    ]
    connection.close()


@given(
    st.lists(st.tuples(st.sampled_from("adrs"), st.integers(0, 9), st.integers(2, 6)), max_size=40)
)
def test_no_two_pods_have_one_address_and_none_is_given_while_free_ones_are_left(
    actions: list[tuple[str, int, int]],
) -> None:
    connection = _connect()
    try:
        for action, number, last in actions:
            endpoints = {e.pod_id: e for e in ipam.load_endpoints(connection)}
            taken = {str(address) for e in endpoints.values() for address in e.addresses}
            pod, wanted = PodId(str(number)), f"10.88.0.{last}"
            if action == "r":
                assert (ipam.release(connection, pod) is None) == (pod not in endpoints)
            elif action == "d":
                ipam.free(connection, [pod])
            elif action == "a" and pod not in endpoints:
                assert (_allocate(connection, pod) is None) == (len(endpoints) == 5)
            elif action == "s" and pod not in endpoints and wanted not in taken:
                assert _allocate(connection, pod, addresses=(wanted,)) == [wanted]
            addresses = [e.addresses[0] for e in ipam.load_endpoints(connection)]
            assert len(set(addresses)) == len(addresses)
            assert all(2 <= int(a) - int(RANGE.network_address) <= 6 for a in addresses)
    finally:
        connection.close()
