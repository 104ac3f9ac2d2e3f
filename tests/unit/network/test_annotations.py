# SPDX-License-Identifier: Apache-2.0
from ipaddress import ip_address

import pytest

from pycri.errors import InvalidRequest
from pycri.network.annotations import (
    ADDRESSES,
    EGRESS,
    INGRESS,
    MAC,
    Bandwidth,
    parse_addresses,
    parse_bandwidth,
    parse_mac,
)


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("10M", 10_000_000),
        ("1.5k", 1500),
        ("1k", 1000),
        ("2000", 2000),
        ("+2000", 2000),
        ("1Gi", 1 << 30),
        ("0.5Mi", 1 << 19),
        ("1e6", 1_000_000),
        ("1E6", 1_000_000),
        ("5000000m", 5000),
        (".5M", 500_000),
        ("1.M", 1_000_000),
        ("1P", 10**15),
    ],
)
def test_a_bandwidth_is_a_kubernetes_quantity_in_bits(text: str, bits: int) -> None:
    assert parse_bandwidth({INGRESS: text}) == Bandwidth(ingress_bits=bits)
    assert parse_bandwidth({EGRESS: text}) == Bandwidth(egress_bits=bits)


def test_no_annotation_is_no_limit() -> None:
    assert parse_bandwidth({"other": "10M"}) == Bandwidth()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not a quantity"),
        ("fast", "not a quantity"),
        ("10 M", "not a quantity"),
        ("10MB", "not a quantity"),
        ("10K", "not a quantity"),
        ("1e6M", "not a quantity"),
        ("1e9999", "not a quantity"),
        ("٣M", "not a quantity"),
        ("-1M", "not between"),
        ("999", "not between"),
        ("1.1P", "not between"),
        ("1e999", "not between"),
    ],
)
def test_a_bad_bandwidth_is_refused_by_the_name_of_its_annotation(text: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason) as caught:
        parse_bandwidth({EGRESS: text})
    assert caught.value.field == "config.annotations[kubernetes.io/egress-bandwidth]"


def test_addresses_and_mac_are_read_in_any_spelling() -> None:
    assert parse_addresses({ADDRESSES: "10.88.0.50, FD00::0:50"}) == (
        ip_address("10.88.0.50"),
        ip_address("fd00::50"),
    )
    assert parse_addresses({}) == ()
    assert parse_mac({MAC: "02:00:00:AB:00:50"}) == "02:00:00:ab:00:50"
    assert parse_mac({}) == ""


@pytest.mark.parametrize("text", ["10.88.0", "10.88.0.5/24", "fd00::1,fd00::2", ",", "10.88.0.5,"])
def test_bad_addresses_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_addresses({ADDRESSES: text})
    assert caught.value.field == "config.annotations[network.pycri/addresses]"


@pytest.mark.parametrize(
    "text", ["02-00-00-00-00-01", "02:00", "01:00:00:00:00:01", "00:00:00:00:00:00", "ff" * 6]
)
def test_a_bad_mac_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_mac({MAC: text})
    assert caught.value.field == "config.annotations[network.pycri/mac]"
