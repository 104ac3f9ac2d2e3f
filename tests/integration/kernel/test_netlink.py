# SPDX-License-Identifier: Apache-2.0
"""rtnetlink against the kernel: what it refuses, and answers that come late."""

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Interface

import pytest

from pycri.network.netlink import _RTM_GETLINK as RTM_GETLINK
from pycri.network.netlink import Netlink, _link
from pycri.network.sockets import Request
from tests.integration.kernel.netns import Namespace
from tests.world.witness import look

MAC = "0a:58:0a:58:00:02"


@contextmanager
def opened() -> Iterator[tuple[Namespace, Netlink]]:
    """Yield a namespace that plays the host, and a socket in it."""
    with Namespace() as host, Netlink.borrow_route(host.netlink_fd) as netlink:
        yield host, netlink


def test_a_refusal_is_an_oserror_with_the_kernels_own_words() -> None:
    with opened() as (_, netlink):
        netlink.create_bridge("br", mac_address=MAC, mtu=1500)
        with pytest.raises(OSError, match="mtu greater than device maximum") as caught:
            netlink.set_up("br", mtu=1_000_000)
        assert caught.value.errno == errno.EINVAL
        with pytest.raises(FileExistsError):
            netlink.create_bridge("br", mac_address=MAC, mtu=1500)
        netlink.delete_link("br")
        for call in (netlink.read_link, netlink.delete_link, netlink.wait_running):
            with pytest.raises(OSError, match="No such device") as caught:
                call("br")
            assert caught.value.errno == errno.ENODEV


def test_the_first_refusal_of_a_packet_is_the_one_that_is_raised() -> None:
    """The kernel goes on after a refused request; what follows fails of its consequences."""
    with opened() as (host, netlink), Namespace() as pod:
        netlink.create_bridge("br", mac_address=MAC, mtu=1500)
        master = netlink.read_link("br").index
        netlink.create_veth("v", master=master, netns_fd=pod.fd, mac_address=MAC, mtu=1500)
        with Netlink.borrow_route(pod.netlink_fd) as inside:
            with pytest.raises(OSError, match="nvalid") as caught:
                inside.configure_pod(
                    [IPv4Interface("10.88.0.2/24")], [IPv4Address("192.0.2.1")], MAC
                )
            assert caught.value.errno in (errno.EINVAL, errno.ENETUNREACH)
        addresses = pod.run(look).addresses
        assert addresses == {"lo": {"127.0.0.1/8", "::1/128"}, "eth0": {"10.88.0.2/24"}}
        assert host.run(lambda: {name for _, name in socket.if_nameindex()}) == {"lo", "br", "v"}


def test_an_answer_left_over_from_an_earlier_request_is_not_taken_for_the_next() -> None:
    with opened() as (_, netlink):
        netlink._send([Request(RTM_GETLINK, _link("absent"))])
        netlink.create_bridge("br", mac_address=MAC, mtu=1400)
        assert (netlink.read_link("br").kind, netlink.read_link("br").mtu) == ("bridge", 1400)


def test_links_and_routes_are_read_as_another_reader_reads_them() -> None:
    with opened() as (host, netlink), Namespace() as pod:
        netlink.create_bridge("br", mac_address=MAC, mtu=1400)
        netlink.set_up("br", mtu=1400)
        netlink.add_address(netlink.read_link("br").index, IPv4Interface("10.88.0.1/24"))
        master = netlink.read_link("br").index
        netlink.create_veth("v", master=master, netns_fd=pod.fd, mac_address=MAC, mtu=1400)
        seen, links = host.run(look), netlink.list_links()
        names = {link.index: link.name for link in links}
        assert {
            link.name: (link.kind, link.mtu, link.up, link.running, names.get(link.master, ""))
            for link in links
        } == {
            name: (link.kind, link.mtu, link.up, link.running, link.master)
            for name, link in seen.links.items()
        }
        assert seen.links["br"].mac == MAC
        routes = {f"{route.network} dev {names[route.index]}" for route in netlink.list_routes()}
        assert routes == seen.routes


def test_a_link_whose_other_end_is_down_is_not_running(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pycri.network.netlink.RUNNING_TIMEOUT_S", 0.05)
    with opened() as (_, netlink), Namespace() as pod:
        netlink.create_bridge("br", mac_address=MAC, mtu=1500)
        master = netlink.read_link("br").index
        netlink.create_veth("v", master=master, netns_fd=pod.fd, mac_address=MAC, mtu=1500)
        with pytest.raises(TimeoutError):
            netlink.wait_running("v")
        with Netlink.borrow_route(pod.netlink_fd) as inside:
            inside.configure_pod([IPv4Interface("10.88.0.2/24")], [IPv4Address("10.88.0.1")], MAC)
        netlink.wait_running("v")


def test_more_addresses_than_fit_one_packet_are_all_listed() -> None:
    with opened() as (host, netlink):
        netlink.create_bridge("br", mac_address=MAC, mtu=1500)
        index = netlink.read_link("br").index
        expected = [IPv4Interface(f"10.{n // 256}.{n % 256}.1/24") for n in range(600)]
        for address in expected:
            netlink.add_address(index, address)
        assert [address for _, address in netlink.list_addresses()] == expected
        assert host.run(look).addresses["br"] == set(map(str, expected))
        netlink.remove_address(index, expected[0])
        assert len(netlink.list_addresses()) == 599
