# SPDX-License-Identifier: Apache-2.0
from ipaddress import ip_address, ip_network

from pycri.model.ids import PodId
from pycri.model.pod import PortMapping, Protocol
from pycri.network.ipam import Endpoint
from pycri.network.rules import port_elements, render_removal, render_tables, sender_elements

ENDPOINT = Endpoint(
    pod_id=PodId("a"),
    mac="0a:58:0a:58:00:02",
    addresses=(ip_address("10.88.0.2"), ip_address("fd00::2")),
    ports=(
        PortMapping(host_port=8080, container_port=80),
        PortMapping(host_port=53, container_port=5353, protocol=Protocol.UDP, host_ip="192.0.2.1"),
    ),
)
RANGES = [ip_network("10.88.0.0/16"), ip_network("10.244.1.0/24"), ip_network("fd00::/64")]


def test_a_pod_may_speak_for_its_addresses_and_its_link_local_one() -> None:
    texts = [(element.set, element.text) for element in sender_elements(ENDPOINT, "pc1")]
    assert texts == [
        ("senders4", '"pc1" . 0a:58:0a:58:00:02 . 10.88.0.2'),
        ("senders6", '"pc1" . 0a:58:0a:58:00:02 . fd00::2'),
        ("targets6", '"pc1" . 0xfd000000000000000000000000000002'),
        ("senders6", '"pc1" . 0a:58:0a:58:00:02 . fe80::858:aff:fe58:2'),
        ("targets6", '"pc1" . 0xfe8000000000000008580afffe580002'),
    ]
    sizes = [sum(len(field.data) for field in e.key) for e in sender_elements(ENDPOINT, "pc1")]
    assert sizes == [28, 40, 32, 40, 32]


def test_a_host_port_is_an_element_for_each_family_it_is_for() -> None:
    texts = [(element.set, element.text) for element in port_elements(ENDPOINT)]
    assert texts == [
        ("ports4", "tcp . 8080 : 10.88.0.2 . 80"),
        ("ports6", "tcp . 8080 : fd00::2 . 80"),
        ("ports4_at", "192.0.2.1 . udp . 53 : 10.88.0.2 . 5353"),
    ]
    key, data = port_elements(ENDPOINT)[0].key, port_elements(ENDPOINT)[0].data
    assert b"".join(field.data for field in key) == bytes.fromhex("06000000 1f900000")
    assert b"".join(field.data for field in data) == bytes.fromhex("0a580002 00500000")


def test_what_leaves_the_ranges_is_masqueraded_and_what_stays_is_not() -> None:
    script = render_tables("pycri", "br", "pc1234", RANGES, [])
    pods = "{ 10.88.0.0/16, 10.244.1.0/24 }"
    assert f"ip saddr {pods} ip daddr != {pods} masquerade" in script
    assert "ip6 saddr { fd00::/64 } ip6 daddr != { fd00::/64 } masquerade" in script
    assert script.startswith(render_removal("pycri"))


def test_a_node_of_one_family_has_no_rule_for_the_other() -> None:
    assert "ip6 saddr {" not in render_tables("pycri", "br", "pc1234", RANGES[:1], [])
    assert "ip saddr {" not in render_tables("pycri", "br", "pc1234", RANGES[2:], [])
