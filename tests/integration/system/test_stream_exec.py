# SPDX-License-Identifier: Apache-2.0
"""Interactive exec, from outside: over SPDY and over WebSocket."""

import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.world.commands import SPDY_PROTOCOLS, SpdyCommand, WebSocketCommand
from tests.world.daemon import Node, is_running, wait_until
from tests.world.images import Images
from tests.world.sessions import TRANSPORTS, digest, exec_url, start_exec
from tests.world.spdy import FRAME, connect_spdy

PROMPT = b"# \x1b[6n"
"""Of busybox's shell, which asks the terminal where the cursor is."""

both_transports = pytest.mark.parametrize("transport", TRANSPORTS)


@pytest.fixture
def container(node: Node, images: Images) -> Iterator[str]:
    """A running container."""
    pod = node.run_pod("exec")
    yield node.run_container(pod, images["busybox"], command=["sleep", "600"])


def commands(node: Node, container: str) -> list[str]:
    """Return the command lines of the container's processes."""
    return node.shell(container, "ps -o args").splitlines()


def wait_gone(node: Node, container: str, text: str) -> None:
    wait_until(
        lambda: not any(text in line for line in commands(node, container)),
        what=f"the end of {text}",
    )


@both_transports
def test_outputs_come_apart_and_the_exit_code_as_a_cause(
    node: Node, container: str, transport: str
) -> None:
    script = "echo out; echo err >&2; exit 3"
    done = start_exec(node, container, "sh", "-c", script, transport=transport).finish()
    assert (done.stdout, done.stderr) == (b"out\n", b"err\n")
    assert done.status["status"] == "Failure"
    assert done.status["reason"] == "NonZeroExitCode"
    assert done.status["details"]["causes"] == [{"reason": "ExitCode", "message": "3"}]
    assert "3" in done.status["message"]


@both_transports
def test_a_success_is_told_as_such(node: Node, container: str, transport: str) -> None:
    done = start_exec(node, container, "true", transport=transport).finish()
    assert done == type(done)(b"", b"", {"metadata": {}, "status": "Success"})


@both_transports
def test_a_command_that_a_signal_ends_has_the_shell_s_code(
    node: Node, container: str, transport: str
) -> None:
    done = start_exec(node, container, "sh", "-c", "kill -SEGV $$", transport=transport).finish()
    assert done.exit_code == 139


@both_transports
def test_the_end_of_stdin_reaches_the_command_and_output_goes_on(
    node: Node, container: str, transport: str
) -> None:
    session = start_exec(
        node, container, "sh", "-c", "sort; echo done", transport=transport, stdin=True
    )
    session.write(b"pear\napple\n")
    session.close_stdin()
    done = session.finish()
    assert (done.stdout, done.exit_code) == (b"apple\npear\ndone\n", 0)


@both_transports
def test_a_command_without_stdin_reads_the_end_at_once(
    node: Node, container: str, transport: str
) -> None:
    done = start_exec(node, container, "wc", "-c", transport=transport).finish()
    assert done.stdout == b"0\n"


@both_transports
def test_what_is_not_wanted_goes_nowhere(node: Node, container: str, transport: str) -> None:
    script = "head -c 1000000 /dev/zero >&2; echo $?"
    done = start_exec(
        node, container, "sh", "-c", script, transport=transport, stderr=False
    ).finish()
    assert (done.stdout, done.stderr) == (b"0\n", b"")


@both_transports
def test_binary_data_passes_unchanged_both_ways(node: Node, container: str, transport: str) -> None:
    data = os.urandom(64 << 20)
    session = start_exec(
        node, container, "sh", "-c", "tee /dev/stderr", transport=transport, stdin=True
    )
    session.write(data)
    session.close_stdin()
    done = session.finish()
    assert (len(done.stdout), len(done.stderr)) == (len(data), len(data))
    assert digest(done.stdout) == digest(done.stderr) == digest(data)
    assert done.exit_code == 0


@pytest.mark.parametrize("protocol", ["v4", "v3", "v2", ""])
def test_older_spdy_protocols_tell_the_failure_as_text(
    node: Node, container: str, protocol: str
) -> None:
    name = f"{protocol}.channel.k8s.io".removeprefix(".")
    url = exec_url(node, container, "sh", "-c", "echo out; exit 4")
    session = SpdyCommand(url, ("stdout", "stderr"), protocols=[name])
    assert session.protocol == name
    done = session.finish()
    assert done.stdout == b"out\n"
    assert done.exit_code == 4 if protocol == "v4" else "4" in done.status


@pytest.mark.parametrize(
    "protocol",
    ["v5.channel.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io", "channel.k8s.io",
     "base64.channel.k8s.io"],
)  # fmt: skip
def test_every_websocket_protocol_carries_every_byte(
    node: Node, container: str, protocol: str
) -> None:
    data = bytes(range(256)) * 1000
    url = exec_url(node, container, "sh", "-c", f"head -c {len(data)} | tee /dev/stderr",
                   stdin=True)  # fmt: skip
    session = WebSocketCommand(url, [protocol])
    assert session.protocol == protocol
    session.write(data)
    done = session.finish()
    assert (done.stdout, done.stderr) == (data, data)


# terminals


@both_transports
def test_a_terminal_is_one(node: Node, container: str, transport: str) -> None:
    session = start_exec(node, container, "sh", transport=transport, stdin=True, tty=True)
    session.read_until(PROMPT)
    session.resize(123, 45)
    session.write(b"tty; echo $TERM; stty size; echo err >&2\n")
    shown = session.read_until(PROMPT).decode()
    assert "\r\nerr\r\n" in shown
    assert "/dev/pts/" in shown
    assert "\r\nxterm\r\n" in shown
    assert "\r\n45 123\r\n" in shown
    session.write(b"exit 7\n")
    assert session.finish().exit_code == 7


@both_transports
def test_a_new_size_is_told_to_what_is_in_the_foreground(
    node: Node, container: str, transport: str
) -> None:
    script = "trap 'stty size' WINCH; echo ready; while :; do sleep 0.05; done"
    session = start_exec(node, container, "sh", "-c", script, transport=transport, tty=True)
    session.read_until(b"ready\r\n")
    for width in (80, 200, 81):
        session.resize(width, 24)
        session.read_until(b"24 %d\r\n" % width)
    session.close()
    wait_gone(node, container, "WINCH")


@both_transports
def test_control_characters_act_on_the_terminal(node: Node, container: str, transport: str) -> None:
    session = start_exec(node, container, "sh", transport=transport, stdin=True, tty=True)
    session.read_until(PROMPT)
    session.write(b"sleep 601\n")
    wait_until(lambda: "sleep 601" in commands(node, container), what="sleep")
    session.write(b"\x03")
    session.read_until(PROMPT)
    session.write(b"\x04")
    assert session.finish().exit_code == 130


@both_transports
def test_the_last_words_on_a_terminal_come(node: Node, container: str, transport: str) -> None:
    script = "head -c 50000 /dev/zero | tr '\\0' x; echo; echo last; exit 5"
    for _ in range(5):
        session = start_exec(node, container, "sh", "-c", script, transport=transport, tty=True)
        done = session.finish()
        assert done.stdout == b"x" * 50000 + b"\r\nlast\r\n"
        assert done.exit_code == 5


def test_the_terminal_is_the_user_s(node: Node, images: Images) -> None:
    pod = node.run_pod("terminal")
    container = node.run_container(
        pod, images["busybox"], command=["sleep", "600"], security={"run_as_user": {"value": 1000}}
    )
    script = "echo x >/dev/stdout && echo y >$(tty) && stat -c %u $(tty)"
    done = start_exec(node, container, "sh", "-c", script, tty=True).finish()
    assert done.stdout == b"x\r\ny\r\n1000\r\n"


# ends


@both_transports
@pytest.mark.parametrize("tty", [False, True])
def test_a_command_whose_client_vanishes_is_hung_up(
    node: Node, container: str, transport: str, tty: bool
) -> None:
    # Without its stderr, a pipe that is closed by then: a shell tells there that sleep was hung up.
    script = (
        "exec 2>/dev/null; trap 'echo hung up >/tmp/seen; exit' HUP; echo ready; "
        "while :; do sleep 0.05; done"
    )
    session = start_exec(
        node, container, "sh", "-c", script, transport=transport, tty=tty, stdin=True
    )
    session.read_until(b"ready\r\n" if tty else b"ready\n")
    session.close()
    wait_gone(node, container, "hung up")
    assert node.shell(container, "cat /tmp/seen; rm /tmp/seen") == "hung up\n"


@both_transports
@pytest.mark.parametrize("tty", [False, True])
def test_one_that_does_not_heed_it_is_killed_with_all_it_started(
    node: Node, container: str, transport: str, tty: bool
) -> None:
    script = (
        "trap '' HUP; sleep 602 & setsid sleep 603 & (setsid nohup sleep 604 &); echo ready; "
        "while :; do sleep 605; done"
    )
    session = start_exec(node, container, "sh", "-c", script, transport=transport, tty=tty)
    session.read_until(b"ready\r\n" if tty else b"ready\n")
    session.close()
    for number in (602, 603, 604, 605):
        wait_gone(node, container, f"sleep {number}")
    assert "sleep 600" in commands(node, container)


@both_transports
@pytest.mark.parametrize("tty", [False, True])
def test_a_child_left_behind_holds_up_nobody(
    node: Node, container: str, transport: str, tty: bool
) -> None:
    began = time.monotonic()
    script = (
        "(trap '' HUP; touch /tmp/deaf; exec setsid sleep 606) & "
        "while [ ! -e /tmp/deaf ]; do sleep 0.01; done; echo started"
    )
    done = start_exec(node, container, "sh", "-c", script, transport=transport, tty=tty).finish()
    assert done.exit_code == 0
    assert done.stdout.rstrip() == b"started"
    assert time.monotonic() - began < 10
    assert "sleep 606" in commands(node, container)
    pid = find_pid("sleep 606")
    assert "exec-" not in Path(f"/proc/{pid}/cgroup").read_text(), "it is the container's now"


@both_transports
def test_the_end_of_the_container_ends_its_sessions(
    node: Node, container: str, transport: str
) -> None:
    sessions = [
        start_exec(node, container, "sh", "-c", "echo ready; exec sleep 607", transport=transport)
        for _ in range(3)
    ]
    for session in sessions:
        session.read_until(b"ready\n")
    node.stop_container(container)
    assert [session.finish().exit_code for session in sessions] == [137] * 3


@both_transports
def test_a_command_that_does_not_exist_is_named(node: Node, container: str, transport: str) -> None:
    done = start_exec(node, container, "no-such-command", transport=transport).finish()
    assert done.status["status"] == "Failure"
    assert "no-such-command" in done.status["message"]


@both_transports
def test_nothing_of_the_host_is_open_in_it(node: Node, container: str, transport: str) -> None:
    for tty in (False, True):
        done = start_exec(node, container, "ls", "/proc/self/fd", transport=transport, tty=tty,
                          stdin=True).finish()  # fmt: skip
        assert done.stdout.split() == [b"0", b"1", b"2", b"3"]


# slowness and numbers


def resident(pid: int) -> int:
    """Return the resident bytes of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def waits_in(pid: int, *calls: str) -> Callable[[], bool]:
    return lambda: Path(f"/proc/{pid}/wchan").read_text() in calls


def find_pid(command: str) -> int | None:
    """Return the host's pid of a process with this command line."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if path.read_bytes().replace(b"\0", b" ").strip() == command.encode():
                return int(path.parent.name)
    return None


@both_transports
def test_a_slow_reader_costs_bounded_memory(node: Node, container: str, transport: str) -> None:
    size = 300_000_001
    before = resident(node.pid_of("daemon"))
    session = start_exec(node, container, "head", "-c", str(size), "/dev/zero",
                         transport=transport)  # fmt: skip
    pid = wait_until(lambda: find_pid(f"head -c {size} /dev/zero"), what="head")
    wait_until(waits_in(pid, "pipe_write", "anon_pipe_write"), what="a full pipe")
    assert resident(node.pid_of("daemon")) - before < 16 << 20
    done = session.finish()
    assert (len(done.stdout), done.stdout.count(0), done.exit_code) == (size, size, 0)
    assert resident(node.pid_of("daemon")) - before < 32 << 20


def test_a_command_that_does_not_read_holds_up_its_client(node: Node, container: str) -> None:
    before = resident(node.pid_of("daemon"))
    session = start_exec(node, container, "sleep", "608", stdin=True)
    assert isinstance(session, SpdyCommand)
    wire, number = session.spdy.wire, session.streams["stdin"].number
    sock = wire.sock  # type: ignore[attr-defined] # a Connection
    frame = number.to_bytes(4, "big") + FRAME.to_bytes(4, "big") + bytes(FRAME)
    sent = 0
    while select.select([], [sock], [], 1)[1]:
        sent += sock.send(frame[sent % len(frame) :])
        assert sent < 256 << 20, "somebody reads without end"
    assert resident(node.pid_of("daemon")) - before < 16 << 20
    # A reset, as from a machine that has gone: an ordinary end would come after all that was sent.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    session.close()
    wait_gone(node, container, "sleep 608")


def test_two_hundred_at_once_cost_little_memory(own_node: Node, images: Images) -> None:
    node = own_node
    container = node.run_container(
        node.run_pod("crowd"), images["busybox"], command=["sleep", "600"]
    )
    before = resident(node.pid_of("daemon"))
    sessions = [start_exec(node, container, "cat", stdin=True) for _ in range(200)]
    for session in sessions:
        session.write(b"word\n")
    for session in sessions:
        session.read_until(b"word\n")
    assert resident(node.pid_of("daemon")) - before < 24 << 20
    for session in sessions:
        session.close_stdin()
    assert all(session.finish().exit_code == 0 for session in sessions)


def test_many_at_once_do_not_mix_their_data(node: Node, container: str) -> None:
    sessions = [
        start_exec(node, container, "cat", stdin=True, transport=TRANSPORTS[number % 2])
        for number in range(60)
    ]
    for number, session in enumerate(sessions):
        session.write(b"%d\n" % number * 10_000)
    for session in sessions:
        session.close_stdin()
    for number, session in enumerate(sessions):
        assert session.finish().stdout == b"%d\n" % number * 10_000


def test_a_client_that_opens_no_streams_leaves_no_process(node: Node, container: str) -> None:
    url = exec_url(node, container, "sleep", "610")
    connection, _ = connect_spdy(url, SPDY_PROTOCOLS)
    wait_until(lambda: "sleep 610" in commands(node, container), what="a start without streams")
    connection.close()
    wait_gone(node, container, "sleep 610")


def test_clients_that_hang_up_at_any_moment_leave_nothing(node: Node, container: str) -> None:
    for number in range(30):
        url = exec_url(node, container, "sleep", "609", stdin=True, tty=bool(number % 2))
        names = ("stdin", "stdout", "resize") if number % 2 else ("stdin", "stdout", "stderr")
        session = SpdyCommand(url, names)
        time.sleep(number / 3000)  # not a wait: the moment that is tried
        session.close()
    wait_gone(node, container, "sleep 609")
    pid = node.pid(container)
    assert is_running(pid)
