# SPDX-License-Identifier: Apache-2.0
"""What containers write, in files of the CRI's format."""

import itertools
import os
import time
from datetime import datetime
from pathlib import Path

import grpc

from pycri.cri.api import runtime_v1_pb2 as cri
from tests.world.daemon import LogLine, Node, parse_log, refused
from tests.world.images import Images


def run(node: Node, image: str, script: str) -> list[LogLine]:
    container = node.run_container(node.run_pod("log"), image, command=script)
    node.wait_exited(container)
    return node.log(container)


def reopen(node: Node, container: str) -> None:
    node.runtime.ReopenContainerLog(
        cri.ReopenContainerLogRequest(container_id=container), timeout=30
    )


def test_lines_have_time_stream_and_tag(node: Node, images: Images) -> None:
    began = time.time()
    lines = run(node, images["busybox"], "echo one; echo two >&2; echo; echo ' three '")
    contents = {
        stream: [line.content for line in lines if line.stream == stream]
        for stream in ("stdout", "stderr")
    }
    assert contents == {"stdout": ["one", "", " three "], "stderr": ["two"]}
    assert {line.tag for line in lines} == {"F"}
    for line in lines:
        assert line.time.endswith("Z")
        written = datetime.fromisoformat(line.time[:26] + "+00:00").timestamp()
        assert began - 1 < written < time.time() + 1


def test_a_long_line_is_pieces_and_an_end(node: Node, images: Images) -> None:
    lines = run(node, images["busybox"], "head -c 50000 /dev/zero | tr '\\0' x; echo; echo next")
    assert [line.tag for line in lines] == ["P", "P", "P", "F", "F"]
    assert "".join(line.content for line in lines[:4]) == "x" * 50_000
    assert lines[4].content == "next"


def test_a_last_line_without_newline_is_a_piece(node: Node, images: Images) -> None:
    lines = run(node, images["busybox"], "printf 'whole\\nunfinished'")
    assert [(line.tag, line.content) for line in lines] == [("F", "whole"), ("P", "unfinished")]


def test_the_log_is_whole_when_the_status_says_exited(node: Node, images: Images) -> None:
    lines = run(node, images["busybox"], "seq 1 100000")
    assert [line.content for line in lines] == [str(number) for number in range(1, 100_001)]


def test_a_terminal_is_one_stream_with_carriage_returns(node: Node, images: Images) -> None:
    pod = node.run_pod("tty")
    container = node.run_container(
        pod, images["busybox"], command="tty; echo err >&2; echo $TERM", tty=True
    )
    node.wait_exited(container)
    lines = node.log(container)
    assert {line.stream for line in lines} == {"stdout"}
    assert [line.content.rstrip("\r") for line in lines] == ["/dev/pts/0", "err", "xterm"]


def test_the_file_is_there_when_the_container_has_started(node: Node, images: Images) -> None:
    pod = node.run_pod("there")
    container = node.run_container(pod, images["busybox"], command=["sleep", "60"])
    path = Path(node.status(container).log_path)
    assert path.stat().st_mode & 0o777 in (0o600, 0o640)
    assert path.read_bytes() == b""


def test_no_log_path_means_no_log(node: Node, images: Images) -> None:
    pod = node.run_pod("silent", log_directory="")
    container = node.run_container(pod, images["busybox"], command="seq 1 100000", log_path="")
    assert node.wait_exited(container).exit_code == 0
    assert node.status(container).log_path == ""


def test_a_reopened_log_has_every_line_in_one_file_or_the_other(node: Node, images: Images) -> None:
    script = "i=0; while [ ! -e /tmp/stop ]; do echo $i; i=$((i+1)); done; echo end"
    container = node.run_container(node.run_pod("rotate"), images["busybox"], command=script)
    path = Path(node.status(container).log_path)
    rotated = [path.with_suffix(f".{number}") for number in range(5)]
    for target in rotated:
        seen = len(node.wait_log(container, "", count=100))
        assert seen >= 100
        os.rename(path, target)
        reopen(node, container)
        assert path.exists()
    node.touch(container, "/tmp/stop")
    node.wait_exited(container)
    lines = itertools.chain.from_iterable(parse_log(file.read_text()) for file in (*rotated, path))
    *numbers, end = [line.content for line in lines]
    assert numbers == [str(number) for number in range(len(numbers))]
    assert end == "end"


def test_reopening_the_log_of_what_does_not_run_makes_no_file(node: Node, images: Images) -> None:
    container = node.run_container(node.run_pod("ended"), images["busybox"], command=["true"])
    node.wait_exited(container)
    path = Path(node.status(container).log_path)
    path.unlink()
    with refused(grpc.StatusCode.FAILED_PRECONDITION, container):
        reopen(node, container)
    assert not path.exists()
    with refused(grpc.StatusCode.NOT_FOUND):
        reopen(node, "f" * 64)


def test_logs_stay_when_the_container_is_removed(node: Node, images: Images) -> None:
    container = node.run_container(node.run_pod("kept"), images["busybox"], command="echo kept")
    node.wait_exited(container)
    path = Path(node.status(container).log_path)
    node.remove_container(container)
    assert "kept" in path.read_text()
