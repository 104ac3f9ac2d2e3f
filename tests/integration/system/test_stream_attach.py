# SPDX-License-Identifier: Apache-2.0
"""Attach, from outside: over SPDY and over WebSocket."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from pycri.cri.api import runtime_v1_pb2 as cri
from tests.world.commands import Command
from tests.world.daemon import Node, refused, wait_until
from tests.world.images import Images
from tests.world.sessions import TRANSPORTS, attach, attach_url, digest

both_transports = pytest.mark.parametrize("transport", TRANSPORTS)

ECHO = "while read line; do echo out $line; echo err $line >&2; done; echo end of stdin; sleep 600"
SUCCESS = {"metadata": {}, "status": "Success"}


@pytest.fixture
def run(node: Node, images: Images) -> Iterator[Callable[..., str]]:
    """Run a container with stdin from a shell script."""
    pod = node.run_pod("attach")

    def run(script: str, **fields: Any) -> str:
        return node.run_container(
            pod, images["busybox"], command=script, **{"stdin": True, **fields}
        )

    yield run


@both_transports
def test_it_shows_what_comes_from_now_on_and_hands_stdin_over(
    node: Node, run: Callable[..., str], transport: str
) -> None:
    container = run(f"echo before; {ECHO}")
    node.wait_log(container, "before")
    session = attach(node, container, transport=transport, stdin=True)
    session.write(b"one\n")
    assert session.read_until(b"one\n") == b"out one\n"
    assert session.read_until(b"one\n", "stderr") == b"err one\n"
    session.close()
    again = attach(node, container, transport=transport, stdin=True)
    again.write(b"two\n")
    assert again.read_until(b"two\n") == b"out two\n"
    again.close()
    lines = [(line.stream, line.content) for line in node.log(container)]
    assert lines == [
        ("stdout", "before"),
        ("stdout", "out one"),
        ("stderr", "err one"),
        ("stdout", "out two"),
        ("stderr", "err two"),
    ]
    assert node.status(container).state == cri.CONTAINER_RUNNING


@both_transports
def test_only_the_streams_that_are_asked_for_come(
    node: Node, run: Callable[..., str], transport: str
) -> None:
    container = run("read line; echo out; echo err >&2; exit 0")
    only_err = attach(node, container, transport=transport, stdout=False)
    writer = attach(node, container, transport=transport, stdin=True, stdout=False, stderr=False)
    writer.write(b"go\n")
    done = only_err.finish()
    assert (done.stdout, done.stderr, done.status) == (b"", b"err\n", SUCCESS)
    assert writer.finish().status == SUCCESS


@both_transports
def test_stdin_once_ends_with_the_first_that_has_it(
    node: Node, run: Callable[..., str], transport: str
) -> None:
    container = run(ECHO, stdin_once=True)
    watching = attach(node, container, transport=transport)
    first = attach(node, container, transport=transport, stdin=True)
    first.write(b"only\n")
    first.read_until(b"only\n")
    first.close()
    watching.read_until(b"end of stdin\n")
    second = attach(node, container, transport=transport, stdin=True)
    second.write(b"ignored\n")
    node.stop_container(container)
    assert second.finish().stdout == b""
    assert watching.finish().status == SUCCESS


@both_transports
def test_stdin_once_ends_with_the_client_s_stdin_and_output_goes_on(
    node: Node, run: Callable[..., str], transport: str
) -> None:
    container = run("sort; echo done", stdin_once=True)
    session = attach(node, container, transport=transport, stdin=True)
    session.write(b"b\na\n")
    session.close_stdin()
    done = session.finish()
    assert (done.stdout, done.status) == (b"a\nb\ndone\n", SUCCESS)
    assert node.wait_exited(container).exit_code == 0


@both_transports
def test_stdin_stays_open_between_attachments(
    node: Node, run: Callable[..., str], transport: str
) -> None:
    container = run(ECHO)
    for word in (b"one", b"two"):
        session = attach(node, container, transport=transport, stdin=True)
        session.write(word + b"\n")
        session.read_until(word + b"\n")
        session.close_stdin()
        session.close()
    assert [line.content for line in node.log(container) if line.stream == "stdout"] == [
        "out one",
        "out two",
    ]


@both_transports
def test_several_see_the_same_and_one_that_leaves_ends_nothing(
    node: Node, run: Callable[..., str], transport: str
) -> None:
    container = run(ECHO)
    writer, *watchers = [
        attach(node, container, transport=transport, stdin=number == 0) for number in range(4)
    ]
    for number in range(3):
        writer.write(b"%d\n" % number)
        for session in (writer, *watchers):
            assert session.read_until(b"%d\n" % number) == b"out %d\n" % number
        watchers.pop().close()
    assert node.status(container).state == cri.CONTAINER_RUNNING
    writer.close()


@both_transports
def test_nothing_is_lost_from_the_first_byte_to_the_last(
    node: Node, run: Callable[..., str], transport: str
) -> None:
    container = run("read line; seq 1 2000000; printf end; exit 3")
    other = attach(node, container, transport=transport)
    session = attach(node, container, transport=transport, stdin=True)
    session.write(b"go\n")
    shown = [Sink(session), Sink(other)]
    for sink in shown:
        sink.start()
    expected = "".join(f"{number}\n" for number in range(1, 2_000_001)) + "end"
    assert [sink.result() for sink in shown] == [digest(expected.encode())] * 2
    assert node.wait_exited(container).exit_code == 3
    assert node.output(container) == expected


class Sink(threading.Thread):
    """Reads a session to its end."""

    def __init__(self, session: Command) -> None:
        super().__init__()
        self._session = session
        self._digest = ""

    def run(self) -> None:
        self._digest = digest(self._session.finish().stdout)

    def result(self) -> str:
        self.join()
        return self._digest


@both_transports
def test_the_end_of_the_container_ends_it_after_the_last_byte(
    node: Node, run: Callable[..., str], transport: str
) -> None:
    container = run("read line; head -c 300000 /dev/zero | tr '\\0' x; exit 5")
    session = attach(node, container, transport=transport, stdin=True)
    session.write(b"go\n")
    assert node.wait_exited(container).exit_code == 5, "it waits for no reader of its last words"
    done = session.finish()
    assert done.stdout == b"x" * 300_000
    assert done.status == SUCCESS


@both_transports
def test_a_killed_container_ends_it(node: Node, run: Callable[..., str], transport: str) -> None:
    container = run("echo ready; sleep 600")
    node.wait_log(container, "ready")
    sessions = [attach(node, container, transport=transport) for _ in range(3)]
    began = time.monotonic()
    node.stop_container(container)
    assert [session.finish().status for session in sessions] == [SUCCESS] * 3
    assert time.monotonic() - began < 10


@both_transports
def test_a_terminal_takes_input_and_size(
    node: Node, run: Callable[..., str], transport: str
) -> None:
    container = run("exec sh", tty=True)
    session = attach(node, container, transport=transport, stdin=True, tty=True)
    session.resize(132, 43)
    session.write(b"stty size; tty\n")
    assert b"43 132\r\n" in session.read_until(b"/dev/pts/0\r\n")
    other = attach(node, container, transport=transport, tty=True)
    session.write(b"echo $((6 * 7))\n")
    other.read_until(b"42\r\n")
    other.close()
    session.write(b"exit 0\n")
    assert session.finish().status == SUCCESS


@both_transports
def test_a_container_without_stdin_drops_what_is_sent(
    node: Node, run: Callable[..., str], transport: str
) -> None:
    container = run("cat; echo ended; sleep 600", stdin=False)
    node.wait_log(container, "ended")
    session = attach(node, container, transport=transport, stdin=True)
    session.write(b"x" * 300_000)
    session.close_stdin()
    node.stop_container(container)
    assert session.finish().status == SUCCESS


def test_a_container_that_does_not_run_and_another_kind_of_terminal_are_refused(
    node: Node, run: Callable[..., str]
) -> None:
    container = run("sleep 600")
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "tty"):
        attach_url(node, container, tty=True)
    node.stop_container(container)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, container):
        attach_url(node, container)
    with refused(grpc.StatusCode.NOT_FOUND):
        attach_url(node, "f" * 64)


@both_transports
def test_a_reader_that_stops_holds_up_the_container_until_it_vanishes(
    node: Node, run: Callable[..., str], transport: str
) -> None:
    container = run("read line; head -c 50000000 /dev/zero; echo written >/done; sleep 600")
    session = attach(node, container, transport=transport, stdin=True)
    session.write(b"go\n")
    session.read_until(b"\0")
    assert node.exec(container, "test", "-e", "/done").exit_code == 1
    session.close()
    wait_until(lambda: node.exec(container, "test", "-e", "/done").exit_code == 0, what="/done")
