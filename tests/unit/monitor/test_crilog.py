# SPDX-License-Identifier: Apache-2.0
"""Entries of CRI logs and the files they go to."""

import errno
import os
import re
import resource
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycri.kernel.process import fork
from pycri.monitor.crilog import (
    ENTRY_LIMIT,
    LogFile,
    render_all,
    render_entries,
    render_timestamp,
)

NOW_NS = 1_769_850_487_000_000_065
HEAD = b"2026-01-31T09:08:07.000000065Z stdout "
ENTRY = re.compile(
    rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z (?:stdout|stderr) ([PF]) ([^\n]*)\n", re.DOTALL
)


def join_entries(log: bytes) -> bytes:
    """Return the text of entries as a reader of logs puts it together; all must be entries."""
    found = list(ENTRY.finditer(log))
    assert b"".join(entry[0] for entry in found) == log
    return b"".join(entry[2] + (b"\n" if entry[1] == b"F" else b"") for entry in found)


@pytest.mark.parametrize(
    ("now_ns", "text"),
    [
        (0, b"1970-01-01T00:00:00.000000000Z"),
        (NOW_NS, b"2026-01-31T09:08:07.000000065Z"),
        (951_782_400_999_999_999, b"2000-02-29T00:00:00.999999999Z"),
    ],
)
def test_a_timestamp_is_utc_with_nine_digits(now_ns: int, text: bytes) -> None:
    assert render_timestamp(now_ns) == text


LONG = b"x" * ENTRY_LIMIT


@pytest.mark.parametrize(
    ("data", "entries", "rest"),
    [
        (b"", [], b""),
        (b"a", [], b"a"),
        (b"a\n", [b"F a"], b""),
        (b"\n", [b"F "], b""),
        (b"\n\n", [b"F ", b"F "], b""),
        (b"a\n\nb\nc", [b"F a", b"F ", b"F b"], b"c"),
        (b"a\r\n\0\xff\n", [b"F a\r", b"F \0\xff"], b""),
        (LONG, [], LONG),
        (LONG + b"\n", [b"F " + LONG], b""),
        (LONG + b"y", [b"P " + LONG], b"y"),
        (LONG + b"y\nz", [b"P " + LONG, b"F y"], b"z"),
        (b"a\n" + LONG + b"\nb\n", [b"F a", b"F " + LONG, b"F b"], b""),
        (2 * LONG + b"\n", [b"P " + LONG, b"F " + LONG], b""),
        (2 * LONG, [b"P " + LONG], LONG),
    ],
)
def test_whole_lines_and_long_pieces_become_entries(
    data: bytes, entries: list[bytes], rest: bytes
) -> None:
    log, length = render_entries(data, b"stdout", NOW_NS)
    assert log == b"".join(HEAD + entry + b"\n" for entry in entries)
    assert data[length:] == rest


def test_an_unfinished_end_becomes_a_piece() -> None:
    assert render_all(b"a\nb", b"stdout", NOW_NS) == HEAD + b"F a\n" + HEAD + b"P b\n"
    assert render_all(b"a\n", b"stdout", NOW_NS) == HEAD + b"F a\n"
    assert render_all(b"", b"stdout", NOW_NS) == b""


_words = st.sampled_from([b"\n", b"a", b"\r", b" F ", LONG[:-1], LONG, 3 * LONG])


@given(st.lists(_words | st.binary(max_size=50), max_size=20), st.integers(1, 1 << 17))
def test_joined_entries_are_the_input_however_it_arrives(words: list[bytes], step: int) -> None:
    data = b"".join(words)
    log, rest = b"", b""
    for start in range(0, len(data), step):
        rest += data[start : start + step]
        entries, length = render_entries(rest, b"stdout", NOW_NS)
        log, rest = log + entries, rest[length:]
        assert len(rest) <= ENTRY_LIMIT
        assert b"\n" not in rest
    log += render_all(rest, b"stdout", NOW_NS)
    assert join_entries(log) == data
    assert all(len(line) <= len(HEAD) + 2 + ENTRY_LIMIT for line in log.splitlines())


@given(st.lists(_words | st.binary(max_size=50), max_size=20))
def test_a_line_is_cut_at_the_same_places_however_it_arrives(words: list[bytes]) -> None:
    data = b"".join(words)
    rest, log = b"", b""
    for word in words:
        entries, length = render_entries(rest + word, b"stdout", NOW_NS)
        log, rest = log + entries, (rest + word)[length:]
    assert render_entries(data, b"stdout", NOW_NS) == (log, len(data) - len(rest))


def test_a_new_file_is_made_with_mode_0640(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        LogFile(str(tmp_path / "log")).close()
    finally:
        os.umask(old)
    assert (tmp_path / "log").stat().st_mode & 0o7777 == 0o640


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"", b""),
        (b"a\nb\n", b"a\nb\n"),
        (b"a\nb", b"a\n"),
        (b"torn first entry", b""),
        (b"a\n" + LONG, b"a\n"),
        (b"not a log" * 9999, b"not a log" * 9999),
    ],
    ids=["empty", "whole", "torn", "torn first", "torn long", "foreign"],
)
def test_opening_cuts_off_an_entry_that_a_killed_writer_left(
    tmp_path: Path, before: bytes, after: bytes
) -> None:
    path = tmp_path / "log"
    path.write_bytes(before)
    log = LogFile(str(path))
    log.append(b"c\n")
    log.close()
    assert path.read_bytes() == after + b"c\n"


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"secret")
    (tmp_path / "log").symlink_to("target")
    log = LogFile(str(tmp_path / "log"))
    assert log.reopen() == errno.ELOOP
    log.append(b"a\nb\n")
    assert log.dropped == 2
    assert (tmp_path / "target").read_bytes() == b"secret"


def test_lost_entries_are_told_once_a_minute(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = LogFile(str(tmp_path / "folder" / "log"))
    for _ in range(3):
        log.append(b"lost\n")
    told = f"log {tmp_path}/folder/log: 1 entries are lost: {os.strerror(errno.EBADF)}\n"
    assert capsys.readouterr().err == told


def test_a_fifo_as_the_log_blocks_neither_open_nor_write(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log")
    log = LogFile(str(tmp_path / "log"))
    for _ in range(40):
        log.append(b"x" * 4095 + b"\n")
    assert log.dropped == 24
    log.close()


def test_a_log_whose_folder_appears_later_is_written_then(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path / "folder" / "log"))
    log.append(b"lost\n")
    (tmp_path / "folder").mkdir()
    log.append(b"kept\n")
    log.close()
    assert log.dropped == 1
    assert (tmp_path / "folder" / "log").read_bytes() == b"kept\n"


def test_an_empty_path_discards(tmp_path: Path) -> None:
    log = LogFile("")
    log.append(b"a\n")
    assert (log.reopen(), log.dropped) == (0, 0)


def test_reopening_goes_on_in_a_new_file_after_a_rename(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = LogFile(str(path))
    log.append(b"a\n")
    path.rename(tmp_path / "old")
    log.append(b"b\n")
    assert log.reopen() == 0
    log.append(b"c\n")
    log.close()
    assert (tmp_path / "old").read_bytes() == b"a\nb\n"
    assert path.read_bytes() == b"c\n"


def test_a_failed_reopen_keeps_the_old_file(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    log = LogFile(str(folder / "log"))
    folder.rename(tmp_path / "moved")
    assert log.reopen() == errno.ENOENT
    log.append(b"a\n")
    log.close()
    assert (tmp_path / "moved" / "log").read_bytes() == b"a\n"


def test_a_write_that_does_not_fit_leaves_whole_entries_only(tmp_path: Path) -> None:
    path = tmp_path / "log"

    def write_beyond_limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
        log = LogFile(str(path))
        log.append(b"one\ntwo\nthree\nfour\n")
        assert log.dropped == 2
        log.append(b"long enough\n")
        assert log.dropped == 3
        log.append(b"6\n")
        assert log.dropped == 3

    _, status = os.waitpid(fork(write_beyond_limit), 0)
    assert status == 0
    assert path.read_bytes() == b"one\ntwo\n6\n"
