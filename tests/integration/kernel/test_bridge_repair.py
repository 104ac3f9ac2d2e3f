# SPDX-License-Identifier: Apache-2.0
"""What others break, and what a dead daemon leaves: the built-in network puts it right."""

import contextlib
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest

from pycri.config import NetworkSettings
from pycri.model.ids import PodId
from pycri.network.annotations import EGRESS, INGRESS
from pycri.network.leases import Leases
from pycri.network.sockets import NetlinkSocket, Request
from tests.integration.kernel.netns import Namespace
from tests.integration.kernel.networks import (
    DUAL,
    SETTINGS,
    addresses,
    as_host,
    attach,
    exchange,
    host_end,
    ip,
    links,
    mapping,
    network,
    new_id,
    nft,
    ruleset,
    sysctl,
    until,
)

ONLY_IPV6 = NetworkSettings(bridge="pct-br", range="fd00:88::/64", table="pct")


@as_host
async def test_what_others_switched_off_is_on_again_after_a_round(folder: Path) -> None:
    async with network(folder, DUAL) as bridge:
        sysctl("net/ipv4/ip_forward", "0")
        sysctl("net/ipv6/conf/all/forwarding", "0")
        await bridge.reconcile(frozenset())
        assert sysctl("net/ipv4/ip_forward") == sysctl("net/ipv6/conf/all/forwarding") == "1"


@as_host
async def test_a_bridge_that_others_deleted_comes_back_with_its_pods(folder: Path) -> None:
    pod_id = new_id()
    with Namespace() as pod:
        async with network(folder, DUAL) as bridge:
            attached = await attach(bridge, pod, pod_id)
            ip("link", "delete", SETTINGS.bridge)
            await bridge.reconcile(frozenset({pod_id}))
            assert addresses(SETTINGS.bridge) == {"10.88.0.1/24", "fd00:88::1/64"}
            for address in attached.addresses:
                with pod.listen(address) as listener:
                    exchange(listener, lambda: socket.create_connection((address, 80), 5))  # noqa: B023


@as_host
async def test_rules_that_others_flushed_come_back_in_a_round(folder: Path) -> None:
    pod_id = new_id()
    with Namespace() as pod:
        async with network(folder, DUAL) as bridge:
            await attach(bridge, pod, pod_id)
            before = ruleset()
            nft("flush", "ruleset")
            await bridge.reconcile(frozenset({pod_id}))
            assert ruleset() == before
            nft("flush", "ruleset")
            with Namespace() as other:
                await attach(bridge, other)
                assert ruleset().count("fd00:88::2") == before.count("fd00:88::2") > 0
            await bridge.detach(pod_id)
        pod.close()
        async with network(folder, DUAL) as bridge:
            await bridge.reconcile(frozenset())
            await until(lambda: not bridge.releasing(), "all released")
            assert "fd00:88::2" not in ruleset()


@as_host
async def test_check_tells_what_others_broke_and_a_round_puts_it_right(folder: Path) -> None:
    pod_id = new_id()
    with Namespace() as pod:
        async with network(folder, DUAL) as bridge:
            ports = (mapping(":80"), mapping("10.88.0.1:81"))
            name = host_end(await attach(bridge, pod, pod_id, ports=ports))
            assert await bridge.check() == []
            port = f'"{name}" . 0a:58:0a:58:00:02'
            nft("delete", "element", "bridge", "pct", "senders4", f"{{ {port} . 10.88.0.2 }}")
            nft("add", "element", "bridge", "pct", "senders4", f"{{ {port} . 10.88.0.9 }}")
            nft("delete", "element", "inet", "pct", "ports4", "{ tcp . 80 }")
            ip("link", "set", name, "nomaster")
            ip("address", "delete", "fd00:88::1/64", "dev", SETTINGS.bridge)
            sysctl("net/ipv4/ip_forward", "0")
            stray = bridge.interface_name(new_id())
            ip("link", "add", stray, "type", "veth", "peer", "name", "far-end")
            assert await bridge.check() == [
                "the bridge pct-br lacks its address fd00:88::1/64",
                f"pod {pod_id}: its link {name} is down or off the bridge",
                f"the link {stray} is no pod's",
                f"pod {pod_id}: rules lack its element in ports4",
                f"pod {pod_id}: rules lack its element in senders4",
                "an element in senders4 is nobody's",
                "net/ipv4/ip_forward is 0, not 1",
            ]
            await bridge.reconcile(frozenset({pod_id}))
            assert await bridge.check() == []
            nft("delete", "table", "bridge", "pct")
            assert await bridge.check() == ["the table bridge pct is not there, or not whole"]
            await bridge.reconcile(frozenset({pod_id}))
            assert await bridge.check() == []
            await bridge.detach(pod_id)
            assert await bridge.check() == [f"pod {pod_id}: its addresses are still being released"]


@as_host
async def test_a_round_that_began_before_a_pod_came_leaves_it_alone(folder: Path) -> None:
    with Namespace() as pod:
        async with network(folder) as bridge:
            attached = await attach(bridge, pod)
            await bridge.reconcile(frozenset())
            with pod.listen("0.0.0.0") as listener:
                address = attached.addresses[0]
                exchange(listener, lambda: socket.create_connection((address, 80), 5))


class Died(BaseException):
    """The daemon is no more."""


@pytest.mark.parametrize("messages", range(6))
def test_an_attachment_cut_short_at_any_message_is_undone_at_the_next_start(
    messages: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elements, veth, the pod's end, two queues: each is a message to the kernel."""
    left = None
    change = NetlinkSocket.change

    def count(self: NetlinkSocket, requests: Sequence[Request]) -> None:
        nonlocal left
        if left is not None:
            if left == 0:
                raise Died
            left -= 1
        change(self, requests)

    async def clean_nothing_up(self: Leases, pod_ids: list[PodId]) -> None: ...

    @as_host
    async def body(folder: Path) -> None:
        nonlocal left
        wishes = {INGRESS: "10M", EGRESS: "10M"}
        ports = (mapping(":80"), mapping(":53/UDP"))
        with Namespace() as pod:
            async with network(folder, DUAL) as bridge:
                empty = ruleset()
                with monkeypatch.context() as patch, contextlib.suppress(Died):
                    patch.setattr(NetlinkSocket, "change", count)
                    patch.setattr(Leases, "discard", clean_nothing_up)
                    left = messages
                    await attach(bridge, pod, ports=ports, annotations=wishes)
                    assert messages == 5, "there are more or fewer messages than five"
            async with network(folder, DUAL) as bridge:
                await bridge.reconcile(frozenset())
                assert ruleset() == empty
                assert links() == {"lo", SETTINGS.bridge}
                assert await bridge.check() == []
                await attach(bridge, pod, ports=ports)

    body(tmp_path)
