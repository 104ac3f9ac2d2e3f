# SPDX-License-Identifier: Apache-2.0
from ipaddress import IPv4Address, IPv4Network

import pytest

from pycri import errors
from pycri.network.bridge import POD_CIDR_FIELD, interface_prefix, mac_of, parse_pod_cidr
from pycri.network.nftables import render_table


@pytest.mark.parametrize(
    "cidr", ["10.244.1.0/24", "10.244.1.0/24,fd00::/64", "fd00::/64, 10.244.1.0/24"]
)
def test_the_ipv4_range_of_a_pod_cidr_is_taken(cidr: str) -> None:
    assert parse_pod_cidr(cidr) == IPv4Network("10.244.1.0/24")


@pytest.mark.parametrize(
    ("cidr", "reason"),
    [
        ("ten", "Expected 4 octets"),
        ("10.244.1.7/24", "has host bits set"),
        ("10.244.1.0/33", "not a valid netmask"),
        ("10.244.1.0/31", "no room for a pod"),
        ("10.244.1.0", "no room for a pod"),
        ("fd00::/64", "has no IPv4 range"),
        (",", "cannot be empty"),
    ],
)
def test_a_bad_pod_cidr_is_refused_with_the_field_and_the_reason(cidr: str, reason: str) -> None:
    with pytest.raises(errors.InvalidRequest, match=reason) as caught:
        parse_pod_cidr(cidr)
    assert caught.value.field == POD_CIDR_FIELD


def test_host_ends_of_two_bridges_have_names_of_their_own() -> None:
    assert interface_prefix("pycri0") != interface_prefix("pycri1")
    assert len(interface_prefix("pycri0")) + 9 == 15


def test_a_mac_follows_from_the_address() -> None:
    assert mac_of(IPv4Address("10.88.1.255")) == "0a:58:0a:58:01:ff"


def test_the_table_masquerades_all_ranges_but_not_between_them() -> None:
    ranges = [IPv4Network("10.88.0.0/16"), IPv4Network("10.244.1.0/24")]
    pods = "{ 10.88.0.0/16, 10.244.1.0/24 }"
    script = render_table("pycri", ranges)
    assert f"ip saddr {pods} ip daddr != {pods} masquerade" in script
    assert script.startswith("add table ip pycri\ndelete table ip pycri\ntable ip pycri {")
