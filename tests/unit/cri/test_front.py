# SPDX-License-Identifier: Apache-2.0
"""What the front does for clients that are fast, slow, odd or gone."""

import asyncio
import os
import socket
import subprocess
import sys
import threading
from typing import Any

import grpc
import msgspec
import pytest
from google.protobuf.message import Message

from pycri.cri.account import Look
from pycri.cri.api import runtime_v1_pb2 as pb
from pycri.cri.api.runtime_v1_pb2_grpc import RuntimeServiceStub
from pycri.cri.call import Call
from pycri.model.events import Event, EventKind
from pycri.model.ids import PodId
from tests.world import http2
from tests.world.fake_application import POD, WAIT_S, FakeDaemon, play, pod_request
from tests.world.http2 import END_HEADERS, END_STREAM, PREFACE, Kind
from tests.world.threaded_front import threaded_front

LIST = b"/runtime.v1.RuntimeService/ListPodSandbox"
EXEC = b"/runtime.v1.RuntimeService/ExecSync"
EMPTY = bytes(5)
WAITING = pb.ExecSyncRequest(container_id="x", cmd=["wait"])


def request(stream: int, path: bytes, body: bytes, **headers: bytes) -> bytes:
    """Return the frames of a whole request."""
    fields = {
        b":method": b"POST",
        b":path": path,
        b"content-type": b"application/grpc",
        **{name.replace("_", "-").encode(): value for name, value in headers.items()},
    }
    return http2.frame(Kind.HEADERS, END_HEADERS, stream, http2.encode(fields.items())) + (
        http2.frame(Kind.DATA, END_STREAM, stream, body)
    )


def message(request: Message) -> bytes:
    """Return the body of a call."""
    data = request.SerializeToString()
    return b"\0" + len(data).to_bytes(4, "big") + data


class RawClient:
    """Speaks frames; everything it expects comes within WAIT_S."""

    def __init__(self, path: str, **settings: int) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(WAIT_S)
        self._socket.connect(path)
        self.send(PREFACE + http2.settings_frame(**settings))
        self._reader = http2.Reader()

    def __enter__(self) -> "RawClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def ask(self, stream: int, path: bytes = LIST, body: bytes = EMPTY, **headers: bytes) -> None:
        self.send(request(stream, path, body, **headers))

    def frame(self) -> http2.Frame:
        while (frame := self._reader.frame()) is None:
            data = self._socket.recv(65536)
            assert data, "hung up"
            self._reader.feed(data)
        return frame

    def end(self, stream: int) -> dict[bytes, bytes]:
        """Return the headers and trailers of an answer, in one."""
        found: dict[bytes, bytes] = {}
        while True:
            frame = self.frame()
            if frame.kind == Kind.HEADERS and frame.stream_id == stream:
                found |= frame.fields
                if frame.flags & END_STREAM:
                    return found


async def add_large_pods(world: FakeDaemon, channel: grpc.aio.Channel) -> None:
    """Make lists take six megabytes, with copies of the one pod there is."""
    (pod,) = world.records.pods()
    spec = msgspec.structs.replace(pod.spec, annotations={"a": "x" * 300_000})
    for number in range(20):
        copy = msgspec.structs.replace(pod, id=PodId(str(number)), spec=spec)
        world.records.put_pod(copy)
    # An answer comes behind what the front was told before it.
    await RuntimeServiceStub(channel).Status(pb.StatusRequest())


def test_who_only_looks_does_not_wait_for_the_event_loop(path: str) -> None:
    async def scene(world: FakeDaemon, channel: grpc.aio.Channel) -> None:
        await RuntimeServiceStub(channel).RunPodSandbox(pod_request())
        listed: list[Any] = []

        def look() -> None:
            with grpc.insecure_channel(f"unix:{path}") as own:
                stub = RuntimeServiceStub(own)
                listed.extend(stub.ListPodSandbox(pb.ListPodSandboxRequest()).items)
                wanted = pb.PodSandboxStatusRequest(pod_sandbox_id=POD)
                listed.append(stub.PodSandboxStatus(wanted).status)
                listed.extend(stub.StreamPodSandboxes(pb.StreamPodSandboxesRequest()))

        looking = threading.Thread(target=look)
        looking.start()
        looking.join(WAIT_S / 2)  # of the loop's thread, which can do nothing else meanwhile
        assert len(listed) == 3

    play(path, scene)


def test_many_calls_at_once_that_wait_do_not_hold_up_a_listing(path: str) -> None:
    async def scene(world: FakeDaemon, channel: grpc.aio.Channel) -> None:
        stub = RuntimeServiceStub(channel)
        world.sandboxes.gate.clear()
        calls = [stub.RunPodSandbox(pod_request()) for _ in range(500)]
        streams = [stub.GetContainerEvents(pb.GetEventsRequest()) for _ in range(100)]
        for stream in streams:
            await stream.initial_metadata()
        await stub.ListPodSandbox(pb.ListPodSandboxRequest())
        assert not any(call.done() for call in calls)
        world.sandboxes.gate.set()
        assert {(await call).pod_sandbox_id for call in calls} == {POD}
        for stream in streams:
            stream.cancel()

    play(path, scene)


def test_a_reader_that_takes_nothing_is_sent_no_more_than_it_has_room_for(path: str) -> None:
    async def scene(world: FakeDaemon, channel: grpc.aio.Channel) -> None:
        await RuntimeServiceStub(channel).RunPodSandbox(pod_request())
        await add_large_pods(world, channel)

        def read() -> int:
            with RawClient(path, initial_window_size=100_000) as client:
                client.ask(1, b"/runtime.v1.RuntimeService/StreamPodSandboxes")
                received = 0
                while received < 65535:  # of the connection; both grow by asking for more
                    frame = client.frame()
                    received += len(frame.payload) if frame.kind == Kind.DATA else 0
                client.send(http2.frame(Kind.PING, 0, 0, b"anything"))
                while (frame := client.frame()).kind != Kind.PING:
                    assert frame.kind != Kind.DATA
                for stream in (0, 1):
                    more = http2.number_frame(Kind.WINDOW_UPDATE, stream, 10_000_000)
                    client.send(more)
                found = client.end(1)
                assert found[b"grpc-status"] == b"0"
                return received

        assert await asyncio.to_thread(read) == 65535

    play(path, scene)


def test_a_client_that_leaves_in_the_middle_of_a_list_is_forgotten(path: str) -> None:
    async def scene(world: FakeDaemon, channel: grpc.aio.Channel) -> None:
        stub = RuntimeServiceStub(channel)
        await stub.RunPodSandbox(pod_request())
        await add_large_pods(world, channel)

        def leave() -> None:
            for reset in (True, False):
                with RawClient(path) as client:
                    client.ask(1, b"/runtime.v1.RuntimeService/StreamPodSandboxes")
                    while client.frame().kind != Kind.DATA:
                        pass
                    if reset:
                        client.send(http2.number_frame(Kind.RST_STREAM, 1, http2.Code.CANCEL))
                        client.send(http2.number_frame(Kind.WINDOW_UPDATE, 0, 100_000))
                        client.ask(3, b"/runtime.v1.RuntimeService/Version")
                        assert client.end(3)[b"grpc-status"] == b"0"

        await asyncio.to_thread(leave)
        wanted = pb.ListPodSandboxRequest(filter=pb.PodSandboxFilter(id=POD))
        assert (await stub.ListPodSandbox(wanted)).items

    play(path, scene)


def test_an_event_stream_waits_for_its_reader_and_goes_on(path: str) -> None:
    async def scene(world: FakeDaemon, channel: grpc.aio.Channel) -> None:
        ids = [f"{number:04}" + "x" * 10_000 for number in range(40)]
        ready = asyncio.Event()
        loop = asyncio.get_running_loop()

        def read() -> int:
            with RawClient(path, initial_window_size=20_000) as client:
                client.ask(1, b"/runtime.v1.RuntimeService/GetContainerEvents")
                while client.frame().kind != Kind.HEADERS:
                    pass
                loop.call_soon_threadsafe(ready.set)
                received = 0
                while (frame := client.frame()).kind != Kind.HEADERS:
                    if frame.kind == Kind.DATA:
                        received += len(frame.payload)
                        for stream in (0, 1):
                            room = http2.number_frame(
                                Kind.WINDOW_UPDATE, stream, len(frame.payload)
                            )
                            client.send(room)
                return received

        reading = asyncio.create_task(asyncio.to_thread(read))
        await ready.wait()
        for one in ids:
            event = Event(kind=EventKind.DELETED, id=one, timestamp_ns=0, pod=None, containers=())
            world.observed.events.publish(event)
        world.observed.events.close()
        assert await reading > 40 * 10_000

    play(path, scene)


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ({}, {b":status": b"200", b"grpc-status": b"0"}),
        ({"path": b"/runtime.v1.RuntimeService/Nothing"}, {b"grpc-status": b"12"}),
        ({"body": b"\x01" + EMPTY[1:]}, {b"grpc-status": b"12"}),
        ({"body": b""}, {b"grpc-status": b"13"}),
        ({"body": EMPTY + b"x"}, {b"grpc-status": b"13"}),
        ({"body": b"\0\0\0\0\x01\xff"}, {b"grpc-status": b"13"}),
        ({"grpc_timeout": b"soon"}, {b"grpc-status": b"13"}),
        ({"content_type": b"text/plain"}, {b":status": b"415"}),
    ],
)
def test_what_is_no_call_is_refused_and_the_connection_goes_on(
    path: str, asked: dict[str, Any], wanted: dict[bytes, bytes]
) -> None:
    def ask() -> None:
        with RawClient(path) as client:
            client.ask(1, **asked)
            assert wanted.items() <= client.end(1).items()
            client.ask(3)
            assert client.end(3)[b"grpc-status"] == b"0"

    async def scene(world: FakeDaemon, channel: grpc.aio.Channel) -> None:
        await asyncio.to_thread(ask)

    play(path, scene)


def test_a_call_given_up_in_the_moment_it_is_made_does_not_go_on(path: str) -> None:
    def ask() -> None:
        with RawClient(path) as client:
            given_up = http2.number_frame(Kind.RST_STREAM, 1, http2.Code.CANCEL)
            client.send(request(1, EXEC, message(WAITING)) + given_up)
            client.ask(3)
            assert client.end(3)[b"grpc-status"] == b"0"

    async def scene(world: FakeDaemon, channel: grpc.aio.Channel) -> None:
        await asyncio.to_thread(ask)
        await RuntimeServiceStub(channel).RunPodSandbox(pod_request())  # behind the other
        if world.execs.entered.is_set():
            await world.execs.cancelled.wait()

    play(path, scene)


def test_the_server_keeps_a_deadline_that_its_client_does_not(path: str) -> None:
    def ask() -> None:
        with RawClient(path) as client:
            client.ask(1, EXEC, message(WAITING), grpc_timeout=b"50m")
            found = client.end(1)
            assert found[b"grpc-status"] == b"4"

    async def scene(world: FakeDaemon, channel: grpc.aio.Channel) -> None:
        await asyncio.to_thread(ask)
        await world.execs.cancelled.wait()

    play(path, scene)


def test_who_does_not_speak_http2_is_hung_up_on(path: str) -> None:
    def ask() -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(WAIT_S)
            sock.connect(path)
            sock.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            while sock.recv(4096):
                pass

    async def scene(world: FakeDaemon, channel: grpc.aio.Channel) -> None:
        await asyncio.to_thread(ask)
        await RuntimeServiceStub(channel).Version(pb.VersionRequest())

    play(path, scene)


class Unable:
    """Calls that nobody can take."""

    def take(self, call: Call) -> None:
        raise RuntimeError(call.path)

    def looked(self, look: Look) -> None: ...


def test_a_daemon_that_cannot_take_calls_is_told_so(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    lost = threading.Event()
    with threaded_front() as front:
        front.listener.bind(path)
        front.listener.listen()
        front.when_lost = lost.set
        front.start(Unable())
        with RawClient(path) as client:
            client.ask(1, EXEC, message(WAITING))
            assert lost.wait(WAIT_S)
    os.unlink(path)
    assert front.is_lost
    assert "calls cannot be taken" in caplog.text


def test_the_daemon_serves_without_the_grpc_library() -> None:
    code = "import pycri.daemon, pycri.cri.server, sys; print('grpc' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"


OUT_OF_DESCRIPTORS = """
import os, resource, socket, sys, threading, time
from pycri.cri.front import Front
listener, client = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
front = Front(lambda call: None, max_message_bytes=1000)
listener.listen()
front.accept_from(listener)
threading.Thread(target=front.run, daemon=True).start()
free = os.dup(0)
os.close(free)
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
client.connect(sys.argv[1])
used = time.process_time()
time.sleep(0.3)
assert time.process_time() - used < 0.1, "it spins"
resource.setrlimit(resource.RLIMIT_NOFILE, (free + 10, hard))
client.settimeout(10)
client.sendall(b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n")
assert client.recv(100)
"""


def test_without_a_descriptor_for_it_a_client_waits_until_there_is_one(path: str) -> None:
    command = [sys.executable, "-c", OUT_OF_DESCRIPTORS, path]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=WAIT_S)
    assert done.returncode == 0, done.stderr
    assert "a client cannot be accepted" in done.stderr
    os.unlink(path)


def test_messages_of_errors_travel_whole_in_any_language(path: str) -> None:
    async def scene(world: FakeDaemon, channel: grpc.aio.Channel) -> None:
        world.sandboxes.failure = OSError(5, "100% Ääh\n日本")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await RuntimeServiceStub(channel).RunPodSandbox(pod_request())
        assert caught.value.details() == "OSError: [Errno 5] 100% Ääh\n日本"

    play(path, scene)
