# SPDX-License-Identifier: Apache-2.0
"""Streaming sessions when one of our processes dies: they end or go on, and leave nothing."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycri.cri.api import runtime_v1_pb2 as cri
from tests.world.commands import SPDY_PROTOCOLS, Command
from tests.world.daemon import Node, wait_until
from tests.world.images import Images
from tests.world.sessions import TRANSPORTS, attach, exec_url, forward, start_exec
from tests.world.spdy import connect_spdy

both_transports = pytest.mark.parametrize("transport", TRANSPORTS)
ECHO = "while read line; do echo out $line; done; echo end of stdin; sleep 600"


@pytest.fixture
def pod(own_node: Node) -> str:
    return own_node.run_pod("cut")


@pytest.fixture
def container(own_node: Node, images: Images, pod: str) -> Iterator[str]:
    """A running container that echoes its stdin."""
    yield own_node.run_container(pod, images["busybox"], command=ECHO, stdin=True, stdin_once=True)


def started(node: Node, container: str, transport: str) -> list[Command]:
    """Start commands, with and without a terminal, that do not heed SIGHUP."""
    script = "trap '' HUP; echo ready; while :; do sleep 601; done"
    sessions = []
    for tty in (False, True):
        session = start_exec(node, container, "sh", "-c", script, tty=tty, transport=transport)
        session.read_until(b"ready\r\n" if tty else b"ready\n")
        sessions.append(session)
    return sessions


def is_cut(session: Command) -> bool:
    """Tell whether a session ends, in whatever way but success."""
    try:
        done = session.finish()
    except (ConnectionError, AssertionError):
        return True
    finally:
        session.close()
    return "Success" not in str(done.status)


def wait_alone(node: Node, container: str) -> None:
    """Wait until nothing of an exec is left: no process, no group."""
    wait_until(
        lambda: "sleep 601" not in node.shell(container, "ps -o args"), what="the end of all execs"
    )
    below = f"{node.name}/*/{container}/exec-*"
    root = Path("/sys/fs/cgroup")
    wait_until(
        lambda: not [*root.glob(below), *root.glob(f"*/{below}")], what="the end of their groups"
    )


@both_transports
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_end_of_the_daemon_ends_execs_and_leaves_no_process(
    own_node: Node, container: str, transport: str, number: int
) -> None:
    sessions = started(own_node, container, transport)
    own_node.kill("daemon", number=number)
    assert all(is_cut(session) for session in sessions)
    own_node.start()
    wait_alone(own_node, container)
    assert own_node.status(container).state == cri.CONTAINER_RUNNING
    assert start_exec(own_node, container, "true", transport=transport).finish().exit_code == 0


def test_the_end_of_the_daemon_ends_an_exec_whose_client_has_no_streams_yet(
    own_node: Node, container: str
) -> None:
    url = exec_url(own_node, container, "sh", "-c", "trap '' HUP; while :; do sleep 601; done")
    connection, _ = connect_spdy(url, SPDY_PROTOCOLS)
    wait_until(
        lambda: "sleep 601" in own_node.shell(container, "ps -o args"), what="an early start"
    )
    own_node.kill("daemon")
    connection.close()
    own_node.start()
    wait_alone(own_node, container)


def test_the_end_of_the_daemon_hangs_up_execs_at_once(own_node: Node, container: str) -> None:
    # Its stderr is closed by then, and a shell that told there of a child's end would get SIGPIPE.
    script = (
        "exec 2>/dev/null; trap 'echo hup >/seen; exit' HUP; echo ready; "
        "while :; do sleep 0.05; done"
    )
    session = start_exec(own_node, container, "sh", "-c", script)
    session.read_until(b"ready\n")
    root = Path(f"/proc/{own_node.pid(container)}/root")
    own_node.kill("daemon")
    wait_until(lambda: (root / "seen").exists(), what="SIGHUP, without a daemon")
    session.close()
    own_node.start()


@both_transports
def test_the_end_of_the_daemon_detaches_and_the_container_goes_on(
    own_node: Node, container: str, transport: str
) -> None:
    watching = attach(own_node, container, transport=transport)
    session = attach(own_node, container, transport=transport, stdin=True)
    session.write(b"one\n")
    watching.read_until(b"out one\n")
    own_node.kill("daemon")
    assert is_cut(session)
    assert is_cut(watching)
    own_node.start()
    # stdin_once: its only writer is gone.
    own_node.wait_log(container, "end of stdin")
    assert own_node.status(container).state == cri.CONTAINER_RUNNING


@both_transports
def test_a_killed_spawner_ends_execs_and_no_attach(
    own_node: Node, container: str, transport: str
) -> None:
    sessions = started(own_node, container, transport)
    attached = attach(own_node, container, transport=transport, stdin=True)
    own_node.kill("spawner")
    assert all(is_cut(session) for session in sessions)
    attached.write(b"still here\n")
    assert attached.read_until(b"here\n") == b"out still here\n"
    wait_alone(own_node, container)
    own_node.stop_container(container)
    assert attached.finish().status["status"] == "Success"


@both_transports
def test_a_killed_monitor_ends_attachments_with_a_reason_and_no_exec(
    own_node: Node, container: str, transport: str
) -> None:
    running = start_exec(own_node, container, "cat", stdin=True, transport=transport)
    attached = attach(own_node, container, transport=transport)
    own_node.kill("monitor")
    status = attached.finish().status
    assert status["status"] == "Failure"
    assert "monitor" in status["message"]
    running.write(b"unmoved\n")
    running.read_until(b"unmoved\n")
    running.close_stdin()
    assert running.finish().exit_code == 0
    again = attach(own_node, container, transport=transport, stdin=True)
    again.write(b"again\n")
    again.read_until(b"out again\n")
    again.close()


def test_ports_go_on_without_a_spawner_and_are_closed_with_the_daemon(
    own_node: Node, images: Images, pod: str
) -> None:
    container = own_node.run_container(
        pod, images["busybox"], name="echo", command="nc -ll -p 7 -e cat & wait"
    )
    wait_until(
        lambda: ":7 " in own_node.shell(container, "netstat -lnt"), what="a server that listens"
    )
    pid = own_node.pid(container)
    ports = forward(own_node, pod)
    connection = ports.connect(7)
    connection.data.write(b"open")
    connection.data.read_until(b"open")
    own_node.kill("spawner")
    connection.data.write(b"open still")
    connection.data.read_until(b"open still")
    other = ports.connect(7)
    other.data.write(b"a new one")
    other.data.read_until(b"a new one")
    own_node.kill("daemon")
    with pytest.raises(ConnectionError):
        other.data.read_all()
    ports.close()
    wait_until(lambda: not _connections(pid), what="closed connections")
    own_node.start()


def _connections(pid: int) -> list[str]:
    lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    return [line for line in lines if line.split()[3] == "01"]
