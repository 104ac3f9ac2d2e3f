# SPDX-License-Identifier: Apache-2.0
"""Attachments of a real monitor: copies of a task's output, from now on, beside its log."""

import errno
import os
import pty
import select
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycri.model.ids import TaskId
from pycri.monitor.attachments import ENDED
from pycri.wire.messages import CloseStdin, Copied, Copy, Drop, HandedOver, HandOver, Kept
from tests.world.fake_spawner import (
    DEADLINE_S,
    OTHER,
    TASK,
    Spawner,
    describe,
    flood,
    read_text,
    wait_until,
)


@pytest.fixture
def spawner(tmp_path: Path) -> Iterator[Spawner]:
    with Spawner(tmp_path) as spawner:
        yield spawner


def attach(spawner: Spawner, *streams: str, task: TaskId = TASK) -> tuple[int, list[int]]:
    """Returns the reading ends of the line and of each stream."""
    ends = [os.pipe() for _ in range(1 + len(streams))]
    spawner.send(Copy(request=7, task=task, streams=streams), *(end[1] for end in ends))
    for _, end in ends:
        os.close(end)
    line, *readers = spawner.own(*(end[0] for end in ends))
    assert spawner.receive() == (Copied(request=7, errno=0), [])
    return line, readers


def read_some(fd: int) -> bytes:
    """Read what comes next; b"" is the end."""
    assert select.select([fd], [], [], DEADLINE_S)[0], "nothing comes"
    return os.read(fd, 1 << 20)


def read_until(fd: int, wanted: bytes) -> bytes:
    data = b""
    while not data.endswith(wanted):
        more = read_some(fd)
        assert more, f"ended after {data[-100:]!r}"
        data += more
    return data


def read_all(fd: int) -> bytes:
    data = []
    while more := read_some(fd):
        data.append(more)
    return b"".join(data)


class Reader(threading.Thread):
    """Reads a pipe to its end."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self.data = b""
        self.start()

    def run(self) -> None:
        self.data = read_all(self._fd)

    def result(self) -> bytes:
        self.join(DEADLINE_S)
        assert not self.is_alive()
        return self.data


def test_output_is_shown_from_now_on_without_waiting_for_line_ends(spawner: Spawner) -> None:
    path, _, (out, err) = spawner.pipes("stdout", "stderr")
    os.write(out, b"before\nand an unfinished ")
    wait_until(lambda: path.exists() and read_text(path) == b"before\n", "the log")
    _, (shown_out, shown_err) = attach(spawner, "stdout", "stderr")
    os.write(out, b"line")
    assert read_until(shown_out, b"line") == b"line"
    os.write(err, b"Password: ")
    assert read_until(shown_err, b": ") == b"Password: "
    os.write(out, b"\nnext\n")
    assert read_until(shown_out, b"next\n") == b"\nnext\n"
    spawner.finish()
    assert read_text(path) == b"before\nand an unfinished line\nnext\n"
    assert read_text(path, "stderr") == b"Password: "


def test_several_get_the_same_and_the_log_too(spawner: Spawner) -> None:
    path, _, (out,) = spawner.pipes("stdout")
    attached = [attach(spawner, "stdout") for _ in range(5)]
    readers = [Reader(fds[0]) for _, fds in attached]
    assert spawner.wait(spawner.run(lambda: flood(out, 100_000), out)) == 0
    spawner.finish()
    expected = read_text(path)
    assert len(expected) == 10_000_000
    assert all(reader.result() == expected for reader in readers)
    assert {read_some(line) + read_some(line) for line, _ in attached} == {ENDED}


def test_a_slow_reader_slows_the_container_and_loses_nothing(spawner: Spawner) -> None:
    path, _, (out,) = spawner.pipes("stdout")
    _, (slow,) = attach(spawner, "stdout")
    _, (fast,) = attach(spawner, "stdout")
    others = Reader(fast)
    before = _resident(spawner.monitor_pid)
    child = spawner.run(lambda: flood(out, 100_000), out)
    wait_until(lambda: path.exists() and path.stat().st_size > 100_000, "the first lines")
    wait_until(lambda: _state(child) == "S", "a container that waits")
    # Its pipe, that of the attachment and a chunk in between: all that can be under way.
    assert path.stat().st_size < 600_000
    assert _resident(spawner.monitor_pid) - before < 4 << 20
    shown = Reader(slow)
    assert spawner.wait(child) == 0
    spawner.finish()
    assert shown.result() == others.result() == read_text(path)


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def test_one_that_vanishes_holds_nobody_up(spawner: Spawner) -> None:
    path, _, (out,) = spawner.pipes("stdout")
    spawner.sync()
    before = len(os.listdir(f"/proc/{spawner.monitor_pid}/fd"))
    line, (stuck,) = attach(spawner, "stdout")

    def write() -> None:
        os.close(line)
        os.close(stuck)
        flood(out, 100_000)

    child = spawner.run(write, out)
    wait_until(lambda: path.exists() and path.stat().st_size > 100_000, "the first lines")
    wait_until(lambda: _state(child) == "S", "a container that waits")
    spawner.close(line, stuck)
    assert spawner.wait(child) == 0
    spawner.finish()
    assert len(read_text(path)) == 10_000_000
    fds = Path(f"/proc/{spawner.monitor_pid}/fd")
    wait_until(lambda: len(os.listdir(fds)) == before - 1, "closed ends")


def test_a_reader_of_an_idle_task_that_vanishes_is_dropped_at_once(spawner: Spawner) -> None:
    spawner.pipes("stdout", "stderr")
    spawner.sync()
    fds = Path(f"/proc/{spawner.monitor_pid}/fd")
    before = len(os.listdir(fds))
    line, shown = attach(spawner, "stdout", "stderr")
    assert len(os.listdir(fds)) == before + 3
    spawner.close(line, *shown)
    wait_until(lambda: len(os.listdir(fds)) == before, "closed ends")


def test_the_end_is_told_and_the_log_whole_however_slow_a_reader_is(spawner: Spawner) -> None:
    path, _, (out,) = spawner.pipes("stdout")
    line, (slow,) = attach(spawner, "stdout")
    child = spawner.run(lambda: flood(out, 2500), out)
    # 64 KiB in the attachment's pipe, 64 KiB pending, 64 KiB in the container's.
    wait_until(lambda: path.exists() and path.stat().st_size > 100_000, "the first lines")
    spawner.finish()
    spawner.wait(child)
    spawner.finish()
    assert len(read_text(path)) == 250_000
    assert not select.select([line], [], [], 0)[0], "not shown yet"
    assert read_all(slow) == read_text(path)
    assert read_all(line) == ENDED


def test_what_is_shown_of_a_dead_task_outlives_its_keeping(spawner: Spawner) -> None:
    _, _, (out,) = spawner.pipes("stdout")
    line, (slow,) = attach(spawner, "stdout")
    assert spawner.wait(spawner.run(lambda: flood(out, 1000), out)) == 0
    spawner.finish()
    spawner.send(Drop(task=TASK))
    other, _, (noise,) = spawner.pipes("stdout", task=OTHER)
    os.write(noise, b"another task\n")
    spawner.finish(OTHER)
    assert read_text(other) == b"another task\n"
    assert len(read_all(slow)) == 100_000
    assert read_all(line) == ENDED


def test_a_stream_that_has_ended_ends_the_copy_and_not_the_attachment(spawner: Spawner) -> None:
    _, _, (out, err) = spawner.pipes("stdout", "stderr")
    line, (first, second) = attach(spawner, "stdout", "stderr")
    os.write(out, b"last")
    spawner.close(out)
    assert read_all(first) == b"last"
    os.write(err, b"still here")
    assert read_until(second, b"here") == b"still here"
    _, (late, _) = attach(spawner, "stdout", "stderr")
    assert read_all(late) == b""
    spawner.finish()
    assert read_all(second) == b""
    assert read_all(line) == ENDED


def test_a_terminal_is_shown_as_it_is(spawner: Spawner) -> None:
    master, slave = spawner.own(*pty.openpty())
    path = spawner.folder / "terminal.log"
    spawner.keep(describe(path, "terminal"), master)
    _, (shown,) = attach(spawner, "terminal")
    os.write(slave, b"one\ntwo$ ")
    assert read_until(shown, b"$ ") == b"one\r\ntwo$ "
    spawner.finish()
    assert read_text(path) == b"one\ntwo$ "


def test_output_that_nobody_logs_is_shown_too(spawner: Spawner) -> None:
    (reader, out) = spawner.own(*os.pipe())
    spawner.keep(describe(None, "stdout"), reader)
    os.write(out, b"before")
    spawner.sync()
    _, (shown,) = attach(spawner, "stdout")
    os.write(out, b"after")
    assert read_until(shown, b"after") == b"after"
    reading = Reader(shown)
    assert spawner.wait(spawner.run(lambda: flood(out, 20_000), out)) == 0
    spawner.finish()
    assert len(reading.result()) == 2_000_000


def test_a_monitor_that_dies_ends_its_attachments_without_a_word(spawner: Spawner) -> None:
    path, (reader,), (out,) = spawner.pipes("stdout")
    line, (shown,) = attach(spawner, "stdout")
    spawner.kill_monitor()
    assert read_all(line) == read_all(shown) == b""
    spawner.start_monitor()
    spawner.keep(describe(path, "stdout"), reader)
    os.write(out, b"nobody noticed\n")
    spawner.finish()
    assert read_text(path) == b"nobody noticed\n"


def test_attachments_outlive_the_spawner(spawner: Spawner) -> None:
    _, _, (out,) = spawner.pipes("stdout")
    line, (shown,) = attach(spawner, "stdout")
    spawner.channel.close()
    os.write(out, b"nobody commands")
    assert read_until(shown, b"commands") == b"nobody commands"
    spawner.connect()
    spawner.finish()
    assert read_all(shown) == b""
    assert read_all(line) == ENDED


def test_stdin_that_was_given_away_is_not_handed_over(spawner: Spawner) -> None:
    reader, stdin = spawner.own(*os.pipe())
    spawner.keep(describe(None, "stdin"), stdin)
    spawner.send(CloseStdin(task=TASK))
    spawner.sync()
    spawner.close(stdin)
    assert read_all(reader) == b""
    spawner.send(CloseStdin(task=TASK))
    spawner.send(HandOver())
    assert spawner.receive()[0] == Kept(task=describe(None))
    assert isinstance(spawner.receive()[0], HandedOver)


def test_an_unknown_task_and_wrong_descriptors_harm_nobody(spawner: Spawner) -> None:
    path, _, (out,) = spawner.pipes("stdout")
    spawner.sync()
    before = len(os.listdir(f"/proc/{spawner.monitor_pid}/fd"))
    spawner.send(Copy(request=1, task=OTHER, streams=("stdout",)), out, out)
    assert spawner.receive() == (Copied(request=1, errno=errno.ENOENT), [])
    spawner.send(Copy(request=2, task=TASK, streams=("stdout", "stderr")), out)
    spawner.sync()
    assert len(os.listdir(f"/proc/{spawner.monitor_pid}/fd")) == before
    os.write(out, b"unharmed\n")
    spawner.finish()
    assert read_text(path) == b"unharmed\n"
