# SPDX-License-Identifier: Apache-2.0
"""The server on a real unix socket with a fake application behind it."""

import asyncio
import contextlib
import json
import os
import socket
import stat
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest

from pycri import logs
from pycri.cri.api import node_v1_pb2, node_v1_pb2_grpc
from pycri.cri.api import runtime_v1_pb2 as pb
from pycri.cri.api.runtime_v1_pb2_grpc import ImageServiceStub, RuntimeServiceStub
from pycri.cri.front_client import FrontClient
from pycri.cri.server import serving
from pycri.errors import PycriError
from pycri.images.progress import LayerProgress
from pycri.model.events import Event, EventKind
from pycri.model.ids import Digest, PodId
from tests.world.fake_application import POD, WAIT_S, FakeDaemon, play, pod_request

SERVED = {
    "UpdateContainerResources",
    "UpdatePodSandboxResources",
    "Version", "RunPodSandbox", "StopPodSandbox", "RemovePodSandbox", "PodSandboxStatus",
    "ListPodSandbox", "CreateContainer", "StartContainer", "StopContainer", "RemoveContainer",
    "ListContainers", "ContainerStatus", "ReopenContainerLog", "ExecSync", "UpdateRuntimeConfig",
    "Status", "RuntimeConfig", "ListImages", "ImageStatus", "PullImage", "RemoveImage",
    "ImageFsInfo",
    "StreamPodSandboxes", "StreamContainers", "StreamImages",
    "ContainerStats", "ListContainerStats", "StreamContainerStats",
    "ListMetricDescriptors", "ListPodSandboxMetrics", "StreamPodSandboxMetrics",
    "GetContainerEvents",
    "PodSandboxStats", "ListPodSandboxStats", "StreamPodSandboxStats",
    "Exec", "Attach", "PortForward",
}  # fmt: skip


async def failure(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


def test_all_43_rpcs_answer_and_only_later_ones_are_unimplemented(path: str) -> None:
    async def scene(world: FakeDaemon, channel: grpc.aio.Channel) -> None:
        unserved = set()
        world.observed.events.close()
        methods = [m for s in pb.DESCRIPTOR.services_by_name.values() for m in s.methods]
        assert len(methods) == 43
        for method in methods:
            kind = channel.unary_stream if method.server_streaming else channel.unary_unary
            call = kind(
                f"/{method.containing_service.full_name}/{method.name}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=getattr(pb, method.output_type.name).FromString,
            )(getattr(pb, method.input_type.name)())
            if isinstance(call, grpc.aio.UnaryStreamCall):
                # The status of a stream comes after its messages.
                with contextlib.suppress(grpc.aio.AioRpcError):
                    [message async for message in call]
            if await call.code() is grpc.StatusCode.UNIMPLEMENTED:
                assert await call.details() == f"{method.name} is not implemented yet"
                unserved.add(method.name)
        assert {method.name for method in methods} - unserved == SERVED

    play(path, scene)


def test_a_pod_goes_through_and_is_listed(path: str) -> None:
    async def scene(world: FakeDaemon, channel: grpc.aio.Channel) -> None:
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


def test_the_status_of_a_pod_is_the_daemons_however_far_behind_the_front_is(path: str) -> None:
    """A status of a later time than an event's must show what the event told."""

    async def scene(world: FakeDaemon, channel: grpc.aio.Channel) -> None:
        stub = RuntimeServiceStub(channel)
        await stub.RunPodSandbox(pod_request())
        (pod,) = world.records.pods()
        world.records.mirrors = ()
        world.records.put_pod(msgspec.structs.replace(pod, stopped_ns=3))
        status = await stub.PodSandboxStatus(pb.PodSandboxStatusRequest(pod_sandbox_id=POD))
        assert status.status.state == pb.SANDBOX_NOTREADY

    play(path, scene)


def test_a_list_too_long_for_one_message_comes_in_several(path: str) -> None:
    async def scene(world: FakeDaemon, channel: grpc.aio.Channel) -> None:
        stub = RuntimeServiceStub(channel)
        await stub.RunPodSandbox(pod_request())
        (pod,) = world.records.pods()
        spec = msgspec.structs.replace(pod.spec, annotations={"a": "x" * 100_000})
        for number in range(30):
            copy = msgspec.structs.replace(pod, id=PodId(str(number)), spec=spec)
            world.records.put_pod(copy)
        await stub.Status(pb.StatusRequest())  # an answer comes behind what was told before it
        listed = (await stub.ListPodSandbox(pb.ListPodSandboxRequest())).items
        stream = stub.StreamPodSandboxes(pb.StreamPodSandboxesRequest())
        messages = [message async for message in stream]
        assert len(messages) == 3
        assert [item for message in messages for item in message.pod_sandboxes] == list(listed)

    play(path, scene)


def test_an_empty_list_is_a_stream_without_messages(path: str) -> None:
    async def scene(world: FakeDaemon, channel: grpc.aio.Channel) -> None:
        stub = RuntimeServiceStub(channel)
        assert [m async for m in stub.StreamContainers(pb.StreamContainersRequest())] == []

    play(path, scene)


def test_a_client_knows_when_it_misses_no_event_any_more(path: str) -> None:
    async def scene(world: FakeDaemon, channel: grpc.aio.Channel) -> None:
        stub = RuntimeServiceStub(channel)
        stream = stub.GetContainerEvents(pb.GetEventsRequest())
        await stream.initial_metadata()
        event = Event(kind=EventKind.DELETED, id="c", timestamp_ns=0, pod=None, containers=())
        world.observed.events.publish(event)
        world.observed.events.close()
        assert [(one.container_id, one.container_event_type) async for one in stream] == [
            ("c", pb.CONTAINER_DELETED_EVENT)
        ]

    play(path, scene)


def test_errors_arrive_with_their_code_and_message(path: str) -> None:
    async def scene(world: FakeDaemon, channel: grpc.aio.Channel) -> None:
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

    async def scene(world: FakeDaemon, channel: grpc.aio.Channel) -> None:
        world.sandboxes.failure = KeyError("lost")
        got = await failure(RuntimeServiceStub(channel).RunPodSandbox(pod_request()))
        assert got == (grpc.StatusCode.INTERNAL, "KeyError: 'lost'")

    play(path, scene)
    lines = [line for line in capfd.readouterr().err.splitlines() if "RunPodSandbox" in line]
    assert len(lines) == 1
    assert "level=error" in lines[0]
    assert "Traceback" in lines[0]


def test_nobody_is_refused_while_the_front_has_not_begun(path: str) -> None:
    async def scene() -> None:
        ours, theirs = socket.socketpair()
        front = FrontClient(ours, socket.socket(socket.AF_UNIX))
        waiting_front = front.listener.dup()
        with waiting_front, socket.socket(socket.AF_UNIX) as client:
            async with serving(path, front, FakeDaemon(path).services()):
                client.connect(path)
                theirs.close()
        front.close()

    asyncio.run(scene())


def test_one_line_a_call_at_its_level_without_secrets(
    path: str, capfd: pytest.CaptureFixture[str]
) -> None:
    logs.configure("debug")

    async def scene(world: FakeDaemon, channel: grpc.aio.Channel) -> None:
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
    async def scene(world: FakeDaemon, channel: grpc.aio.Channel) -> None:
        world.sandboxes.gate.clear()
        call = RuntimeServiceStub(channel).RunPodSandbox(pod_request())
        await world.sandboxes.entered.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert not world.records.pods()
        world.sandboxes.gate.set()

    assert play(path, scene).records.has_pod(POD)


def test_a_passed_deadline_does_not_cancel_the_work_either(path: str) -> None:
    async def scene(world: FakeDaemon, channel: grpc.aio.Channel) -> None:
        world.sandboxes.gate.clear()
        call = RuntimeServiceStub(channel).RunPodSandbox(pod_request(), timeout=0.1)
        assert (await failure(call))[0] is grpc.StatusCode.DEADLINE_EXCEEDED
        world.sandboxes.gate.set()

    assert play(path, scene).records.has_pod(POD)


def test_an_exec_ends_with_its_client(path: str) -> None:
    async def scene(world: FakeDaemon, channel: grpc.aio.Channel) -> None:
        request = pb.ExecSyncRequest(container_id="x", cmd=["wait"])
        call = RuntimeServiceStub(channel).ExecSync(request)
        await world.execs.entered.wait()
        call.cancel()
        await world.execs.cancelled.wait()

    play(path, scene)


def test_work_that_outlasts_the_grace_is_cancelled_at_stop(path: str) -> None:
    async def run() -> FakeDaemon:
        world = FakeDaemon(path)
        async with asyncio.timeout(WAIT_S):
            async with world.serve(grace_s=0.1) as channel:
                world.sandboxes.gate.clear()
                call = RuntimeServiceStub(channel).RunPodSandbox(pod_request())
                await world.sandboxes.entered.wait()
                call.cancel()
            return world

    assert not asyncio.run(run()).records.pods()


def test_a_message_of_16_mib_is_taken_and_a_larger_answer_is_sent(path: str) -> None:
    async def run() -> None:
        world = FakeDaemon(path)
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
    async def scene(world: FakeDaemon, channel: grpc.aio.Channel) -> None:
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
        (layers,), (written,) = usage.image_filesystems, usage.container_filesystems
        assert layers.fs_id == written.fs_id
        assert (layers.used_bytes.value, layers.inodes_used.value) == (2, 3)
        assert (written.used_bytes.value, written.inodes_used.value) == (7, 8)
        stop = pb.StopContainerRequest(container_id="x", timeout=7)
        await stub.StopContainer(stop)
        assert world.containers.stopped == [("x", 7)]

    play(path, scene)


def test_images_are_found_by_filter_and_absence_is_no_error(path: str) -> None:
    async def scene(world: FakeDaemon, channel: grpc.aio.Channel) -> None:
        images = ImageServiceStub(channel)

        async def listed(name: str) -> int:
            wanted = pb.ImageFilter(image=pb.ImageSpec(image=name))
            return len((await images.ListImages(pb.ListImagesRequest(filter=wanted))).images)

        assert [await listed(name) for name in ("", "app", "other")] == [1, 1, 0]
        absent = pb.ImageStatusRequest(image=pb.ImageSpec(image="other"))
        assert not (await images.ImageStatus(absent)).HasField("image")

    play(path, scene)


def test_an_image_is_imported_by_a_path_of_the_node(path: str) -> None:
    async def scene(world: FakeDaemon, channel: grpc.aio.Channel) -> None:
        node = node_v1_pb2_grpc.NodeStub(channel)
        got = await node.ImportImage(node_v1_pb2.ImportImageRequest(path="/x", name="app:1"))
        assert list(got.image_refs) == ["/x as app:1"]
        wrong = node.ImportImage(node_v1_pb2.ImportImageRequest(path="x", name="app:1"))
        assert (await failure(wrong))[0] is grpc.StatusCode.INVALID_ARGUMENT

    play(path, scene)


def test_the_socket_is_for_root_and_group_only(path: str) -> None:
    async def scene(world: FakeDaemon, channel: grpc.aio.Channel) -> None:
        found = os.stat(path)
        assert stat.S_IMODE(found.st_mode) == 0o660
        assert (found.st_uid, found.st_gid) == (os.geteuid(), os.getegid())
        assert os.listdir(os.path.dirname(path)) == ["pycri.sock"]

    play(path, scene)


def test_a_dead_servers_socket_is_replaced(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)

    async def scene(world: FakeDaemon, channel: grpc.aio.Channel) -> None:
        await RuntimeServiceStub(channel).Version(pb.VersionRequest())

    play(path, scene)


def test_a_living_servers_socket_and_a_plain_file_are_left_alone(path: str) -> None:
    async def scene(world: FakeDaemon, channel: grpc.aio.Channel) -> None:
        with pytest.raises(PycriError, match="another process listens"):
            async with FakeDaemon(path).serve():
                pass
        await RuntimeServiceStub(channel).Version(pb.VersionRequest())

    play(path, scene)
    Path(path).write_text("mine", encoding="utf-8")
    with pytest.raises(PycriError, match="not a socket"):
        play(path, scene)
    assert Path(path).read_text(encoding="utf-8") == "mine"
    os.unlink(path)


def test_changes_of_resources_reach_the_application_and_errors_name_the_field(path: str) -> None:
    limits = pb.LinuxContainerResources(cpu_shares=2, oom_score_adj=-5)

    async def scene(world: FakeDaemon, channel: grpc.aio.Channel) -> None:
        stub = RuntimeServiceStub(channel)
        request = pb.UpdateContainerResourcesRequest(container_id="c", linux=limits)
        await stub.UpdateContainerResources(request)
        assert world.updates.containers["c"].cpu_shares == 2
        assert world.updates.containers["c"].oom_score_adj == -5
        request.linux.cpu_period = 5
        code, message = await failure(stub.UpdateContainerResources(request))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert message.startswith("linux.cpu_period: ")
        pod = pb.UpdatePodSandboxResourcesRequest(pod_sandbox_id=POD, overhead=limits)
        await stub.UpdatePodSandboxResources(pod)
        overhead, resources = world.updates.pods[POD]
        assert overhead is not None
        assert resources is None
        pod.resources.oom_score_adj = 5000
        code, message = await failure(stub.UpdatePodSandboxResources(pod))
        assert message.startswith("resources.oom_score_adj: ")

    play(path, scene)


LAYER = LayerProgress(
    digest=Digest("sha256:" + "d" * 64), size_bytes=10, received_bytes=4, state="fetching"
)


def test_a_pull_tells_how_far_it_is_and_then_which_image_it_was(path: str) -> None:
    async def scene(world: FakeDaemon, channel: grpc.aio.Channel) -> None:
        world.images.pulling, world.images.progress = asyncio.Event(), (LAYER,)
        request = node_v1_pb2.WatchPullRequest(name="app:1", username="kim", password="hunter2")
        messages: Any = aiter(node_v1_pb2_grpc.NodeStub(channel).WatchPull(request))
        first = await anext(messages)
        assert [(layer.digest, layer.received_bytes) for layer in first.layers] == [
            (LAYER.digest, 4)
        ]
        assert first.layers[0].state == node_v1_pb2.LayerProgress.FETCHING and not first.image_ref
        world.images.pulling.set()
        assert [message.image_ref async for message in messages] == [world.images.image.id]

    play(path, scene)


def test_who_watches_no_more_leaves_the_pull(path: str) -> None:
    async def scene(world: FakeDaemon, channel: grpc.aio.Channel) -> None:
        world.images.pulling, world.images.progress = asyncio.Event(), (LAYER,)
        messages = node_v1_pb2_grpc.NodeStub(channel).WatchPull(
            node_v1_pb2.WatchPullRequest(name="app:1")
        )
        await messages.read()
        messages.cancel()
        await world.images.left.wait()

    play(path, scene)


def test_a_stream_that_fails_has_its_code_and_message(path: str) -> None:
    async def scene(world: FakeDaemon, channel: grpc.aio.Channel) -> None:
        request = node_v1_pb2.WatchPullRequest(name="down")
        messages = node_v1_pb2_grpc.NodeStub(channel).WatchPull(request)
        assert await failure(messages.read()) == (
            grpc.StatusCode.UNKNOWN,
            "RegistryUnavailable: example.test: refused",
        )

    play(path, scene)
