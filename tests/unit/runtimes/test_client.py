# SPDX-License-Identifier: Apache-2.0
"""The daemon's side of the private protocol, against spawners that live for a few messages."""

import asyncio
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from pycri.config import Settings
from pycri.errors import Unavailable
from pycri.runtimes import client
from pycri.runtimes.client import SpawnerClient
from pycri.wire.channel import Channel
from pycri.wire.messages import FROM_DAEMON, WIRE_VERSION, Done, ListTasks, Quit, Tasks, Welcome
from tests.unit.plan.samples import host_v2

Life = Callable[[Channel], Awaitable[None]]


class Spawners:
    """Listens at the spawner's socket; each connection lives one of the given lives, in turn."""

    def __init__(self, settings: Settings, lives: list[Life]) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(settings.spawner_socket)
        self._listener.listen()
        self._listener.setblocking(False)
        self._lives = lives
        self.connections = 0

    async def serve(self) -> None:
        for life in self._lives:
            sock, _ = await asyncio.get_running_loop().sock_accept(self._listener)
            self.connections += 1
            sock.setblocking(False)
            channel = Channel(sock)
            try:
                await life(channel)
            finally:
                channel.close()

    def close(self) -> None:
        self._listener.close()


async def receive(channel: Channel) -> object:
    """Wait for one message of the daemon; None at its end."""
    while True:
        try:
            received = channel.receive(FROM_DAEMON)
        except BlockingIOError:
            await asyncio.sleep(0)
            continue
        return received[0] if received else None


async def welcome(channel: Channel) -> None:
    await receive(channel)
    channel.send(Welcome(version=WIRE_VERSION, pid=os.getpid(), monitor=1))


async def dies_before_it_answers(channel: Channel) -> None:
    await receive(channel)


async def dies_when_asked(channel: Channel) -> None:
    await welcome(channel)
    await receive(channel)


async def works(channel: Channel) -> None:
    await welcome(channel)
    while (message := await receive(channel)) is not None:
        assert isinstance(message, ListTasks)
        channel.send(Tasks(request=message.request, tasks=()))


@asynccontextmanager
async def connected(folder: Path, *lives: Life) -> AsyncIterator[tuple[SpawnerClient, Spawners]]:
    settings = Settings(run_dir=str(folder))
    spawners = Spawners(settings, list(lives))
    serving = asyncio.create_task(spawners.serve())
    first = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    first.connect(settings.spawner_socket)
    spawner = SpawnerClient(settings, host_v2())
    try:
        await spawner.attach(first)
        yield spawner, spawners
    finally:
        await spawner.close()
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        spawners.close()


def test_a_request_made_while_the_spawner_is_replaced_waits(tmp_path: Path) -> None:
    async def body() -> None:
        async with connected(tmp_path, dies_when_asked, works) as (spawner, spawners):
            with pytest.raises(Unavailable, match="try again"):
                await spawner.list_tasks()
            assert await spawner.list_tasks() == {}
            assert spawners.connections == 2

    asyncio.run(body())


def test_a_spawner_that_dies_before_it_answers_is_replaced_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two replacements at once cut each other's connections."""
    monkeypatch.setattr(client, "_REPLACE_PAUSES_S", (0.01,))
    monkeypatch.setattr(client, "_HELLO_DEADLINE_S", 0.3)

    async def body() -> None:
        lives = (dies_when_asked, dies_before_it_answers, dies_before_it_answers, works, works)
        replaced = asyncio.Event()

        async def on_replaced() -> None:
            replaced.set()

        async with connected(tmp_path, *lives) as (spawner, spawners):
            spawner.on_replaced = on_replaced
            with pytest.raises(Unavailable):
                await spawner.list_tasks()
            async with asyncio.timeout(5):
                await replaced.wait()
            # Past the deadline of the greetings that were never answered.
            for _ in range(50):
                assert await spawner.list_tasks() == {}
                await asyncio.sleep(0.01)
            assert spawners.connections == 4

    asyncio.run(body())


@contextmanager
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


def quits(spawner: int, monitor: int, told: asyncio.Event) -> Life:
    """Say Done to Quit, and be told so; whose pids these are may go on."""

    async def life(channel: Channel) -> None:
        await receive(channel)
        channel.send(Welcome(version=WIRE_VERSION, pid=spawner, monitor=monitor))
        message = await receive(channel)
        assert isinstance(message, Quit)
        channel.send(Done(request=message.request))
        told.set()

    return life


def test_a_quit_is_over_when_spawner_and_monitor_have_ended(tmp_path: Path) -> None:
    async def body() -> None:
        told = asyncio.Event()
        with sleeper() as first, sleeper() as second:
            async with connected(tmp_path, quits(first.pid, second.pid, told)) as (spawner, _):
                quitting = asyncio.create_task(spawner.quit())
                await told.wait()
                for process in (first, second):
                    done, _ = await asyncio.wait({quitting}, timeout=0.05)
                    assert not done
                    process.kill()
                await quitting
                # They have ended, though nobody has collected them.
                assert all(process.poll() is not None for process in (first, second))

    asyncio.run(body())


def test_a_quit_does_not_wait_for_who_has_ended_before(tmp_path: Path) -> None:
    async def body() -> None:
        with sleeper() as process:
            pass
        life = quits(process.pid, process.pid, asyncio.Event())
        async with connected(tmp_path, life) as (spawner, _):
            await spawner.quit()

    asyncio.run(body())


def test_a_quit_says_who_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_QUIT_DEADLINE_S", 0.05)

    async def body() -> None:
        with sleeper() as process:
            life = quits(process.pid, process.pid, asyncio.Event())
            async with connected(tmp_path, life) as (spawner, _):
                with pytest.raises(Unavailable, match="does not end"):
                    await spawner.quit()

    asyncio.run(body())
