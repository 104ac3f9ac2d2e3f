# SPDX-License-Identifier: Apache-2.0
"""ExecSync: output, exit codes, limits, and what a time-out ends."""

import time
from collections.abc import Iterator

import grpc
import pytest

from pycri.cri.api import runtime_v1_pb2 as cri
from tests.world.daemon import Node, refused, wait_until
from tests.world.images import Images

CAP = 16 << 20


@pytest.fixture
def container(node: Node, images: Images) -> Iterator[str]:
    """A running container."""
    pod = node.run_pod("exec")
    yield node.run_container(
        pod,
        images["busybox"],
        command=["sleep", "600"],
        env={"COLOUR": "green"},
        working_dir="/home/kim",
    )


def test_output_and_exit_code_come_back(node: Node, container: str) -> None:
    done = node.exec(container, "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (done.stdout, done.stderr, done.exit_code) == (b"out\n", b"err\n", 3)


def test_bytes_of_any_value_come_back(node: Node, container: str) -> None:
    done = node.exec(container, "printf", r"\000\377\n\r")
    assert done.stdout == b"\x00\xff\n\r"


def test_it_runs_with_the_container_s_environment_and_folder(node: Node, container: str) -> None:
    assert node.shell(container, "echo $COLOUR $HOSTNAME $PWD") == "green exec /home/kim\n"


def test_it_is_in_every_namespace_of_the_container(node: Node, container: str) -> None:
    kinds = "cgroup ipc mnt net pid uts"
    script = f"for kind in {kinds}; do readlink /proc/$0/ns/$kind; done"
    own = node.exec(container, "sh", "-c", script, "self").stdout
    assert own == node.exec(container, "sh", "-c", script, "1").stdout
    assert own.count(b"\n") == 6


def test_it_has_the_rights_of_the_container_and_no_more(node: Node, container: str) -> None:
    script = "grep -E '^(Cap|NoNewPrivs|Seccomp)' /proc/{}/status"
    own = node.shell(container, script.format("self"))
    assert own == node.shell(container, script.format("1"))
    assert "CapEff" in own


def test_it_has_no_descriptors_but_its_three(node: Node, container: str) -> None:
    # The fourth is ls's own, of the folder it reads.
    assert node.shell(container, "ls /proc/self/fd").split() == ["0", "1", "2", "3"]


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_each_stream_is_cut_at_sixteen_mebibytes(stream: str, node: Node, container: str) -> None:
    redirect = "" if stream == "stdout" else ">&2"
    done = node.exec(
        container, "sh", "-c", f"head -c 20000000 /dev/zero | tr '\\0' x {redirect}; exit 4"
    )
    assert len(getattr(done, stream)) == CAP
    assert done.exit_code == 4


def test_a_time_out_ends_everything_that_was_started(node: Node, container: str) -> None:
    script = "sleep 601 & setsid sleep 602 & (setsid sh -c 'sleep 603 & sleep 604' &) ; sleep 605"
    began = time.monotonic()
    with refused(grpc.StatusCode.DEADLINE_EXCEEDED):
        node.exec(container, "sh", "-c", script, timeout=1)
    assert 1 <= time.monotonic() - began < 10
    listed = node.shell(container, "ps -o args")
    assert "sleep 600" in listed
    assert [line for line in listed.splitlines() if "sleep 60" in line] == ["sleep 600"]


def test_a_child_left_behind_does_not_hold_the_call(node: Node, container: str) -> None:
    began = time.monotonic()
    done = node.exec(container, "sh", "-c", "sleep 610 & echo started", timeout=20)
    assert (done.stdout, done.exit_code) == (b"started\n", 0)
    assert time.monotonic() - began < 10


def test_what_is_left_behind_is_the_container_s_and_outlives_a_daemon(
    own_node: Node, images: Images
) -> None:
    pod = own_node.run_pod("left")
    container = own_node.run_container(pod, images["busybox"], command=["sleep", "600"])
    own_node.exec(container, "sh", "-c", "sleep 611 & (setsid sleep 612 &)")
    groups = own_node.shell(container, "for pid in $(pidof sleep); do cat /proc/$pid/cgroup; done")
    assert "exec-" not in groups
    own_node.kill("daemon")
    own_node.start()
    assert len(own_node.shell(container, "pidof sleep").split()) == 3


def test_a_command_that_does_not_exist_is_named(node: Node, container: str) -> None:
    try:
        done = node.exec(container, "no-such-command")
    except grpc.RpcError as error:
        assert "no-such-command" in str(error.details())
    else:
        assert done.exit_code == 127
        assert b"no-such-command" in done.stderr


def test_it_needs_a_running_container(node: Node, images: Images) -> None:
    pod = node.run_pod("ended")
    container = node.create_container(pod, images["busybox"], command=["true"])
    with refused(grpc.StatusCode.FAILED_PRECONDITION, container):
        node.exec(container, "true")
    node.start_container(container)
    node.wait_exited(container)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, container):
        node.exec(container, "true")
    with refused(grpc.StatusCode.NOT_FOUND):
        node.exec("f" * 64, "true")


def test_many_at_once_do_not_mix_their_output(node: Node, container: str) -> None:
    calls = {
        number: node.runtime.ExecSync.future(
            cri.ExecSyncRequest(container_id=container, cmd=["sh", "-c", f"seq {number} 2000"])
        )
        for number in range(20)
    }
    for number, call in calls.items():
        expected = "".join(f"{value}\n" for value in range(number, 2001))
        assert call.result(30).stdout.decode() == expected


def test_a_caller_that_hangs_up_at_any_moment_leaves_no_process(node: Node, container: str) -> None:
    request = cri.ExecSyncRequest(container_id=container, cmd=["sleep", "3600"])
    for delay in range(0, 40, 2):
        call = node.runtime.ExecSync.future(request)
        with pytest.raises(grpc.FutureTimeoutError):
            call.result(timeout=delay / 1000)
        call.cancel()  # type: ignore[no-untyped-call] # grpc-stubs

    def only_init() -> bool:
        return "sleep 3600" not in node.shell(container, "ps -o args")

    wait_until(only_init, what="the end of all commands")


def test_removals_at_once_all_succeed(node: Node, container: str) -> None:
    request = cri.RemoveContainerRequest(container_id=container)
    calls = [node.runtime.RemoveContainer.future(request) for _ in range(8)]
    for call in calls:
        call.result(timeout=30)
