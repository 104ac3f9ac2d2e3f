# SPDX-License-Identifier: Apache-2.0
"""A command starts when its client has come, who may still have to open the streams."""

import asyncio

import pytest

from pycri.model.streams import AttachRequest, ExecRequest
from pycri.streaming.server import StreamingServer
from tests.unit.streaming.client import Client
from tests.unit.streaming.test_sessions import CONTAINER, finish, play, shell
from tests.world.fake_sessions import FakeSessions, impatient

STREAMS = ("error", "stdout", "stderr")


async def arrive(server: StreamingServer, request: ExecRequest | AttachRequest) -> Client:
    """Come with the URL, and open no stream yet."""
    url = server.url(request)
    client = await Client.connect(url)
    await client.upgrade_spdy(url, "v4.channel.k8s.io")
    return client


def test_what_it_prints_before_there_are_streams_comes_when_they_are() -> None:
    async def scene(server: StreamingServer, sessions: FakeSessions) -> None:
        client = await arrive(server, shell("echo early; echo too >&2; exit 4"))
        await sessions.started.wait()
        await asyncio.to_thread(sessions.processes[0].wait_ended)
        streams = await client.open(*STREAMS)
        status = await finish(client, streams)
        assert client.outputs[streams["stdout"]] == b"early\n"
        assert client.outputs[streams["stderr"]] == b"too\n"
        assert status["details"] == {"causes": [{"reason": "ExitCode", "message": "4"}]}

    play(scene)


def test_why_it_cannot_start_is_told_when_there_is_a_stream_for_it() -> None:
    async def scene(server: StreamingServer, sessions: FakeSessions) -> None:
        request = ExecRequest(container_id=CONTAINER, cmd=("missing",), stdout=True)
        client = await arrive(server, request)
        await sessions.starting.wait()
        status = await finish(client, await client.open("error", "stdout"))
        assert status["message"] == "exec missing: no such file"

    play(scene)


def test_it_is_ended_if_the_streams_do_not_come_in_time() -> None:
    async def scene(server: StreamingServer, sessions: FakeSessions) -> None:
        client = await arrive(server, shell("sleep 60"))
        status = await finish(client, await client.open("error", "stdout"))
        assert "timed out" in str(status["message"])
        await sessions.processes[0].ended.wait()

    play(scene, impatient(creation_timeout_s=0.2))


def test_it_is_ended_if_the_client_leaves_without_streams() -> None:
    async def scene(server: StreamingServer, sessions: FakeSessions) -> None:
        client = await arrive(server, shell("sleep 60"))
        await sessions.started.wait()
        client.vanish()
        await sessions.processes[0].ended.wait()

    play(scene)


@pytest.mark.parametrize(
    "request_",
    [
        shell("true", tty=True),
        AttachRequest(container_id=CONTAINER, stdin=True, stdout=True),
    ],
)
def test_a_terminal_and_an_attachment_wait_for_the_streams(
    request_: ExecRequest | AttachRequest,
) -> None:
    async def scene(server: StreamingServer, sessions: FakeSessions) -> None:
        client = await arrive(server, request_)
        await finish(client, await client.open("error"))
        assert not sessions.starting.is_set()

    play(scene, impatient(creation_timeout_s=0.2))
