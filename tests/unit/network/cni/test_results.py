# SPDX-License-Identifier: Apache-2.0
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycri.model.network import Interface
from pycri.network.cni.results import PluginError, list_interfaces, parse_error, parse_result

BRIDGE: dict[str, Any] = {
    "cniVersion": "0.4.0",
    "interfaces": [
        {"name": "cni0", "mac": "aa"},
        {"name": "veth1", "mac": "bb"},
        {"name": "eth0", "mac": "cc", "sandbox": "/run/ns/1"},
        {"name": "ifb7"},
    ],
    "ips": [
        {"version": "6", "interface": 2, "address": "fd00::5/64", "gateway": "fd00::1"},
        {"version": "4", "interface": 2, "address": "10.1.0.5/16", "gateway": "10.1.0.1"},
        {"version": "4", "interface": 0, "address": "10.1.0.1/16"},
    ],
    "routes": [{"dst": "0.0.0.0/0"}],
    "dns": {},
}


def parse(version: str = "1.0.0", **fields: Any) -> dict[str, Any]:
    result = parse_result(json.dumps(BRIDGE | fields).encode(), version)
    assert isinstance(result, dict)
    return result


def test_a_result_takes_on_the_form_of_the_version_and_keeps_all_else() -> None:
    newer = parse("1.0.0")
    assert newer["cniVersion"] == "1.0.0"
    assert newer["ips"][0] == {"interface": 2, "address": "fd00::5/64", "gateway": "fd00::1"}
    assert (newer["routes"], newer["dns"]) == (BRIDGE["routes"], BRIDGE["dns"])
    older = parse("0.3.1", ips=newer["ips"])
    assert older["ips"] == BRIDGE["ips"]


def test_a_result_without_a_version_is_of_the_one_asked_for() -> None:
    assert parse("1.1.0", cniVersion="")["cniVersion"] == "1.1.0"


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (b" \n", "no result was printed"),
        (b"Segfault", "no JSON was printed: 'Segfault'"),
        (b"x" * 999, f"no JSON was printed: '{'x' * 200}'..."),
        (b"[]", "no JSON object was printed: '[]'"),
        (b'{"cniVersion": "0.2.0", "ip4": {}}', "the result is of version '0.2.0', not 1.0.0"),
        (b'{"ips": [{"address": "10.1.2/24"}]}', "'10.1.2/24' does not appear to be"),
        (b'{"ips": [{"address": "10.1.2.3/24", "interface": 0}]}', "there is no interface 0"),
        (b'{"ips": {}}', "Expected `array | null`, got `object`"),
        (b'{"interfaces": [{}]}', "missing required field `name`"),
    ],
)
def test_what_is_no_result_is_told(output: bytes, message: str) -> None:
    error = parse_result(output, "1.0.0")
    assert isinstance(error, PluginError)
    assert message in error.msg


def test_interfaces_of_the_pod_come_with_their_addresses_ipv4_first() -> None:
    assert list_interfaces(parse(), "eth0") == (
        Interface(
            name="eth0",
            mac="cc",
            addresses=("10.1.0.5/16", "fd00::5/64"),
            host_interface="veth1",
        ),
    )


def test_addresses_that_name_no_interface_are_those_of_the_one_asked_for() -> None:
    found = list_interfaces(parse(interfaces=None, ips=[{"address": "10.1.0.5/16"}]), "eth0")
    assert found == (Interface(name="eth0", addresses=("10.1.0.5/16",)),)


def test_an_interface_that_a_plugin_adds_comes_behind_the_one_asked_for() -> None:
    interfaces = [{"name": "net1", "sandbox": "x"}, {"name": "eth0", "sandbox": "x"}]
    ips = [{"address": "10.2.0.1/16", "interface": 0}, {"address": "10.1.0.5", "interface": 1}]
    found = list_interfaces(parse(interfaces=interfaces, ips=ips), "eth0")
    assert [entry.name for entry in found] == ["eth0", "net1"]
    assert found[0].addresses == ("10.1.0.5/32",)


def test_a_result_may_be_empty() -> None:
    result = parse_result(b"{}", "1.0.0")
    assert result == {"cniVersion": "1.0.0"}
    assert list_interfaces({"cniVersion": "1.0.0"}, "eth0") == (Interface(name="eth0"),)


@pytest.mark.parametrize(
    ("output", "complaint", "status", "text"),
    [
        (b'{"code": 7, "msg": "bad", "details": "range"}', b"", 1, "bad; range (code 7)"),
        (b'{"code": 7, "msg": "bad"}', b"log\n", 1, "bad; stderr: log (code 7)"),
        (b"", b"panic: oh\n", 2, "exit status 2, printed no error; stderr: panic: oh"),
        (b"what", b"", 1, "exit status 1, printed 'what'"),
        (b"", b"", -9, "killed by signal 9, printed no error"),
        (b"{}", b"", 1, "no reason given"),
    ],
)
def test_an_error_is_told_with_code_message_and_standard_error(
    output: bytes, complaint: bytes, status: int, text: str
) -> None:
    assert str(parse_error(output, complaint, status)) == text


@given(st.binary(max_size=300))
def test_nothing_that_a_plugin_prints_is_more_than_an_error(output: bytes) -> None:
    parse_result(output, "1.0.0")
    assert str(parse_error(output, output, 1))
