# SPDX-License-Identifier: Apache-2.0
"""Addresses, MACs and bandwidths that pods ask for by annotation."""

import asyncio
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from pycri import errors
from pycri.network.annotations import ADDRESSES, EGRESS, INGRESS, MAC
from tests.integration.kernel.netns import Namespace
from tests.integration.kernel.networks import (
    DUAL,
    as_host,
    attach,
    exchange,
    links,
    network,
    new_id,
)
from tests.world.witness import look

MEGABIT = 1_000_000
SENT_BYTES = 4 << 20
WANTED_BITS = 40 * MEGABIT


@as_host
async def test_a_pod_gets_the_addresses_and_the_mac_it_asks_for(folder: Path) -> None:
    wishes = {ADDRESSES: "fd00:88::50, 10.88.0.50", MAC: "02:00:00:00:00:50"}
    with Namespace() as pod, Namespace() as other:
        async with network(folder, DUAL) as bridge:
            attached = await attach(bridge, pod, annotations=wishes)
            assert attached.addresses == ("10.88.0.50", "fd00:88::50")
            assert attached.interfaces[0].mac == "02:00:00:00:00:50"
            await attach(bridge, other)
            for address in attached.addresses:
                with pod.listen(address) as listener:
                    exchange(listener, lambda: other.connect(address))  # noqa: B023


@as_host
async def test_one_address_may_be_asked_for_and_the_other_be_any(folder: Path) -> None:
    with Namespace() as pod:
        async with network(folder, DUAL) as bridge:
            attached = await attach(bridge, pod, annotations={ADDRESSES: "fd00:88::50"})
            assert attached.addresses == ("10.88.0.2", "fd00:88::50")


@as_host
async def test_addresses_go_round_those_that_were_asked_for(folder: Path) -> None:
    with Namespace() as pod, Namespace() as second:
        async with network(folder) as bridge:
            await attach(bridge, pod, annotations={ADDRESSES: "10.88.0.2"})
            assert (await attach(bridge, second)).addresses == ("10.88.0.3",)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [(ADDRESSES, "10.88.0.50"), (ADDRESSES, "fd00:88::50"), (MAC, "02:00:00:00:00:50")],
)
def test_what_another_pod_has_is_refused_and_given_when_it_goes(
    tmp_path: Path, annotation: str, value: str
) -> None:
    @as_host
    async def body(folder: Path) -> None:
        holder = new_id()
        with Namespace() as first, Namespace() as second:
            async with network(folder, DUAL) as bridge:
                await attach(bridge, first, holder, annotations={annotation: value})
                before = links()
                with pytest.raises(errors.AlreadyExists, match=f"{value} is pod {holder}'s"):
                    await attach(bridge, second, annotations={annotation: value})
                assert links() == before
                await bridge.detach(holder)
                waiting = asyncio.create_task(
                    attach(bridge, second, annotations={annotation: value})
                )
                await asyncio.wait([waiting], timeout=0.1)
                assert not waiting.done()
                first.close()
                await waiting

    body(tmp_path)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("10.88.0.1", "not for a pod of the range 10.88.0.0/24"),
        ("10.88.0.255", "not for a pod of the range"),
        ("192.0.2.1", "not for a pod of the range"),
        ("fd00:88::50", "pods have no IPv6 range"),
        ("somewhere", "does not appear to be"),
    ],
)
def test_an_address_that_no_pod_can_have_is_refused(
    tmp_path: Path, value: str, reason: str
) -> None:
    @as_host
    async def body(folder: Path) -> None:
        with Namespace() as pod:
            async with network(folder) as bridge:
                with pytest.raises(errors.InvalidRequest, match=reason) as caught:
                    await attach(bridge, pod, annotations={ADDRESSES: value})
                assert caught.value.field == "config.annotations[network.pycri/addresses]"

    body(tmp_path)


@as_host
async def test_a_mac_that_an_address_would_have_had_is_not_given_twice(folder: Path) -> None:
    with Namespace() as pod, Namespace() as second:
        async with network(folder) as bridge:
            await attach(bridge, pod, annotations={MAC: "0a:58:0a:58:00:03"})
            other = await attach(bridge, second)
            assert other.addresses == ("10.88.0.3",)
            assert other.interfaces[0].mac not in ("", "0a:58:0a:58:00:03")


def send_all(sender: socket.socket) -> None:
    with sender:
        sender.sendall(bytes(SENT_BYTES))


def measure_bits(listener: socket.socket, connect: Namespace, address: str) -> float:
    """Send a few megabytes to `listener` and return the bits a second at which they came."""
    with connect.connect(address) as client:
        server, _ = listener.accept()
        with server:
            thread = threading.Thread(target=send_all, args=(client,))
            begin, received = time.monotonic(), 0
            thread.start()
            while data := server.recv(1 << 20):
                received += len(data)
            thread.join()
    assert received == SENT_BYTES
    return received * 8 / (time.monotonic() - begin)


@pytest.mark.parametrize("limited", [INGRESS, EGRESS])
def test_a_bandwidth_is_kept_in_its_direction_only(tmp_path: Path, limited: str) -> None:
    @as_host
    async def body(folder: Path) -> None:
        with Namespace() as pod, Namespace() as other:
            async with network(folder) as bridge:
                here = (await attach(bridge, pod, annotations={limited: "40M"})).addresses[0]
                there = (await attach(bridge, other)).addresses[0]
                with pod.listen(here) as listener:
                    into = measure_bits(listener, other, here)
                with other.listen(there) as listener:
                    out = measure_bits(listener, pod, there)
        slow, fast = (into, out) if limited == INGRESS else (out, into)
        # The bucket is full at first; a host under load may be slower than its limit.
        assert slow < 1.15 * WANTED_BITS
        assert slow > 0.4 * WANTED_BITS
        assert fast > 3 * WANTED_BITS

    body(tmp_path)


@as_host
async def test_a_bad_bandwidth_is_refused_and_leaves_nothing(folder: Path) -> None:
    with Namespace() as pod:
        async with network(folder) as bridge:
            before = links()
            with pytest.raises(errors.InvalidRequest, match="ingress-bandwidth"):
                await attach(bridge, pod, annotations={INGRESS: "fast"})
            assert links() == before


@as_host
async def test_a_limit_beyond_thirty_two_bits_is_taken(folder: Path) -> None:
    with Namespace() as pod:
        async with network(folder) as bridge:
            await attach(bridge, pod, annotations={INGRESS: "100G", EGRESS: "1P"})
            assert pod.run(look).queues["eth0"].rate == (1 << 32) - 1
            # pyroute2 does not know the attribute that has all of it.
            command = ["tc", "qdisc", "show", "dev", "eth0"]
            shown = pod.run(lambda: subprocess.check_output(command, text=True))
            assert "tbf" in shown
            assert "rate 1000Tbit" in shown
