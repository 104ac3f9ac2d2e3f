# SPDX-License-Identifier: Apache-2.0
"""The built-in network with IPv6, beside IPv4 and alone."""

import socket
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from pycri import errors
from pycri.config import NetworkSettings
from tests.integration.kernel.netns import Namespace
from tests.integration.kernel.networks import (
    DUAL,
    as_host,
    attach,
    exchange,
    ip,
    network,
    outside,
    sysctl,
)
from tests.world.witness import look

ONLY_IPV6 = NetworkSettings(bridge="pct-br", range="fd00:88::/64", table="pct")


def output(pod: Namespace, *command: str) -> str:
    return pod.run(lambda: subprocess.check_output(command, text=True))


@as_host
async def test_pods_have_an_address_of_each_family_and_reach_each_other(folder: Path) -> None:
    with Namespace() as first, Namespace() as second:
        async with network(folder, DUAL) as bridge:
            one, two = await attach(bridge, first), await attach(bridge, second)
            assert one.addresses == ("10.88.0.2", "fd00:88::2")
            assert two.addresses == ("10.88.0.3", "fd00:88::3")
            for address, peer, host in (
                ("10.88.0.2", "10.88.0.3", "10.88.0.1"),
                ("fd00:88::2", "fd00:88::3", "fd00:88::1"),
            ):
                with first.listen(address) as listener:
                    assert exchange(listener, lambda: second.connect(address)) == peer  # noqa: B023
                    assert exchange(listener, lambda: first.connect(address)) == address  # noqa: B023
                    seen = exchange(listener, lambda: socket.create_connection((address, 80), 5))  # noqa: B023
                    assert seen == host
            with first.listen("::1") as listener:
                assert exchange(listener, lambda: first.connect("::1")) == "::1"


@as_host
async def test_ipv6_addresses_are_good_at_once_and_the_way_out_is_known(folder: Path) -> None:
    with Namespace() as pod:
        async with network(folder, DUAL) as bridge:
            await attach(bridge, pod)
            seen = pod.run(look)
    assert seen.addresses["eth0"] == {
        "10.88.0.2/24",
        "fd00:88::2/64",
        "fe80::858:aff:fe58:2/64",
    }
    assert seen.settled
    assert "default via fd00:88::1 dev eth0" in seen.routes


@as_host
async def test_the_outside_sees_the_hosts_address_of_ipv6(folder: Path) -> None:
    with Namespace() as pod:
        cable = outside("2001:db8::2/64", "2001:db8::1/64")
        async with cable as other, network(folder, DUAL) as bridge:
            await attach(bridge, pod)
            with other.listen("2001:db8::2") as listener:
                seen = exchange(listener, lambda: pod.connect("2001:db8::2"))
                assert seen == "2001:db8::1"


@as_host
async def test_traffic_between_the_pods_of_two_ranges_is_not_translated(folder: Path) -> None:
    with Namespace() as first, Namespace() as second:
        async with network(folder, DUAL) as bridge:
            one = await attach(bridge, first)
            await bridge.set_pod_cidr("10.99.0.0/24,fd00:99::/64")
            two = await attach(bridge, second)
            for here, there in zip(one.addresses, two.addresses, strict=True):
                with first.listen(here) as listener:
                    assert exchange(listener, lambda: second.connect(here)) == there  # noqa: B023


@as_host
async def test_pods_may_have_ipv6_alone(folder: Path) -> None:
    sysctl("net/ipv4/ip_forward", "0")
    with Namespace() as first, Namespace() as second:
        async with network(folder, ONLY_IPV6) as bridge:
            one, two = await attach(bridge, first), await attach(bridge, second)
            assert (one.addresses, two.addresses) == (("fd00:88::2",), ("fd00:88::3",))
            assert one.interfaces[0].mac == "0a:58:00:00:00:02"
            with first.listen("fd00:88::2") as listener:
                assert exchange(listener, lambda: second.connect("fd00:88::2")) == "fd00:88::3"
            assert all(":" in address for address in first.run(look).addresses["eth0"])
            assert sysctl("net/ipv4/ip_forward") == "0"


@as_host
async def test_pods_without_an_ipv6_range_have_none_but_loopback(folder: Path) -> None:
    with Namespace() as pod:
        async with network(folder) as bridge:
            await attach(bridge, pod)
            assert pod.run(look).addresses == {
                "eth0": {"10.88.0.2/24"},
                "lo": {"127.0.0.1/8", "::1/128"},
            }


@as_host
async def test_the_order_of_a_pod_cidr_is_the_order_of_the_addresses(folder: Path) -> None:
    with Namespace() as pod:
        async with network(folder) as bridge:
            await bridge.set_pod_cidr("fd00:99::/64,10.99.0.0/24")
            assert (await attach(bridge, pod)).addresses == ("fd00:99::2", "10.99.0.2")


@as_host
async def test_an_ipv6_range_on_a_host_without_ipv6_is_refused(folder: Path) -> None:
    sysctl("net/ipv6/conf/all/disable_ipv6", "1")
    async with network(folder, DUAL, start=False) as bridge:
        with pytest.raises(errors.Unavailable, match="IPv6 is switched off on this host"):
            await bridge.start()
        assert "switched off" in (bridge.problem() or "")
        await bridge.set_pod_cidr("10.99.0.0/24")
        with pytest.raises(errors.InvalidRequest, match="IPv6 is switched off"):
            await bridge.set_pod_cidr("10.99.0.0/24,fd00:99::/64")
        assert bridge.problem() is None
        with Namespace() as pod:
            assert (await attach(bridge, pod)).addresses == ("10.99.0.2",)


@as_host
async def test_each_family_of_the_range_may_be_used_up(folder: Path) -> None:
    settings = NetworkSettings(bridge="pct-br", range="10.88.0.0/24,fd00:88::/126", table="pct")
    async with network(folder, settings) as bridge:
        with ExitStack() as pods:
            for _ in range(2):
                await attach(bridge, pods.enter_context(Namespace()))
            with pytest.raises(errors.OutOfResources, match="fd00:88::/126"):
                await attach(bridge, pods.enter_context(Namespace()))


@as_host
async def test_forwarding_is_put_back_when_pycri_is_removed(folder: Path) -> None:
    ip("link", "add", "lan", "type", "veth", "peer", "name", "far-end")
    sysctl("net/ipv4/ip_forward", "0")  # a new namespace has the value of the machine
    assert sysctl("net/ipv6/conf/lan/accept_ra") == "1"
    async with network(folder, DUAL) as bridge:
        assert sysctl("net/ipv4/ip_forward") == "1"
        assert sysctl("net/ipv6/conf/all/forwarding") == "1"
        assert sysctl("net/ipv6/conf/lan/accept_ra") == "2", "the host's own way out would be lost"
    async with network(folder, DUAL) as bridge:
        await bridge.remove()
    assert sysctl("net/ipv4/ip_forward") == "0"
    assert sysctl("net/ipv6/conf/all/forwarding") == "0"
    assert sysctl("net/ipv6/conf/lan/accept_ra") == "1"


@as_host
async def test_forwarding_that_was_on_before_stays_on(folder: Path) -> None:
    sysctl("net/ipv4/ip_forward", "1")
    async with network(folder) as bridge:
        await bridge.remove()
    assert sysctl("net/ipv4/ip_forward") == "1"


@as_host
async def test_forwarding_stays_on_while_the_host_has_another_bridge(folder: Path) -> None:
    sysctl("net/ipv4/ip_forward", "0")
    async with network(folder) as bridge:
        ip("link", "add", "theirs", "type", "bridge")
        await bridge.remove()
    assert sysctl("net/ipv4/ip_forward") == "1"
