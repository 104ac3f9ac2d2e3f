# SPDX-License-Identifier: Apache-2.0
"""A real monitor, forked, with real pipes and ptys; the test is its spawner."""

import errno
import fcntl
import os
import pty
import signal
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from pycri.kernel.process import fork
from pycri.kernel.syscalls import Clone, MountFlag, mount, unshare
from pycri.model.ids import TaskId
from pycri.monitor import loop
from pycri.wire.messages import (
    FROM_MONITOR,
    Drop,
    Finished,
    HandedOver,
    HandOver,
    Keep,
    Kept,
    Reopen,
    Reopened,
)
from tests.world.fake_spawner import (
    OTHER,
    TASK,
    Spawner,
    describe,
    flood,
    read_entries,
    read_text,
    wait_until,
)


@pytest.fixture
def spawner(tmp_path: Path) -> Iterator[Spawner]:
    with Spawner(tmp_path) as spawner:
        yield spawner


def read_numbers(path: Path, width: int = 100) -> list[int]:
    lines = read_text(path).splitlines()
    assert {len(line) for line in lines} == {width - 1}, "a torn line"
    return [int(line) for line in lines]


def test_both_streams_are_logged_each_in_its_order(spawner: Spawner) -> None:
    path, _, (out, err) = spawner.pipes("stdout", "stderr")
    for number in range(500):
        os.write(out, b"out %d\n" % number)
        os.write(err, b"err %d\n" % number)
    spawner.close(out, err)
    spawner.finish()
    assert read_text(path) == b"".join(b"out %d\n" % number for number in range(500))
    assert read_text(path, "stderr") == b"".join(b"err %d\n" % number for number in range(500))
    assert {tag for _, tag, _ in read_entries(path)} == {"F"}


def test_a_line_is_logged_as_soon_as_it_is_written(spawner: Spawner) -> None:
    path, _, (out,) = spawner.pipes("stdout")
    for number in range(200):
        before = time.monotonic()
        os.write(out, b"line %d\n" % number)
        wanted = b"stdout F line %d\n" % number
        wait_until(lambda: path.exists() and path.read_bytes().endswith(wanted), "the line")  # noqa: B023
        assert time.monotonic() - before < loop.HOLD_S / 2


def test_a_long_line_is_cut_into_pieces(spawner: Spawner) -> None:
    path, _, (out,) = spawner.pipes("stdout")
    line = bytes(range(32, 127)) * 1000
    child = spawner.run(lambda: os.write(out, line + b"\nnext\n"), out)
    assert spawner.wait(child) == 0
    spawner.finish()
    tags = [tag for _, tag, _ in read_entries(path)]
    assert tags == ["P"] * (len(line) // 16384) + ["F", "F"]
    assert read_text(path) == line + b"\nnext\n"


def test_a_stream_without_a_last_newline_ends_with_a_piece(spawner: Spawner) -> None:
    path, _, (out,) = spawner.pipes("stdout")
    os.write(out, b"one\ntwo")
    spawner.sync()
    began = time.monotonic()
    spawner.close(out)
    wait_until(lambda: path.exists() and len(read_entries(path)) == 2, "two entries")
    assert time.monotonic() - began < loop.HOLD_S / 2, "not at the end, but after a while"
    assert read_entries(path) == [("stdout", "F", b"one"), ("stdout", "P", b"two")]


def test_a_line_written_in_parts_is_one_entry(spawner: Spawner) -> None:
    path, _, (out,) = spawner.pipes("stdout")
    for _ in range(20):
        os.write(out, b"first\nsec")
        wait_until(lambda: path.exists() and path.read_bytes().endswith(b"F first\n"), "a line")
        os.write(out, b"ond\n")
        wait_until(lambda: path.read_bytes().endswith(b"F second\n"), "the whole line")
    assert {tag for _, tag, _ in read_entries(path)} == {"F"}


def test_an_unfinished_line_is_logged_as_a_piece_after_a_while(spawner: Spawner) -> None:
    path, _, (out,) = spawner.pipes("stdout")
    os.write(out, b"Password: ")
    wait_until(lambda: path.exists() and read_text(path) == b"Password: ", "the piece")
    os.write(out, b"ok\n")
    wait_until(lambda: read_text(path) == b"Password: ok\n", "its end")
    assert [tag for _, tag, _ in read_entries(path)] == ["P", "F"]
    spawner.finish()
    status = Path(f"/proc/{spawner.monitor_pid}/status")
    wait_until(lambda: "State:\tS" in status.read_text(), "an idle monitor")
    before = status.read_text().split("voluntary_ctxt_switches:")[1:]
    time.sleep(0.3)  # not a wait: the span over which an idle monitor must not wake up
    assert status.read_text().split("voluntary_ctxt_switches:")[1:] == before


def test_a_write_longer_than_the_pipe_behind_an_unfinished_line_goes_on(spawner: Spawner) -> None:
    """pipe_write() wakes no edge-triggered epoll before it sleeps on a pipe that was not empty."""
    path, _, (out,) = spawner.pipes("stdout")
    line = b"y" * 99 + b"\n"

    def write() -> None:
        os.write(out, b"start\nunfinished ")
        wait_until(lambda: path.exists() and path.stat().st_size > 0, "the first line")
        assert os.write(out, line * 50_000) == 5_000_000

    began = time.monotonic()
    assert spawner.wait(spawner.run(write, out)) == 0
    assert time.monotonic() - began < 2
    spawner.finish()
    assert read_text(path) == b"start\nunfinished " + line * 50_000


@pytest.mark.parametrize("packets", [False, True])
def test_a_container_that_shrinks_its_pipe_or_sends_packets_is_logged(
    spawner: Spawner, packets: bool
) -> None:
    path, _, (out,) = spawner.pipes("stdout")
    if packets:
        fcntl.fcntl(out, fcntl.F_SETFL, os.O_WRONLY | os.O_DIRECT)
    else:
        fcntl.fcntl(out, fcntl.F_SETPIPE_SZ, 4096)

    def write() -> None:
        for letter in b"abcdefghijklmnopqr":
            os.write(out, bytes([letter]) * 300)
        os.write(out, b"\nend\n")

    assert spawner.wait(spawner.run(write, out)) == 0
    spawner.finish()
    text = b"".join(bytes([letter]) * 300 for letter in b"abcdefghijklmnopqr")
    assert read_text(path) == text + b"\nend\n"


def test_a_terminal_is_logged_as_stdout_without_its_carriage_returns(spawner: Spawner) -> None:
    path = spawner.folder / "terminal.log"
    master, slave = spawner.own(*pty.openpty())
    spawner.keep(describe(path, "terminal"), master)

    def write() -> None:
        for number in range(5000):
            os.write(slave, b"line %d\n" % number)
        os.write(slave, b"no end")

    assert spawner.wait(spawner.run(write, slave)) == 0
    spawner.finish()
    assert read_text(path) == b"".join(b"line %d\n" % number for number in range(5000)) + b"no end"
    assert {stream for stream, _, _ in read_entries(path)} == {"stdout"}
    spawner.send(HandOver())
    kept, fds = spawner.receive()
    assert kept == Kept(task=describe(path))
    assert len(fds) == 1


def test_a_task_without_a_log_is_read_and_discarded(spawner: Spawner) -> None:
    (reader, out), (stdin, _) = spawner.own(*os.pipe()), spawner.own(*os.pipe())
    spawner.keep(describe(None, "stdout", "stdin"), reader, stdin)
    assert spawner.wait(spawner.run(lambda: flood(out, 20_000), out)) == 0
    spawner.finish()
    spawner.send(HandOver())
    assert spawner.receive()[0] == Kept(task=describe(None, "stdin"))


def test_finish_writes_what_is_there_and_later_output_is_logged_too(spawner: Spawner) -> None:
    path, _, (out,) = spawner.pipes("stdout")
    os.write(out, b"one\ntwo")
    spawner.finish()
    assert read_entries(path) == [("stdout", "F", b"one"), ("stdout", "P", b"two")]
    os.write(out, b"\nfrom a child that lives on\n")
    wait_until(lambda: read_text(path) == b"one\ntwo\nfrom a child that lives on\n", "the rest")


def test_finish_ends_although_a_child_that_lives_on_floods(spawner: Spawner) -> None:
    path, _, (out,) = spawner.pipes("stdout")
    spawner.run(lambda: flood(out, 10_000_000), out)
    wait_until(lambda: path.exists() and path.stat().st_size > 1_000_000, "a flood")
    spawner.finish()
    size = path.stat().st_size
    wait_until(lambda: path.stat().st_size > size, "more of it")


def flood_faster_than_logged(fd: int) -> None:
    """Write for ever lines so short that the pipe is full whenever the monitor looks."""
    while True:
        os.write(fd, b"x\n" * 32768)


def test_a_flooding_task_does_not_starve_another(spawner: Spawner) -> None:
    flooded, _, (noise,) = spawner.pipes("stdout")
    path, _, (out,) = spawner.pipes("stdout", task=OTHER)
    noisy = spawner.run(lambda: flood_faster_than_logged(noise), noise)
    wait_until(lambda: flooded.exists() and flooded.stat().st_size > 1_000_000, "a flood")
    for number in range(20):
        before = time.monotonic()
        os.write(out, b"line %d\n" % number)
        wanted = b"stdout F line %d\n" % number
        wait_until(lambda: path.exists() and path.read_bytes().endswith(wanted), "the line")  # noqa: B023
        assert time.monotonic() - before < 0.5
    os.kill(noisy, signal.SIGKILL)
    assert spawner.wait(noisy) == -signal.SIGKILL


def test_drop_drains_and_closes(spawner: Spawner) -> None:
    path, (reader,), (out,) = spawner.pipes("stdout")
    spawner.sync()
    before = len(os.listdir(f"/proc/{spawner.monitor_pid}/fd"))
    os.write(out, b"last words")
    spawner.send(Drop(task=TASK))
    spawner.sync()
    assert read_text(path) == b"last words"
    spawner.close(reader)
    with pytest.raises(BrokenPipeError):
        os.write(out, b"nobody reads")
    assert len(os.listdir(f"/proc/{spawner.monitor_pid}/fd")) == before - 3


def test_the_end_of_a_dropped_stream_is_not_taken_for_that_of_another(spawner: Spawner) -> None:
    """The spawner has the open file too: only closed, it would stay in the epoll."""
    _, _, (old,) = spawner.pipes("stdout")
    spawner.send(Drop(task=TASK))
    path, _, (out,) = spawner.pipes("stdout", task=OTHER)
    spawner.sync()
    spawner.close(old)
    os.write(out, b"half")
    spawner.sync()
    os.write(out, b" and half\n")
    spawner.finish(OTHER)
    assert read_entries(path) == [("stdout", "F", b"half and half")]


def test_reopen_under_a_flood_loses_no_line(spawner: Spawner) -> None:
    path, _, (out,) = spawner.pipes("stdout")
    child = spawner.run(lambda: flood(out, 200_000), out)
    for turn in range(1, 6):
        wait_until(lambda: path.exists() and path.stat().st_size > 500_000, "output")
        path.rename(path.with_suffix(f".{turn}"))
        spawner.send(Reopen(request=turn, task=TASK))
        assert spawner.receive() == (Reopened(request=turn, errno=0), [])
        assert path.exists()
    assert spawner.wait(child) == 0
    spawner.finish()
    parts = [path.with_suffix(f".{turn}") for turn in range(1, 6)] + [path]
    assert [number for part in parts for number in read_numbers(part)] == list(range(200_000))


def test_a_reopen_that_fails_keeps_the_old_file(spawner: Spawner) -> None:
    path, _, (out,) = spawner.pipes("stdout")
    wait_until(path.exists, "the log")
    old = path.rename(path.with_suffix(".old"))
    path.symlink_to("/dev/null")
    spawner.send(Reopen(request=1, task=TASK))
    assert spawner.receive()[0] == Reopened(request=1, errno=errno.ELOOP)
    spawner.send(Reopen(request=2, task=OTHER))
    assert spawner.receive()[0] == Reopened(request=2, errno=errno.ENOENT)
    os.write(out, b"still here\n")
    spawner.finish()
    assert read_text(old) == b"still here\n"


def gaps(numbers: list[int]) -> list[int]:
    """Return how many are missing at each place; the numbers must rise."""
    steps = [after - before for before, after in pairwise(numbers)]
    assert all(step > 0 for step in steps), "a line twice, or out of order"
    return [step - 1 for step in steps if step > 1]


@pytest.mark.parametrize("turn", range(5))
def test_a_monitor_killed_in_a_flood_tears_no_line_and_loses_one_chunk(
    spawner: Spawner, turn: int
) -> None:
    path, (reader,), (out,) = spawner.pipes("stdout")
    child = spawner.run(lambda: flood(out, 300_000), out)
    wait_until(lambda: path.exists() and path.stat().st_size > 3_000_000 * (turn + 1), "a flood")
    spawner.kill_monitor()
    spawner.start_monitor()
    spawner.keep(describe(path, "stdout"), reader)
    assert spawner.wait(child) == 0
    spawner.finish()
    numbers = read_numbers(path)
    lost = gaps(numbers)
    assert (numbers[0], numbers[-1]) == (0, 299_999)
    assert len(lost) <= 1
    assert sum(lost) * 100 <= 64 << 10


def test_a_successor_finds_an_unfinished_line_whole(spawner: Spawner) -> None:
    path, (reader,), (out,) = spawner.pipes("stdout")
    os.write(out, b"whole\nhalf")
    wait_until(lambda: path.exists() and path.stat().st_size > 0, "the first line")
    spawner.kill_monitor()
    spawner.start_monitor()
    spawner.keep(describe(path, "stdout"), reader)
    os.write(out, b" and half\n")
    spawner.finish()
    assert read_entries(path) == [("stdout", "F", b"whole"), ("stdout", "F", b"half and half")]


def test_pumping_goes_on_without_a_spawner_and_a_second_takes_over(spawner: Spawner) -> None:
    path, readers, (out, err) = spawner.pipes("stdout", "stderr")
    other, _, _ = spawner.pipes("stdout", task=OTHER)
    spawner.finish()
    spawner.channel.close()
    spawner.close(*readers, err)
    os.write(out, b"nobody listens\n")
    wait_until(lambda: read_text(path) == b"nobody listens\n", "the line")

    spawner.connect()
    spawner.send(HandOver())
    kept, fds = spawner.receive()
    assert kept == Kept(task=describe(path, "stdout"))
    assert [os.readlink(f"/proc/self/fd/{fd}").partition(":")[0] for fd in fds] == [
        "anon_inode",
        "pipe",
    ]
    assert spawner.receive()[0] == Kept(task=describe(other, "stdout", task=OTHER))
    assert spawner.receive() == (HandedOver(pid=spawner.monitor_pid), [])

    # What was handed over is enough to start again.
    spawner.kill_monitor()
    spawner.start_monitor()
    assert isinstance(kept, Kept)
    spawner.send(Keep(task=kept.task), *fds)
    os.write(out, b"a second monitor\n")
    spawner.finish()
    assert read_text(path) == b"nobody listens\na second monitor\n"


def test_the_newest_connection_is_obeyed(spawner: Spawner) -> None:
    old = spawner.channel
    spawner.connect()
    spawner.finish()
    assert old.receive(FROM_MONITOR) is None
    old.close()


def test_a_spawner_of_another_version_is_refused_and_pumping_goes_on(spawner: Spawner) -> None:
    path, _, (out,) = spawner.pipes("stdout")
    spawner.send(HandOver(version=99))
    assert spawner.channel.receive(FROM_MONITOR) is None
    os.write(out, b"still pumping\n")
    wait_until(lambda: path.exists() and read_text(path) == b"still pumping\n", "the line")


def test_a_hundred_tasks_are_handed_over_to_a_slow_spawner(spawner: Spawner) -> None:
    names = [TaskId(f"{number:064x}") for number in range(100)]
    for name in names:
        spawner.pipes("stdout", "stderr", task=name)
    for _ in range(50):
        spawner.send(HandOver())
    for _ in range(50):
        replies = [spawner.receive() for _ in range(101)]
        assert [reply.task.id for reply, _ in replies if isinstance(reply, Kept)] == names
        for _, fds in replies:
            spawner.close(*fds)


def test_a_monitor_with_nothing_to_keep_ends_with_its_spawner(spawner: Spawner) -> None:
    spawner.pipes("stdout")
    spawner.send(Drop(task=TASK))
    spawner.finish()
    spawner.channel.close()
    assert spawner.wait(spawner.monitor_pid) == 0


def test_signals_of_a_stopped_service_do_not_end_it(spawner: Spawner) -> None:
    spawner.finish()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(spawner.monitor_pid, number)
    spawner.finish()


def test_garbage_and_wrong_descriptors_harm_nobody(spawner: Spawner) -> None:
    path, (reader,), (out,) = spawner.pipes("stdout")
    spawner.sync()
    before = len(os.listdir(f"/proc/{spawner.monitor_pid}/fd"))
    spawner.send(Keep(task=describe(path, "stdout", "stderr", task=OTHER)), reader)
    spawner.keep(describe(path, "stdout"), reader)
    spawner.channel.send(Finished(task=TASK), [reader])
    spawner.sync()
    assert len(os.listdir(f"/proc/{spawner.monitor_pid}/fd")) == before
    os.write(out, b"unharmed\n")
    spawner.finish()
    assert read_text(path) == b"unharmed\n"


def test_a_full_disk_stops_no_container_and_tears_no_line(tmp_path: Path) -> None:
    def full_disk() -> None:
        unshare(Clone.NEWNS)
        mount("none", "/", "", MountFlag.REC | MountFlag.PRIVATE)
        folder = tmp_path / "small"
        folder.mkdir()
        mount("small", str(folder), "tmpfs", MountFlag.NOSUID, "size=1000k")
        with Spawner(tmp_path) as spawner:
            path = folder / "log"
            reader, out = spawner.own(*os.pipe())
            spawner.keep(describe(path, "stdout"), reader)
            flood(out, 30_000)
            spawner.finish()
            assert 900_000 < path.stat().st_size <= 1_024_000
            numbers = read_numbers(path)
            assert gaps(numbers[:6000]) == []
            os.truncate(path, 0)
            os.write(out, b"room again\n")
            spawner.finish()
            assert read_text(path) == b"room again\n"

    _, status = os.waitpid(fork(full_disk), 0)
    assert status == 0
