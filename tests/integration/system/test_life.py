# SPDX-License-Identifier: Apache-2.0
"""How containers end and what is left: OOM kills, signals, orphans, restarts, full disks."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from pycri.cri.api import runtime_v1_pb2 as cri
from tests.integration.system.test_resources import GREEDY, group_files, made_group
from tests.world.daemon import Node, is_running, parse_log, refused, wait_until
from tests.world.images import Images

SYSTEMD = os.path.isdir("/run/systemd/system")
MEBIBYTE = 1 << 20
LIMITED = {"memory_limit_in_bytes": 32 * MEBIBYTE}
CHILD_KILLED = f"sh -c '{GREEDY}'; echo child ended with $?"
PID_MODES = pytest.mark.parametrize(
    "pid", [cri.POD, cri.CONTAINER, cri.NODE], ids=["pod's", "own", "node's"]
)


def pod_with_pid_mode(node: Node, mode: cri.NamespaceMode.ValueType) -> str:
    context = {"namespace_options": {"pid": mode}}
    return node.run_pod("life", linux={"security_context": context})


def ended(node: Node, container: str) -> tuple[int, str]:
    status = node.wait_exited(container, timeout_s=60)
    return status.exit_code, status.reason


@pytest.mark.parametrize(
    ("then", "expected"),
    [("exit 3", (3, "OOMKilled")), ("exit 0", (0, "Completed")), ("exit 137", (137, "OOMKilled"))],
    ids=["failed", "succeeded", "passed on"],
)
def test_a_child_s_oom_kill_is_the_reason_if_the_container_then_fails(
    then: str, expected: tuple[int, str], node: Node, images: Images
) -> None:
    container = node.run_container(
        node.run_pod("life"),
        images["busybox"],
        command=f"{CHILD_KILLED}; {then}",
        resources=LIMITED,
    )
    assert ended(node, container) == expected
    assert node.output(container) == "child ended with 137\n"


@pytest.mark.parametrize("grace", [0, 1])
def test_a_stop_long_after_a_child_s_oom_kill_is_no_oom_kill(
    grace: int, node: Node, images: Images
) -> None:
    script = f"{CHILD_KILLED}; trap '' TERM; while :; do sleep 0.05; done"
    container = node.run_container(
        node.run_pod("life"), images["busybox"], command=script, resources=LIMITED
    )
    node.wait_log(container, "child ended with 137")
    node.stop_container(container, timeout=grace)
    assert ended(node, container) == (137, "Error")


def test_an_oom_kill_while_a_stop_waits_is_one(node: Node, images: Images) -> None:
    script = f"trap '{GREEDY}' TERM; echo ready; while :; do sleep 0.05; done"
    container = node.run_container(
        node.run_pod("life"), images["busybox"], command=script, resources=LIMITED
    )
    node.wait_log(container, "ready")
    node.stop_container(container, timeout=60)
    assert ended(node, container) == (137, "OOMKilled")


@contextmanager
def pod_group(node: Node, limit: int) -> Iterator[str]:
    """Make a pod's group with a memory limit, as the kubelet does."""
    path = f"/{node.name}-kubelet"
    with made_group(path):
        for name in ("memory.limit_in_bytes", "memory.max"):
            for root in ("/sys/fs/cgroup/memory", "/sys/fs/cgroup"):
                if (file := Path(f"{root}{path}/{name}")).exists():
                    file.write_text(str(limit))
        yield path
        node.clear()


def test_an_oom_kill_for_the_pod_s_limit_is_its_container_s(node: Node, images: Images) -> None:
    with pod_group(node, 32 * MEBIBYTE) as parent:
        pod = node.run_pod("life", linux={"cgroup_parent": parent})
        quiet = node.run_container(pod, images["busybox"], name="quiet", command=["sleep", "600"])
        greedy = node.run_container(pod, images["busybox"], name="greedy", command=GREEDY)
        assert ended(node, greedy) == (137, "OOMKilled")
        assert node.status(quiet).state == cri.CONTAINER_RUNNING
        node.stop_container(quiet)
        assert ended(node, quiet) == (137, "Error")


@pytest.mark.skipif(SYSTEMD, reason="systemd runs here: its slices are its own")
def test_a_slice_is_made_where_systemd_would_have_it(node: Node, images: Images) -> None:
    outer = f"/{node.name}.slice"
    inner = f"{outer}/{node.name}-burstable.slice"
    with made_group(outer), made_group(inner):
        pod = node.run_pod("life", linux={"cgroup_parent": f"{node.name}-burstable.slice"})
        container = node.run_container(pod, images["busybox"], command=["sleep", "600"])
        groups = Path(f"/proc/{node.pid(container)}/cgroup").read_text()
        assert f":{inner}/{container}" in groups
        node.clear()


@pytest.mark.skipif(not SYSTEMD, reason="no systemd runs here: a slice is but a name")
def test_a_slice_is_systemd_s_to_make(node: Node) -> None:
    with refused(grpc.StatusCode.UNIMPLEMENTED, "cgroup_parent", "cgroupfs"):
        node.run_pod("life", linux={"cgroup_parent": "kubepods-burstable.slice"})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1])
def test_a_signal_s_number_and_128_is_the_exit_code(
    number: signal.Signals, node: Node, images: Images
) -> None:
    # In the pod's pid namespace it is not process 1, which the kernel spares its own signals.
    pod = pod_with_pid_mode(node, cri.POD)
    script = f"kill -{number.value} $$; sleep 60"
    container = node.run_container(pod, images["busybox"], command=script)
    assert ended(node, container) == (128 + number, "Error")


def test_a_kill_from_the_host_is_an_error(node: Node, images: Images) -> None:
    container = node.run_container(
        node.run_pod("life"), images["busybox"], command=["sleep", "600"], resources=LIMITED
    )
    os.kill(node.pid(container), signal.SIGKILL)
    assert ended(node, container) == (137, "Error")


def test_a_restart_is_another_attempt_beside_the_first(node: Node, images: Images) -> None:
    pod = node.run_pod("life")
    ids = []
    for attempt in range(3):
        config = node.container_config(
            "main",
            images["busybox"],
            command=f"echo attempt {attempt}; exit {attempt}",
            metadata={"name": "main", "attempt": attempt},
            log_path=f"main/{attempt}.log",
        )
        ids.append(node.create_config(pod, config))
        node.start_container(ids[-1])
        node.wait_exited(ids[-1])
    listed = node.runtime.ListContainers(cri.ListContainersRequest()).containers
    assert {item.id: item.metadata.attempt for item in listed} == {
        container: attempt for attempt, container in enumerate(ids)
    }
    for attempt, container in enumerate(ids):
        assert node.status(container).exit_code == attempt
        assert node.output(container) == f"attempt {attempt}\n"


def test_the_pod_s_init_reaps_orphans(node: Node, images: Images) -> None:
    pod = pod_with_pid_mode(node, cri.POD)
    orphans = "for i in 1 2 3 4 5 6 7 8; do sh -c 'sleep 0.1 & sleep 0.1 &'; done"
    container = node.run_container(
        pod, images["busybox"], command=f"{orphans}; echo ready; exec sleep 600"
    )
    node.wait_log(container, "ready")
    alone = "ls -d /proc/[0-9]* | wc -l"

    def processes() -> int:
        # The init, the sleep, and of this look: the shell, ls and wc.
        return int(node.shell(container, alone))

    wait_until(lambda: processes() <= 5, what="orphans are gone, not only dead")
    assert "Z (zombie)" not in node.shell(container, "cat /proc/[0-9]*/status 2>/dev/null; true")


DAEMONS = (
    "for i in 1 2 3; do sh -c 'setsid sleep 600 & setsid sh -c \"sleep 600 & sleep 600\" &'; done"
)


def processes_in(container_pid: int) -> list[int]:
    folder = group_files(container_pid, "memory")
    return [int(pid) for pid in (folder / "cgroup.procs").read_text().split()]


@PID_MODES
@pytest.mark.parametrize("last", ["exec sleep 600", "read line < /gate"], ids=["stopped", "ended"])
def test_nothing_is_left_of_a_container_that_double_forks(
    last: str, pid: cri.NamespaceMode.ValueType, node: Node, images: Images
) -> None:
    pod = pod_with_pid_mode(node, pid)
    container = node.run_container(
        pod, images["busybox"], command=f"mkfifo /gate; {DAEMONS}; echo ready; {last}"
    )
    node.wait_log(container, "ready")
    main = node.pid(container)
    left = wait_until(
        lambda: pids if len(pids := processes_in(main)) >= 10 else None, what="all daemons run"
    )
    if "gate" in last:
        # The container may end, and take this with it, before this has.
        node.exec(container, "sh", "-c", "echo go > /gate")
        assert node.wait_exited(container).exit_code == 0
    else:
        node.stop_container(container, timeout=0)
    assert [process for process in left if is_running(process)] == []


def test_a_container_that_ends_before_its_start_returns_has_started(
    node: Node, images: Images
) -> None:
    pod = node.run_pod("life")
    for code in range(12):
        container = node.create_container(
            pod, images["busybox"], name=f"c{code}", command=["sh", "-c", f"exit {code}"]
        )
        node.start_container(container)
        status = node.wait_exited(container)
        assert (status.exit_code, status.reason) == (code, "Error" if code else "Completed")
        assert 0 < status.started_at <= status.finished_at


@contextmanager
def small_log_disk(folder: Path, size: str) -> Iterator[None]:
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_container_that_fills_its_log_s_disk_goes_on(own_node: Node, images: Images) -> None:
    node = own_node
    folder = node.folder / "small"
    with small_log_disk(folder, "256k"):
        pod = node.run_pod("life", log_directory=str(folder))
        script = (
            "yes 0123456789012345678901234567890123456789 | head -n 100000; echo done > /done;"
            "until test -e /more; do sleep 0.05; done; echo after; sleep 600"
        )
        container = node.run_container(pod, images["busybox"], command=script)
        wait_until(
            lambda: node.exec(container, "test", "-e", "/done").exit_code == 0,
            what="the container has written all",
        )
        log = Path(node.status(container).log_path)
        assert 100_000 < log.stat().st_size <= 256 << 10
        assert {line.content for line in parse_log(log.read_text())} == {"0123456789" * 4}
        # The kubelet rotates: with room on the disk the log goes on.
        log.rename(f"{log}.1")
        Path(f"{log}.1").unlink()
        node.runtime.ReopenContainerLog(cri.ReopenContainerLogRequest(container_id=container))
        node.shell(container, "touch /more")
        node.wait_log(container, "after")
        node.stop_container(container)
        node.clear()


STUBBORN: dict[str, Any] = {"command": "trap '' TERM; echo ready; while :; do sleep 0.05; done"}


@PID_MODES
def test_a_container_that_ignores_the_signal_is_killed(
    pid: cri.NamespaceMode.ValueType, node: Node, images: Images
) -> None:
    container = node.run_container(pod_with_pid_mode(node, pid), images["busybox"], **STUBBORN)
    node.wait_log(container, "ready")
    node.stop_container(container, timeout=1)
    assert ended(node, container) == (137, "Error")
