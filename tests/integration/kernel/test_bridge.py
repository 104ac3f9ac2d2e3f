# SPDX-License-Identifier: Apache-2.0
"""The built-in network with real traffic: host, pods and the outside are network namespaces."""

import asyncio
import contextlib
import os
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from pycri import errors
from pycri.config import NetworkSettings
from pycri.network import leases
from tests.integration.kernel.netns import Namespace, run_as_host
from tests.integration.kernel.networks import (
    SETTINGS,
    SPEC,
    add_link,
    address_of,
    addresses,
    as_host,
    attach,
    exchange,
    host_end,
    ip,
    links,
    network,
    new_id,
    nft,
    outside,
    pod_links,
    ruleset,
    until,
)
from tests.world.witness import look


@as_host
async def test_pods_reach_each_other_themselves_and_the_gateway(folder: Path) -> None:
    with Namespace() as first, Namespace() as second:
        async with network(folder) as bridge:
            one = await attach(bridge, first)
            two = await attach(bridge, second)
            assert (address_of(one), address_of(two)) == ("10.88.0.2", "10.88.0.3")
            assert pod_links() == {host_end(one), host_end(two)}
            with first.listen("0.0.0.0") as listener:
                assert exchange(listener, lambda: second.connect(address_of(one))) == address_of(
                    two
                )
                assert exchange(listener, lambda: first.connect(address_of(one))) == address_of(one)
                assert exchange(listener, lambda: first.connect("127.0.0.1")) == "127.0.0.1"
                host = exchange(
                    listener, lambda: socket.create_connection((address_of(one), 80), 5)
                )
                assert host == "10.88.0.1"
            with socket.create_server(("10.88.0.1", 80)) as listener:
                assert exchange(listener, lambda: first.connect("10.88.0.1")) == address_of(one)


@as_host
async def test_the_first_packets_after_an_attachment_are_not_lost(folder: Path) -> None:
    """A bridge drops what a port sends before the kernel has noted its carrier: a second lost."""
    async with network(folder) as bridge:
        with ExitStack() as pods, socket.create_server(("10.88.0.1", 80)) as listener:
            for _ in range(40):
                pod = pods.enter_context(Namespace())
                await attach(bridge, pod)
                begin = time.monotonic()
                exchange(listener, lambda: pod.connect("10.88.0.1"))  # noqa: B023
                assert time.monotonic() - begin < 0.9


@as_host
async def test_the_outside_sees_the_hosts_address(folder: Path) -> None:
    with Namespace() as pod:
        async with outside() as other, network(folder) as bridge:
            await attach(bridge, pod)
            with other.listen("192.0.2.2") as listener:
                assert exchange(listener, lambda: pod.connect("192.0.2.2")) == "192.0.2.1"


@as_host
async def test_what_is_in_the_pod_is_what_was_asked(folder: Path) -> None:
    settings = NetworkSettings(bridge="pct-br", range="10.88.0.0/24", table="pct", mtu=1400)
    with Namespace() as pod:
        async with network(folder, settings) as bridge:
            attachment = await attach(bridge, pod)
            inside, outside = pod.run(look), look()
    assert inside.addresses == {"eth0": {"10.88.0.2/24"}, "lo": {"127.0.0.1/8", "::1/128"}}
    assert inside.broadcasts == {"10.88.0.255"}
    assert inside.routes == {"default via 10.88.0.1 dev eth0", "10.88.0.0/24 dev eth0"}
    assert inside.links["lo"].up
    eth0, port = inside.links["eth0"], outside.links[host_end(attachment)]
    assert (eth0.mac, eth0.kind, eth0.mtu) == ("0a:58:0a:58:00:02", "veth", 1400)
    assert eth0.running
    assert (port.kind, port.mtu, port.master) == ("veth", 1400, settings.bridge)
    assert port.running
    assert port.hairpin
    bridge_link = outside.links[settings.bridge]
    assert (bridge_link.kind, bridge_link.mtu) == ("bridge", 1400)
    assert bridge_link.running


@as_host
async def test_a_detached_pods_address_is_free_once_its_link_has_gone(folder: Path) -> None:
    settings = NetworkSettings(bridge="pct-br", range="10.88.0.0/30", table="pct")
    pod_id = new_id()
    async with network(folder, settings) as bridge:
        with Namespace() as pod:
            await attach(bridge, pod, pod_id)
            await bridge.detach(pod_id)
            await bridge.detach(pod_id)
            with Namespace() as other:
                waiting = asyncio.create_task(attach(bridge, other))
                await asyncio.wait([waiting], timeout=0.1)
                assert not waiting.done()
                pod.close()
                assert address_of(await waiting) == "10.88.0.2"
        await bridge.detach(new_id())


@as_host
async def test_an_exhausted_range_is_out_of_resources_and_names_it(folder: Path) -> None:
    settings = NetworkSettings(bridge="pct-br", range="10.88.0.0/30", table="pct")
    async with network(folder, settings) as bridge:
        with Namespace() as pod, Namespace() as other:
            await attach(bridge, pod)
            before = pod_links()
            with pytest.raises(errors.OutOfResources, match=r"10\.88\.0\.0/30"):
                await attach(bridge, other)
            assert pod_links() == before


def test_a_link_that_outlives_its_pod_is_deleted_after_a_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "GONE_DEADLINE_S", 0.1)

    async def body() -> None:
        async with network(tmp_path) as bridge:
            with Namespace() as pod:
                pod_id = new_id()
                await attach(bridge, pod, pod_id)
                await bridge.detach(pod_id)
                await until(lambda: not pod_links(), "the link deleted")

    run_as_host(body)


@as_host
async def test_a_failed_attachment_leaves_nothing(folder: Path) -> None:
    async with network(folder) as bridge:
        with Namespace() as pod, Namespace() as other:
            with pytest.raises(errors.SetupFailed, match="No such file"):
                await bridge.attach(new_id(), SPEC, f"{folder}/absent", pod.netlink_fd)
            # The veth is made and then the socket is one of another namespace, without an eth0.
            with pytest.raises(errors.SetupFailed) as caught:
                await bridge.attach(new_id(), SPEC, pod.path, other.netlink_fd)
            assert "attach 10.88.0.3/24 to bridge pct-br" in str(caught.value)
            assert pod_links() == set()
            assert address_of(await attach(bridge, pod)) == "10.88.0.4"


@as_host
async def test_starting_again_changes_nothing_and_keeps_the_pods(folder: Path) -> None:
    pod_id = new_id()
    with Namespace() as pod:
        async with network(folder) as bridge:
            attachment = await attach(bridge, pod, pod_id)
            before = ruleset(), links(), addresses(SETTINGS.bridge)
        async with network(folder) as bridge:
            await bridge.start()
            await bridge.reconcile(frozenset({pod_id}))
            assert (ruleset(), links(), addresses(SETTINGS.bridge)) == before
            assert bridge.problem() is None
            with pod.listen(address_of(attachment)) as listener:
                exchange(
                    listener, lambda: socket.create_connection((address_of(attachment), 80), 5)
                )


@as_host
async def test_reconcile_removes_what_no_pod_owns(folder: Path) -> None:
    kept, lost, released = new_id(), new_id(), new_id()
    with Namespace() as first, Namespace() as second, Namespace() as third:
        async with network(folder) as bridge:
            one = await attach(bridge, first, kept)
            await attach(bridge, second, lost)
            await attach(bridge, third, released)
            await bridge.detach(released)
        third.close()  # while no daemon is there
        stray = bridge.interface_name(new_id())
        ip("link", "add", stray, "type", "veth", "peer", "name", "pc-gone")
        ip("link", "add", "pc-near", "type", "veth", "peer", "name", "pc-far")
        async with network(folder) as bridge:
            await bridge.reconcile(frozenset({kept, released}))
            await until(lambda: not bridge.releasing(), "the released address free")
            assert pod_links() == {host_end(one), "pc-near", "pc-far"}
            await bridge.reconcile(frozenset())
            assert pod_links() == {"pc-near", "pc-far"}


@as_host
async def test_a_new_pod_cidr_is_for_new_pods_and_outlives_a_restart(folder: Path) -> None:
    old_id = new_id()
    with Namespace() as old_pod, Namespace() as pod, Namespace() as later:
        async with network(folder) as bridge:
            old = await attach(bridge, old_pod, old_id)
            await bridge.set_pod_cidr("")
            await bridge.set_pod_cidr("10.99.1.0/24,fd00::/64")
            new = await attach(bridge, pod)
            assert address_of(new) == "10.99.1.2"
            assert addresses(SETTINGS.bridge) == {"10.88.0.1/24", "10.99.1.1/24", "fd00::1/64"}
            with old_pod.listen(address_of(old)) as listener:
                assert exchange(listener, lambda: pod.connect(address_of(old))) == address_of(new)
            old_pod.close()
            await bridge.detach(old_id)
            await until(lambda: not bridge.releasing(), "the old address free")
        async with network(folder) as bridge:
            assert addresses(SETTINGS.bridge) == {"10.99.1.1/24", "fd00::1/64"}
            assert "10.88" not in ruleset()
            assert address_of(await attach(bridge, later)) == "10.99.1.3"


@as_host
async def test_a_bad_pod_cidr_is_refused_and_changes_nothing(folder: Path) -> None:
    add_link("lan")
    ip("address", "add", "192.0.2.1/24", "dev", "lan")
    with Namespace() as pod:
        async with network(folder) as bridge:
            await attach(bridge, pod)
            before = ruleset(), addresses(SETTINGS.bridge)
            for cidr, reason in (
                ("192.0.2.128/25", r"overlaps with 192\.0\.2\.1/24 of interface lan"),
                ("10.88.0.1/31", "host bits"),
                ("10.88.0.0/8", "host bits"),
            ):
                with pytest.raises(errors.InvalidRequest, match=reason):
                    await bridge.set_pod_cidr(cidr)
            assert (ruleset(), addresses(SETTINGS.bridge)) == before
            assert bridge.problem() is None


@as_host
async def test_a_pod_cidr_whose_gateway_is_a_pods_address_is_refused(folder: Path) -> None:
    settings = NetworkSettings(bridge="pct-br", range="10.88.0.0/24", table="pct")
    async with network(folder, settings) as bridge:
        with ExitStack() as pods:
            for _ in range(4):
                attachment = await attach(bridge, pods.enter_context(Namespace()))
            assert address_of(attachment) == "10.88.0.5"
            with pytest.raises(errors.InvalidRequest, match=r"10\.88\.0\.5.*address of a pod"):
                await bridge.set_pod_cidr("10.88.0.4/30")


@as_host
async def test_other_tables_are_left_alone(folder: Path) -> None:
    nft("add", "table", "ip", "theirs")
    async with network(folder) as bridge:
        assert "table inet pct {" in ruleset()
        await bridge.remove()
        assert ruleset().split() == ["table", "ip", "theirs", "{", "}"]


@as_host
async def test_remove_leaves_nothing_and_may_be_repeated(folder: Path) -> None:
    with Namespace() as pod:
        async with network(folder) as bridge:
            await attach(bridge, pod)
        async with network(folder, start=False) as bridge:
            await bridge.remove()
            await bridge.remove()
        assert links() == {"lo"}
        assert ruleset() == ""


@as_host
async def test_two_bridges_on_a_host_do_not_touch_each_other(folder: Path) -> None:
    other = NetworkSettings(bridge="pct-br2", range="10.89.0.0/24", table="pct2")
    with Namespace() as second:
        async with network(folder / "1") as bridge, network(folder / "2", other) as beside:
            two = await attach(beside, second)
            stray = bridge.interface_name(new_id())
            ip("link", "add", stray, "type", "veth", "peer", "name", "far-end")
            await bridge.reconcile(frozenset())
            assert pod_links() - {other.bridge} == {host_end(two)} != {stray}
            await bridge.remove()
            with second.listen(address_of(two)) as listener:
                exchange(listener, lambda: socket.create_connection((address_of(two), 80), 5))


@as_host
async def test_many_attachments_at_once_all_get_an_address(folder: Path) -> None:
    async with network(folder) as bridge:
        with ExitStack() as stack:
            pods = [stack.enter_context(Namespace()) for _ in range(20)]
            attached = await asyncio.gather(*(attach(bridge, pod) for pod in pods))
            assert len({address_of(attachment) for attachment in attached}) == 20


@as_host
async def test_a_cancelled_attachment_leaves_nothing(folder: Path) -> None:
    async with network(folder) as bridge:
        with Namespace() as pod:
            for delay_s in (0.0, 0.001, 0.002):
                task = asyncio.create_task(attach(bridge, pod))
                await asyncio.wait([task], timeout=delay_s)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    attached = await task
                    ip("link", "delete", host_end(attached))
            await bridge.reconcile(frozenset())
            assert pod_links() == set()


def test_descriptors_are_borrowed_and_none_is_kept(tmp_path: Path) -> None:
    async def body() -> None:
        async with network(tmp_path) as bridge:
            with Namespace() as pod:
                before = len(os.listdir("/proc/self/fd"))
                await attach(bridge, pod)
                assert len(os.listdir("/proc/self/fd")) == before
                os.fstat(pod.netlink_fd)

    run_as_host(body)


@as_host
async def test_what_is_freed_after_a_removal_brings_no_table_back(folder: Path) -> None:
    pod_id = new_id()
    async with network(folder) as bridge:
        with Namespace() as pod:
            await attach(bridge, pod, pod_id)
            await bridge.detach(pod_id)
            await bridge.remove()
        await until(lambda: not bridge.releasing(), "the address free")
        assert ruleset() == ""
