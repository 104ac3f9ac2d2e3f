# SPDX-License-Identifier: Apache-2.0
"""The server on a real unix socket with a fake application behind it."""

import asyncio
import json
import os
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest

from pycri import logs
from pycri.cri.api import node_v1_pb2, node_v1_pb2_grpc
from pycri.cri.api import runtime_v1_pb2 as pb
from pycri.cri.api.runtime_v1_pb2_grpc import ImageServiceStub, RuntimeServiceStub
from pycri.cri.image_service import ImageService, NodeService
from pycri.cri.runtime_service import RuntimeService
from pycri.cri.server import serving
from pycri.errors import NotFound, PycriError, RegistryUnavailable, WrongState
from pycri.model.container import ContainerRecord, ContainerSpec, ContainerState, ExecResult
from pycri.model.host import Condition
from pycri.model.ids import ContainerId, ImageId, PodId
from pycri.model.image import FilesystemUsage, Image, ImageConfig, RegistryAuth
from pycri.model.pod import PodRecord, PodSpec, PodState

POD = PodId("a" * 64)
IMAGE = ImageId("sha256:" + "c" * 64)
WAIT_S = 10

SERVED = {
    "Version", "RunPodSandbox", "StopPodSandbox", "RemovePodSandbox", "PodSandboxStatus",
    "ListPodSandbox", "CreateContainer", "StartContainer", "StopContainer", "RemoveContainer",
    "ListContainers", "ContainerStatus", "ReopenContainerLog", "ExecSync", "UpdateRuntimeConfig",
    "Status", "RuntimeConfig", "ListImages", "ImageStatus", "PullImage", "RemoveImage",
    "ImageFsInfo",
}  # fmt: skip


class FakeSandboxes:
    """Remembers pods; run waits for `gate`."""

    def __init__(self) -> None:
        self.pods: dict[str, PodRecord] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.entered = asyncio.Event()
        self.failure: Exception | None = None

    async def run(self, spec: PodSpec) -> PodId:
        self.entered.set()
        await self.gate.wait()
        if self.failure:
            raise self.failure
        self.pods[POD] = PodRecord(id=POD, spec=spec, created_ns=1, ready_ns=2)
        return POD

    async def stop(self, pod_id: str) -> None: ...

    async def remove(self, pod_id: str) -> None:
        self.pods.pop(pod_id, None)

    def status(self, pod_id: str) -> PodRecord:
        if pod_id not in self.pods:
            raise NotFound("pod sandbox", pod_id)
        return self.pods[pod_id]

    def list(
        self,
        *,
        id_prefix: str = "",
        state: PodState | None = None,
        labels: Mapping[str, str] = {},
    ) -> list[PodRecord]:
        return [
            pod
            for pod in self.pods.values()
            if pod.id.startswith(id_prefix) and (state is None or pod.state is state)
        ]


class FakeContainers:
    """Has none."""

    def __init__(self) -> None:
        self.stopped: list[tuple[str, int]] = []

    async def create(self, pod_id: str, spec: ContainerSpec) -> ContainerId:
        raise NotFound("pod sandbox", pod_id)

    async def start(self, container_id: str) -> None:
        raise WrongState("container has exited")

    async def stop(self, container_id: str, timeout_s: int) -> None:
        self.stopped.append((container_id, timeout_s))

    async def remove(self, container_id: str) -> None: ...

    def status(self, container_id: str) -> ContainerRecord:
        raise NotFound("container", container_id)

    def list(
        self,
        *,
        id_prefix: str = "",
        pod_prefix: str = "",
        state: ContainerState | None = None,
        labels: Mapping[str, str] = {},
    ) -> list[ContainerRecord]:
        return []

    async def reopen_log(self, container_id: str) -> None: ...


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


class FakeNode:
    def __init__(self) -> None:
        self.cidr = ""

    def conditions(self) -> list[Condition]:
        return [Condition(type="RuntimeReady", status=True)]

    async def set_pod_cidr(self, cidr: str) -> None:
        self.cidr = cidr

    def verbose(self) -> dict[str, str]:
        return {"config": "{}"}


class FakeImages:
    image = Image(id=IMAGE, size_bytes=1, config=ImageConfig(), architecture="amd64")

    def images(self) -> list[Image]:
        return [self.image]

    def find(self, name: str) -> Image | None:
        return self.image if name == "app" else None

    async def pull(self, name: str, auth: RegistryAuth | None) -> Image:
        if name == "down":
            raise RegistryUnavailable("example.test: refused")
        assert auth is None or auth.password == "hunter2"
        return self.image

    async def remove(self, name: str) -> None: ...

    async def import_layout(self, path: Path, name: str) -> Image:
        return msgspec.structs.replace(self.image, id=ImageId(f"{path} as {name}"))

    def usage(self) -> FilesystemUsage:
        return FilesystemUsage(timestamp_ns=1, mountpoint="/", used_bytes=2, inodes_used=3)


class World:
    """A server with its fakes and a client."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.sandboxes = FakeSandboxes()
        self.containers = FakeContainers()
        self.execs = FakeExecs()
        self.node = FakeNode()
        self.images = FakeImages()

    @asynccontextmanager
    async def serve(self, grace_s: float = WAIT_S) -> AsyncIterator[grpc.aio.Channel]:
        services = (
            RuntimeService(self.sandboxes, self.containers, self.execs, self.node),
            ImageService(self.images),
            NodeService(self.images),
        )
        async with (
            serving(self.path, *services, grace_s=grace_s),
            grpc.aio.insecure_channel(f"unix:{self.path}") as channel,
        ):
            yield channel


@pytest.fixture
def path() -> Iterator[str]:
    """A short path: sun_path holds 108 bytes."""
    with tempfile.TemporaryDirectory(prefix="pycri-") as folder:
        yield f"{folder}/pycri.sock"
        assert not os.listdir(folder), "the server left something behind"


def play(path: str, scene: Callable[[World, grpc.aio.Channel], Awaitable[None]]) -> World:
    """Run a scene against a fresh server."""

    async def run() -> World:
        world = World(path)
        async with asyncio.timeout(WAIT_S), world.serve() as channel:
            await scene(world, channel)
        return world

    return asyncio.run(run())


def pod_request() -> pb.RunPodSandboxRequest:
    metadata = pb.PodSandboxMetadata(name="web", uid="u", namespace="ns")
    return pb.RunPodSandboxRequest(config=pb.PodSandboxConfig(metadata=metadata))


async def failure(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


def test_all_43_rpcs_answer_and_only_later_ones_are_unimplemented(path: str) -> None:
    async def scene(world: World, channel: grpc.aio.Channel) -> None:
        unserved = set()
        methods = [m for s in pb.DESCRIPTOR.services_by_name.values() for m in s.methods]
        assert len(methods) == 43
        for method in methods:
            kind = channel.unary_stream if method.server_streaming else channel.unary_unary
            call = kind(
                f"/{method.containing_service.full_name}/{method.name}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=getattr(pb, method.output_type.name).FromString,
            )(getattr(pb, method.input_type.name)())
            if await call.code() is grpc.StatusCode.UNIMPLEMENTED:
                assert await call.details() == f"{method.name} is not implemented yet"
                unserved.add(method.name)
        assert {method.name for method in methods} - unserved == SERVED

    play(path, scene)


def test_a_pod_goes_through_and_is_listed(path: str) -> None:
    async def scene(world: World, channel: grpc.aio.Channel) -> None:
        stub = RuntimeServiceStub(channel)
        assert (await stub.RunPodSandbox(pod_request())).pod_sandbox_id == POD
        listed = await stub.ListPodSandbox(pb.ListPodSandboxRequest())
        assert [item.metadata.name for item in listed.items] == ["web"]
        status = await stub.PodSandboxStatus(
            pb.PodSandboxStatusRequest(pod_sandbox_id=POD, verbose=True)
        )
        assert json.loads(status.info["info"])["sandboxID"] == POD
        plain = await stub.PodSandboxStatus(pb.PodSandboxStatusRequest(pod_sandbox_id=POD))
        assert not plain.info

    play(path, scene)


def test_errors_arrive_with_their_code_and_message(path: str) -> None:
    async def scene(world: World, channel: grpc.aio.Channel) -> None:
        stub, images = RuntimeServiceStub(channel), ImageServiceStub(channel)
        code = grpc.StatusCode
        assert await failure(stub.RunPodSandbox(pb.RunPodSandboxRequest())) == (
            code.INVALID_ARGUMENT,
            "config: is missing",
        )
        assert await failure(stub.ContainerStatus(pb.ContainerStatusRequest(container_id="x"))) == (
            code.NOT_FOUND,
            "container 'x' not found",
        )
        assert (await failure(stub.StartContainer(pb.StartContainerRequest(container_id="x"))))[
            0
        ] is code.FAILED_PRECONDITION
        down = pb.PullImageRequest(image=pb.ImageSpec(image="down"))
        assert await failure(images.PullImage(down)) == (
            code.UNKNOWN,
            "RegistryUnavailable: example.test: refused",
        )

    play(path, scene)


def test_an_unforeseen_error_is_internal_and_logged_once_with_its_traceback(
    path: str, capfd: pytest.CaptureFixture[str]
) -> None:
    logs.configure("info")

    async def scene(world: World, channel: grpc.aio.Channel) -> None:
        world.sandboxes.failure = KeyError("lost")
        got = await failure(RuntimeServiceStub(channel).RunPodSandbox(pod_request()))
        assert got == (grpc.StatusCode.INTERNAL, "KeyError: 'lost'")

    play(path, scene)
    lines = [line for line in capfd.readouterr().err.splitlines() if "RunPodSandbox" in line]
    assert len(lines) == 1
    assert "level=error" in lines[0]
    assert "Traceback" in lines[0]


def test_one_line_a_call_at_its_level_without_secrets(
    path: str, capfd: pytest.CaptureFixture[str]
) -> None:
    logs.configure("debug")

    async def scene(world: World, channel: grpc.aio.Channel) -> None:
        stub = RuntimeServiceStub(channel)
        await stub.RunPodSandbox(pod_request())
        await stub.ListPodSandbox(pb.ListPodSandboxRequest())
        auth = pb.AuthConfig(username="me", password="hunter2")
        await ImageServiceStub(channel).PullImage(
            pb.PullImageRequest(image=pb.ImageSpec(image="app"), auth=auth)
        )

    play(path, scene)
    text = capfd.readouterr().err
    lines = [line for line in text.splitlines() if "event=call" in line]
    ran, listed, pulled = lines
    assert "level=info request=" in ran
    assert f"method=RunPodSandbox ms={ran.split('ms=')[1].split()[0]} name=web pod={POD}" in ran
    assert "level=debug" in listed
    assert "image=app" in pulled
    assert "hunter2" not in text
    ids = {line.split("request=")[1].split()[0] for line in lines}
    assert len(ids) == 3


def test_a_client_that_hangs_up_does_not_cancel_the_work(path: str) -> None:
    async def scene(world: World, channel: grpc.aio.Channel) -> None:
        world.sandboxes.gate.clear()
        call = RuntimeServiceStub(channel).RunPodSandbox(pod_request())
        await world.sandboxes.entered.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert not world.sandboxes.pods
        world.sandboxes.gate.set()

    assert POD in play(path, scene).sandboxes.pods


def test_a_passed_deadline_does_not_cancel_the_work_either(path: str) -> None:
    async def scene(world: World, channel: grpc.aio.Channel) -> None:
        world.sandboxes.gate.clear()
        call = RuntimeServiceStub(channel).RunPodSandbox(pod_request(), timeout=0.1)
        assert (await failure(call))[0] is grpc.StatusCode.DEADLINE_EXCEEDED
        world.sandboxes.gate.set()

    assert POD in play(path, scene).sandboxes.pods


def test_an_exec_ends_with_its_client(path: str) -> None:
    async def scene(world: World, channel: grpc.aio.Channel) -> None:
        request = pb.ExecSyncRequest(container_id="x", cmd=["wait"])
        call = RuntimeServiceStub(channel).ExecSync(request)
        await world.execs.entered.wait()
        call.cancel()
        await world.execs.cancelled.wait()

    play(path, scene)


def test_work_that_outlasts_the_grace_is_cancelled_at_stop(path: str) -> None:
    async def run() -> World:
        world = World(path)
        async with asyncio.timeout(WAIT_S):
            async with world.serve(grace_s=0.1) as channel:
                world.sandboxes.gate.clear()
                call = RuntimeServiceStub(channel).RunPodSandbox(pod_request())
                await world.sandboxes.entered.wait()
                call.cancel()
            return world

    assert not asyncio.run(run()).sandboxes.pods


def test_a_message_of_16_mib_is_taken_and_a_larger_answer_is_sent(path: str) -> None:
    async def run() -> None:
        world = World(path)
        options = [("grpc.max_receive_message_length", -1)]
        async with (
            world.serve(),
            grpc.aio.insecure_channel(f"unix:{path}", options=options) as channel,
        ):
            stub = RuntimeServiceStub(channel)
            request = pod_request()
            request.config.annotations["big"] = "x" * (15 << 20)
            await stub.RunPodSandbox(request)
            big = pb.ExecSyncRequest(container_id="x", cmd=["big", str(17 << 20)])
            assert len((await stub.ExecSync(big)).stdout) == 17 << 20
            request.config.annotations["big"] = "x" * (17 << 20)
            code, _ = await failure(stub.RunPodSandbox(request))
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED

    asyncio.run(run())


def test_the_node_calls_answer_what_the_kubelet_needs(path: str) -> None:
    async def scene(world: World, channel: grpc.aio.Channel) -> None:
        stub, images = RuntimeServiceStub(channel), ImageServiceStub(channel)
        version = await stub.Version(pb.VersionRequest())
        assert (version.version, version.runtime_api_version) == ("0.1.0", "v1")
        status = await stub.Status(pb.StatusRequest(verbose=True))
        assert {handler.name for handler in status.runtime_handlers} == {"", "pycri"}
        assert all(h.features.recursive_read_only_mounts for h in status.runtime_handlers)
        assert status.features.supplemental_groups_policy
        assert dict(status.info) == {"config": "{}"}
        driver = await stub.RuntimeConfig(pb.RuntimeConfigRequest())
        assert driver.linux.cgroup_driver == pb.CGROUPFS
        config = pb.RuntimeConfig(network_config=pb.NetworkConfig(pod_cidr="10.9.0.0/24"))
        await stub.UpdateRuntimeConfig(pb.UpdateRuntimeConfigRequest(runtime_config=config))
        assert world.node.cidr == "10.9.0.0/24"
        usage = await images.ImageFsInfo(pb.ImageFsInfoRequest())
        assert usage.image_filesystems
        assert usage.container_filesystems
        stop = pb.StopContainerRequest(container_id="x", timeout=7)
        await stub.StopContainer(stop)
        assert world.containers.stopped == [("x", 7)]

    play(path, scene)


def test_images_are_found_by_filter_and_absence_is_no_error(path: str) -> None:
    async def scene(world: World, channel: grpc.aio.Channel) -> None:
        images = ImageServiceStub(channel)

        async def listed(name: str) -> int:
            wanted = pb.ImageFilter(image=pb.ImageSpec(image=name))
            return len((await images.ListImages(pb.ListImagesRequest(filter=wanted))).images)

        assert [await listed(name) for name in ("", "app", "other")] == [1, 1, 0]
        absent = pb.ImageStatusRequest(image=pb.ImageSpec(image="other"))
        assert not (await images.ImageStatus(absent)).HasField("image")

    play(path, scene)


def test_an_image_is_imported_by_a_path_of_the_node(path: str) -> None:
    async def scene(world: World, channel: grpc.aio.Channel) -> None:
        node = node_v1_pb2_grpc.NodeStub(channel)
        got = await node.ImportImage(node_v1_pb2.ImportImageRequest(path="/x", name="app:1"))
        assert got.image_ref == "/x as app:1"
        wrong = node.ImportImage(node_v1_pb2.ImportImageRequest(path="x", name="app:1"))
        assert (await failure(wrong))[0] is grpc.StatusCode.INVALID_ARGUMENT

    play(path, scene)


def test_the_socket_is_for_root_and_group_only(path: str) -> None:
    async def scene(world: World, channel: grpc.aio.Channel) -> None:
        found = os.stat(path)
        assert stat.S_IMODE(found.st_mode) == 0o660
        assert (found.st_uid, found.st_gid) == (os.geteuid(), os.getegid())
        assert os.listdir(os.path.dirname(path)) == ["pycri.sock"]

    play(path, scene)


def test_a_dead_servers_socket_is_replaced(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)

    async def scene(world: World, channel: grpc.aio.Channel) -> None:
        await RuntimeServiceStub(channel).Version(pb.VersionRequest())

    play(path, scene)


def test_a_living_servers_socket_and_a_plain_file_are_left_alone(path: str) -> None:
    async def scene(world: World, channel: grpc.aio.Channel) -> None:
        with pytest.raises(PycriError, match="another process listens"):
            async with World(path).serve():
                pass
        await RuntimeServiceStub(channel).Version(pb.VersionRequest())

    play(path, scene)
    Path(path).write_text("mine", encoding="utf-8")
    with pytest.raises(PycriError, match="not a socket"):
        play(path, scene)
    assert Path(path).read_text(encoding="utf-8") == "mine"
    os.unlink(path)
