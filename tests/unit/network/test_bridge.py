# SPDX-License-Identifier: Apache-2.0
from ipaddress import ip_address, ip_network

import pytest

from pycri import errors
from pycri.model.ranges import bounds_of, gateway_of, mac_of, owns
from pycri.network.bridge import POD_CIDR_FIELD, interface_prefix, parse_pod_cidr


@pytest.mark.parametrize("cidr", ["10.244.1.0/24", "fd00::/64", "10.244.1.0/24,fd00::/64"])
def test_the_ranges_of_a_pod_cidr_are_taken_in_their_order(cidr: str) -> None:
    assert parse_pod_cidr(cidr) == tuple(map(ip_network, cidr.split(",")))
    assert parse_pod_cidr("fd00::/64, 10.244.1.0/24")[0].version == 6


@pytest.mark.parametrize(
    ("cidr", "reason"),
    [
        ("ten", "does not appear to be"),
        ("10.244.1.7/24", "has host bits set"),
        ("10.244.1.0/33", "does not appear to be"),
        ("10.244.1.0/31", "no room for a gateway and a pod"),
        ("10.244.1.0", "no room for a gateway and a pod"),
        ("fd00::/127", "no room for a gateway and a pod"),
        (",", "does not appear to be"),
        ("10.244.1.0/24,10.244.2.0/24", "two ranges of one family"),
        ("fe80::/64", "a meaning of its own"),
        ("127.0.0.0/8", "a meaning of its own"),
        ("224.0.0.0/8", "a meaning of its own"),
    ],
)
def test_a_bad_pod_cidr_is_refused_with_the_field_and_the_reason(cidr: str, reason: str) -> None:
    with pytest.raises(errors.InvalidRequest, match=reason) as caught:
        parse_pod_cidr(cidr)
    assert caught.value.field == POD_CIDR_FIELD


def test_a_range_has_a_gateway_and_room_for_pods() -> None:
    four, six = ip_network("10.88.0.0/24"), ip_network("fd00::/120")
    assert (str(gateway_of(four)), str(gateway_of(six))) == ("10.88.0.1/24", "fd00::1/120")
    assert [str(a) for a in (*bounds_of(four), *bounds_of(six))] == [
        "10.88.0.2",
        "10.88.0.254",
        "fd00::2",
        "fd00::ff",
    ]
    assert owns(four, ip_address("10.88.0.254"))
    for address in ("10.88.0.0", "10.88.0.1", "10.88.0.255", "10.88.1.2", "fd00::2"):
        assert not owns(four, ip_address(address))


def test_host_ends_of_two_bridges_have_names_of_their_own() -> None:
    assert interface_prefix("pycri0") != interface_prefix("pycri1")
    assert len(interface_prefix("pycri0")) + 9 == 15


def test_a_mac_follows_from_the_address() -> None:
    assert mac_of(ip_address("10.88.1.255")) == "0a:58:0a:58:01:ff"
    assert mac_of(ip_address("fd00::1:2")) == "0a:58:00:01:00:02"
