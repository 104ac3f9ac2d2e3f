# SPDX-License-Identifier: Apache-2.0
"""Networks that are made ahead of pods: when they are made, lent, given up, and what fails."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import cast

import msgspec
import pytest

from pycri.config import NetworkSettings, Settings
from pycri.errors import OutOfResources, SetupFailed, Unavailable
from pycri.model.ids import PodId
from pycri.model.plan import SandboxPlan
from pycri.model.pod import PodMetadata, PodSpec
from pycri.model.security import IdMapping, IdMappings, NamespaceMode, NamespaceModes
from pycri.network.interface import PodNetwork
from pycri.pods import ready_networks
from pycri.pods.foundation import Foundation
from pycri.pods.layout import Layout
from pycri.pods.ready_networks import ReadyNetworks
from pycri.pods.timeline import Timeline
from pycri.wire.messages import SandboxStarted
from tests.unit.plan.samples import host_v2

SPEC = PodSpec(metadata=PodMetadata(name="pod", uid="uid", namespace="tests"))
SIZE = 2


class World:
    """A spawner and a network that remember. failing: steps that do not succeed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.failing: dict[str, Exception] = {}
        self.range = "10.0.0.0/24"
        self.prepared: dict[PodId, str] = {}
        self.harmed: set[PodId] = set()
        self.possible = True
        self.slow: Callable[[], Awaitable[None]] | None = None
        self.made = self.failed = self.looks = 0

    def reach(self, step: str) -> None:
        if step in self.failing:
            self.failed += 1
            raise self.failing[step]

    async def start_sandbox(self, plan: SandboxPlan) -> tuple[SandboxStarted, int]:
        self.reach("spawner")
        (pin,) = plan.pins
        assert pin.kind == "net"
        assert "net/ipv4/ip_unprivileged_port_start" in dict(plan.sysctls)
        self.made += 1
        return SandboxStarted(request=0, init_pid=None, marks=()), os.open("/dev/null", os.O_RDONLY)

    async def preparing(self, spec: PodSpec | None = None) -> "World | None":
        if spec is None:
            self.looks += 1
        elif self.slow is not None:
            await self.slow()
        return self if self.possible else None

    def terms(self) -> str:
        return self.range

    async def prepare(self, pod_id: PodId, netns_path: str, netlink_fd: int) -> None:
        self.reach("prepare")
        assert netns_path == f"{self.folder}/ns/{pod_id}/net"
        os.fstat(netlink_fd)
        self.prepared[pod_id] = self.range

    def is_intact(self, pod_id: PodId) -> bool:
        return pod_id not in self.harmed

    async def detach(self, pod_id: PodId) -> None:
        self.prepared.pop(pod_id, None)
        self.reach("detach")

    @property
    def pins(self) -> set[str]:
        with suppress(FileNotFoundError):
            return set(os.listdir(f"{self.folder}/ns"))
        return set()


Body = Callable[[World, ReadyNetworks], Awaitable[None]]


def play(folder: Path, body: Body, *, size: int = SIZE) -> None:
    """Run `body` with all ready; then nothing must be left."""

    async def run() -> None:
        world = World(folder)
        settings = Settings(
            run_dir=str(folder), state_dir=str(folder), network=NetworkSettings(ready=size)
        )
        parts = {"settings": settings, "host": host_v2(), "layout": Layout(settings)}
        foundation = cast(Foundation, _Parts(spawner=world, **parts))
        ready = ReadyNetworks(foundation, cast(PodNetwork, world))
        descriptors = len(os.listdir("/proc/self/fd"))
        ready.start()
        await until(lambda: ready.count == size)
        await body(world, ready)
        await ready.close()
        assert (ready.count, ready.ids, world.prepared, world.pins) == (0, set(), {}, set())
        assert len(os.listdir("/proc/self/fd")) == descriptors

    asyncio.run(run())


class _Parts:
    def __init__(self, **parts: object) -> None:
        self.__dict__.update(parts)


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


async def remove(world: World, pod_id: PodId) -> None:
    """Do what the removal of the pod does."""
    await world.detach(pod_id)
    os.rmdir(f"{world.folder}/ns/{pod_id}")


def test_a_pod_gets_one_that_is_ready_and_another_is_made(tmp_path: Path) -> None:
    async def body(world: World, ready: ReadyNetworks) -> None:
        assert ready.ids == set(world.prepared)
        async with ready.lent(SPEC) as lent:
            assert lent is not None
            assert lent.pod_id in ready.ids, "the sweep must not take it for a leftover"
            os.fstat(lent.netlink_fd)
        assert lent.pod_id not in ready.ids
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(lent.netlink_fd)
        await until(lambda: ready.count == SIZE)
        assert world.made == SIZE + 1
        await remove(world, lent.pod_id)

    play(tmp_path, body)


def test_another_is_made_for_one_taken_while_all_was_found_well(tmp_path: Path) -> None:
    async def body(world: World, ready: ReadyNetworks) -> None:
        async def look_meanwhile() -> None:
            looks = world.looks
            ready.look()
            await until(lambda: world.looks > looks)

        world.slow = look_meanwhile
        async with ready.lent(SPEC) as lent:
            assert lent is not None
        await until(lambda: ready.count == SIZE)
        await remove(world, lent.pod_id)

    play(tmp_path, body)


def test_nothing_is_made_while_a_pod_is_in_the_making(tmp_path: Path) -> None:
    async def body(world: World, ready: ReadyNetworks) -> None:
        timeline = Timeline("RunPodSandbox")
        lent = [await _take(ready) for _ in range(SIZE)]
        assert await _take(ready) is None, "a burst larger than that goes the ordinary way"
        await asyncio.sleep(ready_networks.QUIET_S * 5)
        assert (ready.count, world.made) == (0, SIZE)
        timeline.stages()
        await until(lambda: ready.count == SIZE)
        for pod_id in lent:
            assert pod_id is not None
            await remove(world, pod_id)

    play(tmp_path, body)


async def _take(ready: ReadyNetworks, spec: PodSpec = SPEC) -> PodId | None:
    async with ready.lent(spec) as lent:
        return lent.pod_id if lent else None


def test_a_pod_that_could_not_be_made_leaves_nothing_of_it(tmp_path: Path) -> None:
    async def body(world: World, ready: ReadyNetworks) -> None:
        with pytest.raises(SetupFailed):
            async with ready.lent(SPEC) as lent:
                assert lent is not None
                pod_id = lent.pod_id
                raise SetupFailed("fork", 12, "no memory")
        assert pod_id not in {*ready.ids, *world.prepared, *world.pins}

    play(tmp_path, body)


def test_pods_with_other_namespaces_take_none(tmp_path: Path) -> None:
    mapping = IdMapping(container_id=0, host_id=100_000, length=65_536)
    mapped = IdMappings(uids=(mapping,), gids=(mapping,))

    async def body(world: World, ready: ReadyNetworks) -> None:
        for namespaces in (
            NamespaceModes(network=NamespaceMode.NODE),
            NamespaceModes(user=mapped),
        ):
            assert await _take(ready, msgspec.structs.replace(SPEC, namespaces=namespaces)) is None
        world.possible = False
        assert await _take(ready) is None
        assert ready.count == SIZE
        ready.look()
        await until(lambda: ready.count == 0)  # CNI has taken over

    play(tmp_path, body)


def test_those_of_a_former_range_are_removed_and_made_anew(tmp_path: Path) -> None:
    async def body(world: World, ready: ReadyNetworks) -> None:
        former = set(world.prepared)
        world.range = "10.1.0.0/24"
        ready.look()
        await until(lambda: ready.count == SIZE and not former & set(world.prepared))
        assert set(world.prepared.values()) == {"10.1.0.0/24"}
        world.range = "10.2.0.0/24"
        assert await _take(ready) is None, "no pod gets one before it was looked at either"

    play(tmp_path, body)


def test_one_that_others_have_harmed_is_not_lent(tmp_path: Path) -> None:
    async def body(world: World, ready: ReadyNetworks) -> None:
        first, second = world.prepared
        world.harmed = {first}
        assert await _take(ready) == second
        assert first not in world.pins
        await remove(world, second)

    play(tmp_path, body)


@pytest.mark.parametrize("step", ["spawner", "prepare"])
def test_one_that_cannot_be_made_leaves_nothing_and_is_tried_again(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ready_networks, "RETRY_S", 0.01)

    async def body(world: World, ready: ReadyNetworks) -> None:
        for failure in (Unavailable("no spawner"), OutOfResources("no address"), OSError(5, "io")):
            world.failing = {step: failure}
            assert await ready.give_up()
            tried = world.failed
            await until(lambda: world.failed > tried + 1)  # noqa: B023 - waited for at once
            assert not await ready.give_up()
            assert (ready.count, world.prepared, world.pins) == (0, {}, set())
            world.failing = {}
            await until(lambda: ready.count == SIZE)

    play(tmp_path, body)


def test_what_cannot_be_removed_is_left_to_the_sweep(tmp_path: Path) -> None:
    async def body(world: World, ready: ReadyNetworks) -> None:
        kept = set(world.prepared)
        world.failing = {"detach": Unavailable("no nft")}
        assert await ready.give_up()
        assert not kept & ready.ids
        world.failing = {}
        for pod_id in kept & world.pins:
            await remove(world, PodId(pod_id))

    play(tmp_path, body)


def test_none_is_made_where_none_is_wanted(tmp_path: Path) -> None:
    async def body(world: World, ready: ReadyNetworks) -> None:
        await asyncio.sleep(ready_networks.QUIET_S * 2)
        assert await _take(ready) is None
        assert world.made == 0

    play(tmp_path, body, size=0)
