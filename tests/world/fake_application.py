# SPDX-License-Identifier: Apache-2.0
"""A CRI server whose application is fake: small, in memory, and able to wait or fail on demand."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import grpc
import msgspec

from pycri.cri.api import runtime_v1_pb2 as pb
from pycri.cri.image_service import ImageService
from pycri.cri.node_service import NodeService
from pycri.cri.runtime_service import RuntimeService
from pycri.cri.server import Services, serving
from pycri.errors import NotFound, RegistryUnavailable, WrongState
from pycri.images.checking import CheckedImage
from pycri.images.progress import LayerProgress
from pycri.images.usage import ImageUsage
from pycri.model.container import ContainerRecord, ContainerSpec, ExecResult
from pycri.model.host import Condition
from pycri.model.ids import ContainerId, ImageId, PodId
from pycri.model.image import FilesystemUsage, Image, ImageConfig, RegistryAuth
from pycri.model.pod import PodRecord, PodSpec
from pycri.model.resources import Resources
from pycri.model.stats import ContainerStats, GroupUsage, PodReading, PodStats
from pycri.model.streams import AttachRequest, ExecRequest, PortForwardRequest
from pycri.pods.catalogue import Mirror
from pycri.pods.events import Events
from pycri.pods.records import Records
from tests.world.threaded_front import threaded_front

POD = PodId("a" * 64)
IMAGE = ImageId("sha256:" + "c" * 64)
WAIT_S = 10
"""How long a scene may take."""


class FakeRecords(Records):
    """Told to a front, as the catalogue's are."""

    mirrors: tuple[Mirror, ...] = ()

    @contextmanager
    def shown_by(self, mirror: Mirror) -> Iterator[None]:
        self.mirrors = (mirror,)
        for pod in self.pods():
            mirror.put_pod(pod)
        for container in self.containers():
            mirror.put_container(container)
        yield
        self.mirrors = ()

    def put_pod(self, pod: PodRecord) -> None:
        super().put_pod(pod)
        for mirror in self.mirrors:
            mirror.put_pod(pod)

    def drop_pod(self, pod_id: PodId) -> PodRecord | None:
        for mirror in self.mirrors:
            mirror.drop_pod(pod_id)
        return super().drop_pod(pod_id)

    def put_container(self, container: ContainerRecord) -> None:
        super().put_container(container)
        for mirror in self.mirrors:
            mirror.put_container(container)


class FakeSandboxes:
    """Makes the one pod there is; run waits for `gate`."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self.gate = asyncio.Event()
        self.gate.set()
        self.entered = asyncio.Event()
        self.failure: Exception | None = None

    async def run(self, spec: PodSpec) -> PodId:
        self.entered.set()
        await self.gate.wait()
        if self.failure:
            raise self.failure
        self._records.put_pod(PodRecord(id=POD, spec=spec, created_ns=1, ready_ns=2))
        return POD

    async def stop(self, pod_id: str) -> None: ...

    async def remove(self, pod_id: str) -> None:
        self._records.drop_pod(PodId(pod_id))


class FakeContainers:
    """Remembers which were stopped."""

    def __init__(self) -> None:
        self.stopped: list[tuple[str, int]] = []

    async def create(self, pod_id: str, spec: ContainerSpec) -> ContainerId:
        raise NotFound("pod sandbox", pod_id)

    async def start(self, container_id: str) -> None:
        raise WrongState("container has exited")

    async def stop(self, container_id: str, timeout_s: int) -> None:
        self.stopped.append((container_id, timeout_s))

    async def remove(self, container_id: str) -> None: ...

    async def reopen_log(self, container_id: str) -> None: ...


class FakeUpdates:
    """Remembers what was asked, by id."""

    def __init__(self) -> None:
        self.containers: dict[str, Resources] = {}
        self.pods: dict[str, tuple[Resources | None, Resources | None]] = {}

    async def update_container(self, container_id: str, asked: Resources) -> None:
        self.containers[container_id] = asked

    async def update_pod(
        self, pod_id: str, overhead: Resources | None, resources: Resources | None
    ) -> None:
        if pod_id != POD:
            raise NotFound("pod sandbox", pod_id)
        self.pods[pod_id] = overhead, resources


class FakeExecs:
    """Knows the commands "wait" and "big SIZE"; any other prints one letter."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def exec_sync(
        self, container_id: str, command: tuple[str, ...], timeout_s: int
    ) -> ExecResult:
        if command[0] == "wait":
            self.entered.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled.set()
        size = int(command[1]) if command[0] == "big" else 1
        return ExecResult(stdout=b"o" * size, stderr=b"", exit_code=3)


class FakeStats:
    """Has those of the records, without numbers."""

    def __init__(self, records: Records) -> None:
        self._records = records

    async def container(self, container_id: str) -> ContainerStats:
        return ContainerStats(container=self._records.container(container_id))

    async def containers(
        self, *, id_prefix: str = "", pod_prefix: str = "", labels: Mapping[str, str] = {}
    ) -> list[ContainerStats]:
        records = self._records.find_containers(pod_prefix=pod_prefix)
        return [ContainerStats(container=record) for record in records]

    async def pod(self, pod_id: str) -> PodStats:
        usage = GroupUsage(timestamp_ns=5)
        return PodStats(pod=self._records.pod(pod_id), usage=usage)

    async def pods(self, *, id_prefix: str = "", labels: Mapping[str, str] = {}) -> list[PodStats]:
        return [await self.pod(pod.id) for pod in self._records.find_pods(id_prefix=id_prefix)]


class FakeMetrics:
    async def read(self) -> list[PodReading]:
        return []


class FakeObserved:
    def __init__(self, stats: FakeStats) -> None:
        self.stats = stats
        self.metrics = FakeMetrics()
        self.events = Events()


class FakeStreaming:
    """Remembers what was asked."""

    def __init__(self) -> None:
        self.asked: list[ExecRequest | AttachRequest | PortForwardRequest] = []

    def url(self, request: ExecRequest | AttachRequest | PortForwardRequest) -> str:
        self.asked.append(request)
        return f"http://127.0.0.1:1/{len(self.asked)}"


class FakeNode:
    def __init__(self) -> None:
        self.cidr = ""

    def conditions(self) -> list[Condition]:
        return [Condition(type="RuntimeReady", status=True)]

    def user_namespaces(self) -> bool:
        return True

    async def set_pod_cidr(self, cidr: str) -> None:
        self.cidr = cidr

    def verbose(self) -> dict[str, str]:
        return {"config": "{}"}


class FakeImages:
    image = Image(id=IMAGE, size_bytes=1, config=ImageConfig(), architecture="amd64")
    progress: tuple[LayerProgress, ...] = ()
    pulling: asyncio.Event | None = None

    def __init__(self) -> None:
        self.left = asyncio.Event()

    def images(self) -> list[Image]:
        return [self.image]

    def find(self, name: str) -> Image | None:
        return self.image if name == "app" else None

    async def pull(self, name: str, auth: RegistryAuth | None) -> Image:
        if name == "down":
            raise RegistryUnavailable("example.test: refused")
        assert auth is None or auth.password == "hunter2"
        if self.pulling:
            try:
                await self.pulling.wait()
            except asyncio.CancelledError:
                self.left.set()
                raise
        return self.image

    def pull_progress(self, name: str, auth: RegistryAuth | None) -> tuple[LayerProgress, ...]:
        return self.progress

    async def remove(self, name: str) -> None: ...

    async def import_archive(self, path: Path, name: str) -> tuple[Image, ...]:
        return (msgspec.structs.replace(self.image, id=ImageId(f"{path} as {name}")),)

    async def export(self, path: Path, names: Sequence[str], *, folder: bool) -> None:
        if names != ["app"]:
            raise NotFound("image", names[0])

    async def check(self) -> AsyncIterator[CheckedImage]:
        for problems in ((), ("layer sha256:e: 'bin/sh' is missing",)):
            yield CheckedImage(
                image=self.image, problems=problems, broken=frozenset(), not_compared=0
            )

    async def repair(self, found: Sequence[CheckedImage]) -> list[Image]:
        return [checked.image for checked in found]

    def usages(self) -> list[ImageUsage]:
        return [
            ImageUsage(
                image=self.image, size_bytes=3_000_000, shared_bytes=2_000_000, reclaimable_bytes=0
            )
        ]

    def total(self) -> tuple[int, int]:
        return 7, 8

    def usage(self) -> FilesystemUsage:
        return FilesystemUsage(timestamp_ns=1, mountpoint="/", used_bytes=2, inodes_used=3)


class FakeNetworks:
    """One pod, in which something is wrong."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self.problems = ["pod a: its link pc1 is not there"]

    def list(self) -> list[PodRecord]:
        return list(self._records.pods())

    async def check(self) -> Sequence[str]:
        return self.problems

    async def collect(self) -> None:
        self.problems = []


class FakeDaemon:
    """A server with its fakes and a client."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.records = FakeRecords()
        self.sandboxes = FakeSandboxes(self.records)
        self.containers = FakeContainers()
        self.updates = FakeUpdates()
        self.execs = FakeExecs()
        self.node = FakeNode()
        self.observed = FakeObserved(FakeStats(self.records))
        self.streaming = FakeStreaming()
        self.images = FakeImages()
        self.networks = FakeNetworks(self.records)

    def services(self) -> Services:
        return Services(
            RuntimeService(
                records=self.records,
                sandboxes=self.sandboxes,
                containers=self.containers,
                updates=self.updates,
                execs=self.execs,
                streaming=self.streaming,
                node=self.node,
                observed=self.observed,
            ),
            ImageService(self.images, self.images),
            NodeService(self.images, self.networks),
        )

    @asynccontextmanager
    async def serve(self, grace_s: float = 10) -> AsyncIterator[grpc.aio.Channel]:
        with threaded_front() as front, self.records.shown_by(front):
            async with (
                serving(self.path, front, self.services(), grace_s=grace_s),
                grpc.aio.insecure_channel(f"unix:{self.path}") as channel,
            ):
                yield channel


Scene = Callable[[FakeDaemon, grpc.aio.Channel], Awaitable[None]]


def play(path: str, scene: Scene) -> FakeDaemon:
    """Run a scene against a fresh server, and return what it was played with."""

    async def run() -> FakeDaemon:
        world = FakeDaemon(path)
        async with asyncio.timeout(WAIT_S), world.serve() as channel:
            await scene(world, channel)
        return world

    return asyncio.run(run())


def pod_request() -> pb.RunPodSandboxRequest:
    """Return what asks for the one pod there is."""
    metadata = pb.PodSandboxMetadata(name="web", uid="u", namespace="ns")
    return pb.RunPodSandboxRequest(config=pb.PodSandboxConfig(metadata=metadata))
