# SPDX-License-Identifier: Apache-2.0
"""A person at a real terminal, and crictl where it is given.

PYCRI_TEST_CRICTL=/path/to/crictl runs what needs it; without, those tests are skipped.
"""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.world import session
from tests.world.daemon import Node, wait_until
from tests.world.images import INDEX_HTML, Images
from tests.world.sessions import exec_url
from tests.world.wires import DEADLINE_S

CRICTL = os.environ.get("PYCRI_TEST_CRICTL", "")
needs_crictl = pytest.mark.skipif(
    not CRICTL, reason="SKIPPED, NOT PASSED: set PYCRI_TEST_CRICTL=/path/to/crictl (cri-tools)"
)
ROOT = Path(__file__).parents[3]


@pytest.fixture
def container(node: Node, images: Images) -> Iterator[str]:
    """A running container whose first process is a shell on a terminal."""
    pod = node.run_pod("terminal")
    yield node.run_container(pod, images["busybox"], command=["sh"], stdin=True, tty=True)


class Person:
    """Sits at a terminal on which a program runs: types, reads, resizes the window."""

    def __init__(self, master: int, process: subprocess.Popen[bytes]) -> None:
        self._master = master
        self._process = process
        self._shown = b""

    def type(self, text: str) -> None:
        """Type."""
        os.write(self._master, text.encode())

    def see(self, text: str) -> str:
        """Wait until the text is shown. Returns all that was shown up to there."""
        deadline = time.monotonic() + DEADLINE_S
        while text.encode() not in self._shown:
            left_s = deadline - time.monotonic()
            assert left_s > 0, f"{text!r} is not shown: {self._shown!r}"
            if select.select([self._master], [], [], left_s)[0]:
                self._shown += os.read(self._master, 65536)
        before, _, self._shown = self._shown.partition(text.encode())
        return before.decode() + text

    def resize(self, width: int, height: int) -> None:
        """Change the size of the window."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def leave(self) -> int:
        """Wait for the program's end. Returns its exit code."""
        deadline = time.monotonic() + DEADLINE_S
        while self._process.poll() is None:
            assert time.monotonic() < deadline, f"it does not end: {self._shown!r}"
            if select.select([self._master], [], [], 0.05)[0]:
                try:
                    self._shown += os.read(self._master, 65536)
                except OSError:  # EIO: nobody has the terminal open any more
                    break
        return self._process.wait(DEADLINE_S)


@contextmanager
def at_terminal(*command: str, width: int = 80, height: int = 24) -> Iterator[Person]:
    """Run a program on a new terminal."""
    master, slave = pty.openpty()
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
    process = subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, cwd=ROOT, start_new_session=True,
        env=session.environment(),
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(slave)
    try:
        yield Person(master, process)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(master)


def our_client(url: str) -> list[str]:
    return [sys.executable, "-m", "tests.world.terminal", url]


def crictl(node: Node, *words: str) -> list[str]:
    return [CRICTL, "--runtime-endpoint", f"unix://{node.run_dir}/pycri.sock", *words]


def work_in_a_shell(person: Person) -> None:
    """Do what a person does in a shell, and leave it with code 7."""
    person.see("# ")
    person.type("echo $((6 * 7)); tty\r")
    assert "\r\n42\r\n" in person.see("/dev/pts/")
    person.resize(132, 43)
    person.see("# ")
    wait_until(lambda: sees_size(person, "43 132"), what="the new size")
    person.type("sleep 601\r")
    time.sleep(0.2)  # a person's pause; the next key may also come before sleep runs
    person.type("\x03")
    person.see("# ")
    person.type("echo one; exit 7\r")
    person.see("\r\none\r\n")


def sees_size(person: Person, size: str) -> bool:
    person.type("stty size; echo end-of-'size'\r")
    return size in person.see("\r\nend-of-size\r\n")


def test_a_shell_is_at_home_on_a_real_terminal(node: Node, container: str) -> None:
    url = exec_url(node, container, "sh", stdin=True, tty=True)
    with at_terminal(*our_client(url)) as person:
        work_in_a_shell(person)
        assert person.leave() == 7


def test_script_records_a_session(node: Node, container: str, tmp_path: Path) -> None:
    url = exec_url(node, container, "sh", stdin=True, tty=True)
    record = tmp_path / "typescript"
    command = " ".join(our_client(url))
    with at_terminal("script", "-qec", command, str(record), width=100, height=30) as person:
        person.see("# ")
        person.type("stty size; exit 3\r")
        person.see("30 100\r\n")
        assert person.leave() == 3
    assert "30 100" in record.read_text()


def test_a_window_that_is_closed_hangs_the_command_up(node: Node, container: str) -> None:
    url = exec_url(node, container, "sh", stdin=True, tty=True)
    with at_terminal(*our_client(url)) as person:
        person.see("# ")
        person.type("sleep 602\r")
        wait_until(lambda: "sleep 602" in node.shell(container, "ps -o args"), what="sleep")
    wait_until(lambda: "sleep 602" not in node.shell(container, "ps -o args"), what="its end")


@needs_crictl
@pytest.mark.parametrize("transport", ["spdy", "websocket"])
def test_crictl_execs(node: Node, container: str, transport: str) -> None:
    options = ["exec", "--transport", transport]
    done = subprocess.run(
        crictl(node, *options, "-i", container, "sh", "-c", "cat; echo err >&2; exit 4"),
        input=b"through crictl\n", capture_output=True, check=False,
    )  # fmt: skip
    assert done.stdout == b"through crictl\n"
    assert b"err\n" in done.stderr  # crictl has warnings of its own
    assert done.returncode != 0
    assert b"exit code 4" in done.stderr
    with at_terminal(*crictl(node, *options, "-it", container, "sh")) as person:
        work_in_a_shell(person)
        assert person.leave() != 0


@needs_crictl
@pytest.mark.parametrize("transport", ["spdy", "websocket"])
def test_crictl_attaches(node: Node, container: str, transport: str) -> None:
    words = crictl(node, "attach", "--transport", transport, "-it", container)
    with at_terminal(*words) as person:
        person.type("\recho $((6 * 7))\r")
        person.see("\r\n42\r\n")
    with at_terminal(*words) as person:
        person.type("\recho again; exit 0\r")
        person.see("\r\nagain\r\n")
        assert person.leave() == 0
    assert node.wait_exited(container).exit_code == 0


@needs_crictl
@pytest.mark.parametrize("transport", ["spdy", "websocket"])
def test_crictl_forwards_ports(node: Node, images: Images, transport: str) -> None:
    pod = node.run_pod("web")
    node.run_container(pod, images["nginx"])
    words = crictl(node, "port-forward", "--transport", transport, pod, ":80")
    with at_terminal(*words) as person:
        port = person.see(" -> 80").rpartition("127.0.0.1:")[2].split()[0]
        page = subprocess.run(
            ["busybox", "wget", "-qO-", f"http://127.0.0.1:{port}/"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    assert page.stdout == INDEX_HTML
