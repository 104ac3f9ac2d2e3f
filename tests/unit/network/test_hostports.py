# SPDX-License-Identifier: Apache-2.0
import pytest

from pycri.model.pod import PortMapping, Protocol
from pycri.network.hostports import exclude, families_of, name_of


def port(host_ip: str = "", number: int = 80, protocol: Protocol = Protocol.TCP) -> PortMapping:
    return PortMapping(protocol=protocol, container_port=1, host_port=number, host_ip=host_ip)


@pytest.mark.parametrize(
    ("one", "other", "excluded"),
    [
        (port(), port(), True),
        (port(), port("192.0.2.1"), True),
        (port(), port("fd00::1"), True),
        (port("0.0.0.0"), port("192.0.2.1"), True),
        (port("0.0.0.0"), port("fd00::1"), False),
        (port("0.0.0.0"), port("::"), False),
        (port("::"), port("fd00::1"), True),
        (port("192.0.2.1"), port("192.0.2.1"), True),
        (port("192.0.2.1"), port("192.0.2.2"), False),
        (port(number=81), port(), False),
        (port(protocol=Protocol.UDP), port(), False),
    ],
)
def test_ports_exclude_each_other_as_sockets_do(
    one: PortMapping, other: PortMapping, excluded: bool
) -> None:
    assert exclude(one, other) == exclude(other, one) == excluded


def test_a_host_ip_is_of_one_family_and_none_is_of_both() -> None:
    assert families_of(port()) == {4, 6}
    assert families_of(port("0.0.0.0")) == {4}
    assert families_of(port("fd00::1")) == {6}


def test_a_port_is_named_as_people_write_it() -> None:
    assert name_of(port()) == "*:80/TCP"
    assert name_of(port("fd00::1", 53, Protocol.UDP)) == "[fd00::1]:53/UDP"
