# SPDX-License-Identifier: Apache-2.0
"""The leak check finds each kind of leftover, and nothing on a quiet host."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.world import leaks, session

NAME = f"{leaks.NAME_PREFIX}{session.session_id}"


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@contextmanager
def mount(folder: Path) -> Iterator[None]:
    run("mount", "-t", "tmpfs", "none", str(folder))
    yield
    run("umount", str(folder))


@contextmanager
def shared_mount(folder: Path) -> Iterator[None]:
    """A change of propagation alone, on a mount that was there before."""
    run("mount", "--make-shared", str(folder))
    yield
    run("mount", "--make-private", str(folder))


@contextmanager
def link(_: Path) -> Iterator[None]:
    run("ip", "link", "add", NAME, "type", "bridge")
    yield
    run("ip", "link", "del", NAME)


@contextmanager
def cgroup(_: Path) -> Iterator[None]:
    with open("/proc/self/mountinfo") as table:
        roots = [words[4] for line in table if " - cgroup" in line and (words := line.split())]
    group = Path(roots[-1], NAME)
    group.mkdir()
    yield
    group.rmdir()


@contextmanager
def child(*command: str) -> Iterator[int]:
    with subprocess.Popen(command, env=session.environment(), stdin=subprocess.DEVNULL) as process:
        yield process.pid
        process.kill()


@contextmanager
def process(_: Path) -> Iterator[None]:
    with child("sleep", "60"):
        yield


@contextmanager
def zombie(_: Path) -> Iterator[None]:
    pid = os.posix_spawn("/bin/true", ["true"], {})
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    yield
    os.waitpid(pid, 0)


@contextmanager
def orphan(folder: Path) -> Iterator[None]:
    """A process that another has adopted, known by the environment alone."""
    script = "import os, time\nif os.fork(): os._exit(0)\nos.setsid(); time.sleep(60)"
    run_as = {"env": session.environment(), "cwd": "/"}
    started = subprocess.run([sys.executable, "-c", script], check=True, **run_as)  # type: ignore[call-overload]
    assert started.returncode == 0
    yield
    for line in leaks.read_processes(leaks.Scope(folders=(str(folder),))).values():
        if "time.sleep(60)" in line:
            os.kill(int(line.split()[1]), 9)


@contextmanager
def namespace(_: Path) -> Iterator[None]:
    with child("unshare", "--net", "sleep", "60") as pid:
        ours = os.stat("/proc/self/ns/net").st_ino
        deadline = time.monotonic() + 5
        while os.stat(f"/proc/{pid}/ns/net").st_ino == ours and time.monotonic() < deadline:
            time.sleep(0.01)
        yield


@contextmanager
def table(_: Path) -> Iterator[None]:
    run("nft", "add", "table", "inet", NAME)
    yield
    run("nft", "delete", "table", "inet", NAME)


@contextmanager
def listening(folder: Path) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "sock"))
        yield


@contextmanager
def state_file(_: Path) -> Iterator[None]:
    path = Path(f"/run/pycri-{NAME}")
    path.write_text("")
    yield
    path.unlink()


@contextmanager
def watched_file(folder: Path) -> Iterator[None]:
    (folder / "watched" / "left").touch()
    yield
    (folder / "watched" / "left").unlink()


@contextmanager
def descriptor(_: Path) -> Iterator[None]:
    fd = os.open("/dev/null", os.O_RDONLY)
    yield
    os.close(fd)


@pytest.fixture
def own_scope(scope: leaks.Scope, tmp_path: Path) -> Iterator[leaks.Scope]:
    """A scope with a watched folder, and a mount to change."""
    (tmp_path / "watched").mkdir()
    (tmp_path / "mounted").mkdir()
    with mount(tmp_path / "mounted"):
        yield leaks.Scope(folders=scope.folders, watched={str(tmp_path / "watched")})


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda path: mount(path / "watched"), "mount"),
        (lambda path: shared_mount(path / "mounted"), "mount"),
        (link, "link"),
        (cgroup, "cgroup"),
        (process, "process"),
        (zombie, "process"),
        (orphan, "process"),
        (namespace, "network namespace"),
        (table, "nft table"),
        (listening, "socket"),
        (state_file, "file"),
        (watched_file, "file"),
        (descriptor, "descriptor"),
    ],
)
def test_each_kind_of_leftover_is_found_and_named(
    make: Callable[[Path], object], kind: str, own_scope: leaks.Scope, tmp_path: Path
) -> None:
    before = leaks.read_snapshot(own_scope)
    with ExitStack() as stack:
        stack.enter_context(make(tmp_path))  # type: ignore[arg-type]
        found = leaks.find_leftovers(before, leaks.read_snapshot(own_scope), own_scope)
        assert kind in {line.split(":")[0] for line in found}
    assert leaks.wait_clean(before, own_scope, timeout_s=5) == []


def test_a_quiet_host_has_no_leftovers(own_scope: leaks.Scope) -> None:
    before = leaks.read_snapshot(own_scope)
    assert leaks.find_leftovers(before, leaks.read_snapshot(own_scope), own_scope) == []


def test_what_another_session_makes_is_not_ours_while_it_runs(
    own_scope: leaks.Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = leaks.read_snapshot(own_scope)
    monkeypatch.setattr(session, "is_alone", lambda: False)
    run("ip", "link", "add", "other", "type", "bridge")
    found = leaks.find_leftovers(before, leaks.read_snapshot(own_scope), own_scope)
    run("ip", "link", "del", "other")
    assert found == []


def test_a_leaking_test_fails_with_the_list_of_leftovers(tmp_path: Path) -> None:
    folder = tmp_path / "tests/integration"
    folder.mkdir(parents=True)
    source = Path(__file__).parents[1]
    (tmp_path / "tests/world").symlink_to(source / "world")
    (tmp_path / "tests/conftest.py").write_bytes((source / "conftest.py").read_bytes())
    (folder / "test_one.py").write_text(
        "import os\n"
        "def test_leaks():\n    os.open('/dev/null', os.O_RDONLY)\n"
        "def test_clean():\n    pass\n"
    )
    code = (
        "import tests.conftest, pytest, sys; tests.conftest.SETTLE_S = 0.1\n"
        "sys.exit(pytest.main(['--import-mode=importlib', '-p', 'no:cacheprovider']))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert "left behind:\n" in run.stdout
    assert "-> /dev/null" in run.stdout
    assert "2 passed" in run.stdout
    assert "1 error" in run.stdout
