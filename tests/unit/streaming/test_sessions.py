# SPDX-License-Identifier: Apache-2.0
"""Sessions of the server on real sockets, with plain children of the test behind them."""

import asyncio
import hashlib
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from pycri.config import StreamingSettings
from pycri.model.ids import ContainerId, PodId
from pycri.model.streams import AttachRequest, ExecRequest, PortForwardRequest
from pycri.streaming.server import StreamingServer
from tests.unit.streaming import frames
from tests.unit.streaming.client import Client
from tests.world.fake_sessions import FakeSessions, impatient, streaming

WAIT_S = 20
CONTAINER, POD = ContainerId("c"), PodId("p")

Scene = Callable[[StreamingServer, FakeSessions], Awaitable[None]]


def play(scene: Scene, settings: StreamingSettings | None = None) -> FakeSessions:
    """Run a scene against a fresh server. Nothing may be left open, or running, at its end."""

    async def run() -> FakeSessions:
        async with asyncio.timeout(WAIT_S), streaming(settings) as (server, sessions):
            await scene(server, sessions)
        return sessions

    before = set(os.listdir("/proc/self/fd"))
    sessions = asyncio.run(run())
    left = set(os.listdir("/proc/self/fd")) - before
    assert not left, {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in left}
    assert all(process.ended.is_set() for process in sessions.processes)
    return sessions


def shell(script: str, *, stdin: bool = False, tty: bool = False) -> ExecRequest:
    command = ("sh", "-c", script)
    return ExecRequest(
        container_id=CONTAINER, cmd=command, tty=tty, stdin=stdin, stdout=True, stderr=not tty
    )


async def begin(
    server: StreamingServer, request: ExecRequest | AttachRequest, version: int = 4
) -> tuple[Client, dict[str, int]]:
    """Open a session over SPDY with all its streams."""
    url = server.url(request)
    client = await Client.connect(url)
    await client.upgrade_spdy(
        url, f"v{version}.channel.k8s.io" if version > 1 else "channel.k8s.io"
    )
    names = [name for name in ("stdin", "stdout", "stderr") if getattr(request, name)]
    resize = ["resize"] if request.tty and version >= 3 else []
    return client, await client.open("error", *names, *resize)


async def finish(client: Client, streams: dict[str, int]) -> dict[str, object]:
    """Read to the end; return the status."""
    await client.read_to_end()
    await client.close()
    assert client.gone
    assert client.ended == set(streams.values())
    status: dict[str, object] = json.loads(client.outputs[streams["error"]])
    return status


class TestExec:
    def test_output_errors_and_the_code_come_each_on_its_own_stream(self) -> None:
        async def scene(server: StreamingServer, sessions: FakeSessions) -> None:
            client, streams = await begin(server, shell("echo out; echo err >&2; exit 3"))
            status = await finish(client, streams)
            assert client.outputs[streams["stdout"]] == b"out\n"
            assert client.outputs[streams["stderr"]] == b"err\n"
            assert status["details"] == {"causes": [{"reason": "ExitCode", "message": "3"}]}

        play(scene)

    def test_input_flows_in_and_its_end_is_passed_on(self) -> None:
        async def scene(server: StreamingServer, sessions: FakeSessions) -> None:
            client, streams = await begin(server, shell("wc -c; echo end", stdin=True))
            for _ in range(10):
                await client.send(frames.data(streams["stdin"], b"x" * 100_000))
            await client.send(frames.data(streams["stdin"], fin=True))
            status = await finish(client, streams)
            assert client.outputs[streams["stdout"]].split() == [b"1000000", b"end"]
            assert status["status"] == "Success"

        play(scene)

    def test_any_bytes_come_back_as_they_were_sent(self) -> None:
        async def scene(server: StreamingServer, sessions: FakeSessions) -> None:
            client, streams = await begin(server, shell("cat", stdin=True))
            sent = os.urandom(3_000_001)

            async def feed() -> None:
                for at in range(0, len(sent), 70_001):
                    await client.send(frames.data(streams["stdin"], sent[at : at + 70_001]))
                await client.send(frames.data(streams["stdin"], fin=True))

            feeding = asyncio.create_task(feed())
            await finish(client, streams)
            await feeding
            got = client.outputs[streams["stdout"]]
            assert hashlib.sha256(got).digest() == hashlib.sha256(sent).digest()

        play(scene)

    def test_a_terminal_has_one_output_and_the_clients_size(self) -> None:
        async def scene(server: StreamingServer, sessions: FakeSessions) -> None:
            request = shell(
                "read line; stty size; tty >/dev/null && echo tty", stdin=True, tty=True
            )
            client, streams = await begin(server, request)
            await client.send(frames.data(streams["resize"], b'{"Width":91,"Height":17}\n'))
            await client.send(frames.data(streams["stdin"], b"go\n"))
            await finish(client, streams)
            assert b"17 91" in client.outputs[streams["stdout"]]
            assert b"tty" in client.outputs[streams["stdout"]]
            assert sessions.processes[0].sizes == [(91, 17)]

        play(scene)

    def test_a_child_left_behind_that_holds_the_pipe_does_not_hold_the_session(self) -> None:
        async def scene(server: StreamingServer, sessions: FakeSessions) -> None:
            client, streams = await begin(server, shell("sleep 60 & echo $!"))
            await finish(client, streams)
            os.kill(int(client.outputs[streams["stdout"]]), 9)

        play(scene)

    def test_a_child_left_behind_that_never_stops_writing_does_not_either(self) -> None:
        async def scene(server: StreamingServer, sessions: FakeSessions) -> None:
            client, streams = await begin(server, shell("yes &"))
            status = await finish(client, streams)
            assert status["status"] == "Success"

        play(scene)

    def test_a_command_that_cannot_start_is_a_status_with_its_reason(self) -> None:
        async def scene(server: StreamingServer, sessions: FakeSessions) -> None:
            request = ExecRequest(container_id=CONTAINER, cmd=("missing",), stdout=True)
            client, streams = await begin(server, request)
            status = await finish(client, streams)
            assert status["message"] == "exec missing: no such file"

        play(scene)

    @pytest.mark.parametrize("version", [1, 2, 3])
    def test_old_versions_are_served(self, version: int) -> None:
        async def scene(server: StreamingServer, sessions: FakeSessions) -> None:
            client, streams = await begin(server, shell("cat; exit 2", stdin=True), version)
            await client.send(frames.data(streams["stdin"], b"hello", fin=True))
            await client.read_to_end()
            await client.close()
            assert client.outputs[streams["stdout"]] == b"hello"
            assert b"exit code: 2" in client.outputs[streams["error"]]

        play(scene)

    def test_a_slow_reader_holds_back_the_writer(self, tmp_path: Path) -> None:
        async def scene(server: StreamingServer, sessions: FakeSessions) -> None:
            count = tmp_path / "count"
            script = (
                f"i=0; while :; do head -c 100000 /dev/zero; i=$((i+1)); echo $i >{count}; done"
            )
            client, _ = await begin(server, shell(script))
            transport = client.writer.transport
            await client.read()
            transport.pause_reading()  # type: ignore[attr-defined]
            last, unchanged = "", 0
            while unchanged < 20:
                await asyncio.sleep(0.01)
                now = count.read_text() if count.exists() else ""
                unchanged = unchanged + 1 if now == last and now else 0
                last = now
            assert int(last or "0") * 100_000 < 32 << 20
            client.vanish()

        play(scene)

    def test_a_client_that_vanishes_ends_its_process(self) -> None:
        async def scene(server: StreamingServer, sessions: FakeSessions) -> None:
            client, streams = await begin(server, shell("echo up; sleep 60"))
            await client.read_until(streams["stdout"], b"up")
            client.vanish()
            await sessions.processes[0].ended.wait()

        play(scene)

    def test_a_client_that_vanishes_behind_input_nobody_reads_ends_its_process(self) -> None:
        async def scene(server: StreamingServer, sessions: FakeSessions) -> None:
            client, streams = await begin(server, shell("echo up; sleep 60", stdin=True))
            await client.read_until(streams["stdout"], b"up")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    while True:
                        await client.send(frames.data(streams["stdin"], b"x" * 100_000))
            client.vanish()
            await sessions.processes[0].ended.wait()

        play(scene)

    def test_a_client_that_leaves_while_the_process_starts_ends_it(self) -> None:
        async def scene(server: StreamingServer, sessions: FakeSessions) -> None:
            sessions.gate.clear()
            client, _ = await begin(server, shell("sleep 60"))
            await sessions.starting.wait()
            await client.send(frames.goaway())
            await client.close()
            sessions.gate.set()
            await sessions.started.wait()
            await sessions.processes[0].ended.wait()

        play(scene)

    def test_output_the_client_refuses_is_closed(self) -> None:
        async def scene(server: StreamingServer, sessions: FakeSessions) -> None:
            client, streams = await begin(server, shell("yes; echo done >&2"))
            await client.read_until(streams["stdout"], b"y\n")
            await client.send(frames.reset(streams["stdout"]))
            await client.read_until(streams["stderr"], b"done")
            await client.close()

        play(scene)

    def test_attach_takes_part_in_what_runs(self) -> None:
        async def scene(server: StreamingServer, sessions: FakeSessions) -> None:
            request = AttachRequest(container_id=CONTAINER, stdin=True, stdout=True)
            client, streams = await begin(server, request)
            await client.send(frames.data(streams["stdin"], b"echo"))
            await client.read_until(streams["stdout"], b"echo")
            await client.close()

        play(scene)

    @pytest.mark.parametrize("protocol", ["v5.channel.k8s.io", "v4.channel.k8s.io"])
    def test_a_websocket_carries_the_same(self, protocol: str) -> None:
        async def scene(server: StreamingServer, sessions: FakeSessions) -> None:
            url = server.url(shell("head -c 5; echo err >&2; exit 4", stdin=True))
            client = await Client.connect(url)
            await client.upgrade_websocket(url, protocol)
            await client.send(frames.message(b"\0hello"))
            got = await client.messages()
            await client.close()
            assert (2, b"\1hello") in got
            assert (2, b"\2err\n") in got
            status = json.loads(next(p for _, p in got if p[:1] == b"\3")[1:])
            assert status["reason"] == "NonZeroExitCode"

        play(scene)

    def test_the_end_of_input_comes_through_version_5(self) -> None:
        async def scene(server: StreamingServer, sessions: FakeSessions) -> None:
            url = server.url(shell("cat", stdin=True))
            client = await Client.connect(url)
            await client.upgrade_websocket(url, "v5.channel.k8s.io")
            await client.send(frames.message(b"\0all"), frames.message(b"\xff\0"))
            assert (2, b"\1all") in await client.messages()
            await client.close()

        play(scene)

    def test_base64_carries_any_bytes(self) -> None:
        async def scene(server: StreamingServer, sessions: FakeSessions) -> None:
            url = server.url(shell("printf '\\377\\000'"))
            client = await Client.connect(url)
            await client.upgrade_websocket(url, "base64.channel.k8s.io")
            got = await client.messages()
            assert [message for message in got if message[1] != b"1"] == [
                (1, b"1/wA="),
                (8, b"\x03\xe8"),
            ]
            await client.close()

        play(scene)

    def test_many_sessions_run_at_once(self) -> None:
        async def one(server: StreamingServer, number: int) -> None:
            client, streams = await begin(server, shell(f"cat; exit {number}", stdin=True))
            await client.send(frames.data(streams["stdin"], b"%d" % number, fin=True))
            await client.read_to_end()
            await client.close()
            assert client.outputs[streams["stdout"]] == b"%d" % number

        async def scene(server: StreamingServer, sessions: FakeSessions) -> None:
            await asyncio.gather(*(one(server, number) for number in range(40)))

        play(scene)

    def test_a_stop_of_the_server_ends_sessions_with_an_error(self) -> None:
        async def scene(server: StreamingServer, sessions: FakeSessions) -> None:
            client, streams = await begin(server, shell("echo up; sleep 60"))
            await client.read_until(streams["stdout"], b"up")
            closing = asyncio.create_task(server.close())
            status = await finish(client, streams)
            assert status["message"] == "the runtime is stopping"
            await closing

        play(scene)

    def test_a_session_without_traffic_ends(self) -> None:
        async def scene(server: StreamingServer, sessions: FakeSessions) -> None:
            client, streams = await begin(server, shell("sleep 60"))
            status = await finish(client, streams)
            assert status["message"] == "the session was idle"

        play(scene, impatient(idle_timeout_s=0.2))


async def echo_server(ended: asyncio.Event) -> asyncio.Server:
    """A pod's program: it answers what it got once its input has ended."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got = await reader.read()
        writer.write(b"got " + got)
        writer.close()
        ended.set()

    return await asyncio.start_server(serve, "127.0.0.1", 0)


def pair(client: Client, first: int, port: int) -> bytes:
    headers = {"port": str(port), "requestid": str(first)}
    opened = client.spdy.open(first, headers | {"streamtype": "error"})
    return opened + client.spdy.open(first + 2, headers | {"streamtype": "data"})


class TestPortForward:
    async def begin(self, server: StreamingServer) -> Client:
        url = server.url(PortForwardRequest(pod_id=POD))
        client = await Client.connect(url)
        await client.upgrade_spdy(url, "portforward.k8s.io")
        return client

    def test_connections_are_half_closed_and_end_one_by_one(self) -> None:
        async def scene(server: StreamingServer, sessions: FakeSessions) -> None:
            pod = await echo_server(asyncio.Event())
            port = pod.sockets[0].getsockname()[1]
            client = await self.begin(server)
            for first in (1, 5, 9):
                await client.send(pair(client, first, port))
                await client.send(frames.data(first + 2, b"x" * 300_000, fin=True))
            while not {1, 3, 5, 7, 9, 11} <= client.ended:
                assert await client.read()
            assert {n: len(client.outputs[n]) for n in (3, 7, 11)} == dict.fromkeys(
                (3, 7, 11), 300_004
            )
            assert not set(client.outputs) & {1, 5, 9}
            await client.close()
            pod.close()
            await pod.wait_closed()

        play(scene)

    def test_a_port_nobody_listens_on_is_an_error_on_its_stream_alone(self) -> None:
        async def scene(server: StreamingServer, sessions: FakeSessions) -> None:
            pod = await echo_server(asyncio.Event())
            port = pod.sockets[0].getsockname()[1]
            client = await self.begin(server)
            await client.send(pair(client, 1, 1), frames.data(3, b"lost"))
            await client.read_until(1, b"port 1: Connection refused")
            await client.send(pair(client, 5, port), frames.data(7, b"on", fin=True))
            await client.read_until(7, b"got on")
            await client.close()
            pod.close()
            await pod.wait_closed()

        play(scene)

    def test_a_client_that_gives_up_a_connection_closes_the_pods_side(self) -> None:
        async def scene(server: StreamingServer, sessions: FakeSessions) -> None:
            ended = asyncio.Event()
            pod = await echo_server(ended)
            client = await self.begin(server)
            await client.send(pair(client, 1, pod.sockets[0].getsockname()[1]))
            while 3 not in client.replied:
                assert await client.read()
            await client.send(frames.reset(3))
            await ended.wait()
            await client.close()
            pod.close()
            await pod.wait_closed()

        play(scene)

    def test_half_a_pair_is_given_up_in_time(self) -> None:
        async def scene(server: StreamingServer, sessions: FakeSessions) -> None:
            client = await self.begin(server)
            headers = {"port": "80", "requestid": "1", "streamtype": "error"}
            await client.send(client.spdy.open(1, headers))
            await client.read_until(1, b"timed out")
            await client.close()

        play(scene, impatient(creation_timeout_s=0.2))

    def test_the_tunnel_carries_the_same(self) -> None:
        async def scene(server: StreamingServer, sessions: FakeSessions) -> None:
            pod = await echo_server(asyncio.Event())
            url = server.url(PortForwardRequest(pod_id=POD))
            client = await Client.connect(url)
            await client.upgrade_websocket(url, "SPDY/3.1+portforward.k8s.io")
            sent = pair(client, 1, pod.sockets[0].getsockname()[1])
            sent += frames.data(3, b"through", fin=True)
            await client.send(*(frames.message(sent[i : i + 9]) for i in range(0, len(sent), 9)))
            answer = b""
            while b"got through" not in answer:
                answer += await client.reader.read(1000)
            await client.close()
            pod.close()
            await pod.wait_closed()

        play(scene)

    def test_a_websocket_serves_the_ports_of_the_request(self) -> None:
        async def scene(server: StreamingServer, sessions: FakeSessions) -> None:
            pod = await asyncio.start_server(hello, "127.0.0.1", 0)
            port = pod.sockets[0].getsockname()[1]
            url = server.url(PortForwardRequest(pod_id=POD, port=(port, 1)))
            client = await Client.connect(url)
            await client.upgrade_websocket(url, "v4.channel.k8s.io")
            got = await client.messages()
            number = port.to_bytes(2, "little")
            assert [p for _, p in got[:4]] == [b"\0" + number, b"\1" + number, b"\2\1\0", b"\3\1\0"]
            assert (2, b"\0hello") in got
            assert (2, b"\3port 1: Connection refused") in got
            await client.close()
            pod.close()
            await pod.wait_closed()

        play(scene)


async def hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"hello")
    writer.close()
