# SPDX-License-Identifier: Apache-2.0
"""The first process of a shared PID namespace, as seen by a container that may trace it."""

from pathlib import Path

import pytest

from pycri.cri.api import runtime_v1_pb2 as cri
from tests.world.daemon import Node, wait_until
from tests.world.images import Images

SLEEP = ["sleep", "600"]
TRACER = {"capabilities": {"add_capabilities": ["SYS_PTRACE"]}}
ORPHANS = 20
PS = "ps -o stat,ppid,args"


@pytest.fixture
def tracer(node: Node, images: Images) -> str:
    """A container with CAP_SYS_PTRACE in a pod whose containers share a PID namespace."""
    pod = node.run_pod("shared", namespaces={"pid": cri.POD})
    return node.run_container(pod, images["busybox"], command=SLEEP, security=TRACER)


def init_status(node: Node, container: str) -> dict[str, str]:
    """Read /proc/1/status in a container."""
    lines = node.shell(container, "cat /proc/1/status").splitlines()
    return dict(line.split(":\t", 1) for line in lines)


def host_pid_of_init(node: Node) -> int:
    """Find the only pod's init among the spawner's children, as the host names it."""
    spawner = node.pid_of("spawner")
    children = Path(f"/proc/{spawner}/task/{spawner}/children").read_text().split()
    (pid,) = [
        int(child)
        for child in children
        if Path(f"/proc/{child}/cmdline").read_bytes() == b"pycri-pod-init\0"
    ]
    return pid


def test_its_root_has_nothing_of_the_host(node: Node, tracer: str) -> None:
    """A forked runtime there would lead every tracer to the host's files."""
    assert node.shell(tracer, "ls -A /proc/1/root/") == "root\n"
    assert node.shell(tracer, "ls -A /proc/1/cwd/") == "root\n"
    assert node.shell(tracer, "ls -A /proc/1/root/root/") == ""
    mounts = node.shell(tracer, "cat /proc/1/mountinfo").splitlines()
    assert len(mounts) == 1
    fields, _, source = mounts[0].partition(" - ")
    assert (fields.split()[4], source.split()[0]) == ("/", "tmpfs")


def test_its_descriptors_and_memory_hold_nothing_of_the_runtime(node: Node, tracer: str) -> None:
    assert node.shell(tracer, "ls -A /proc/1/fd/") == ""
    names = [
        line.split(maxsplit=5)[5:] for line in node.shell(tracer, "cat /proc/1/maps").splitlines()
    ]
    files = {name[0] for name in names if name and not name[0].startswith("[")}
    assert files == {"/memfd:pycri-pod-init (deleted)"}
    assert node.shell(tracer, "cat /proc/1/environ") == ""
    assert node.shell(tracer, "tr '\\0' ' ' < /proc/1/cmdline") == "pycri-pod-init "
    # Sealed, so nobody can make every later pod's init another program.
    done = node.exec(tracer, "sh", "-c", "echo x >> /proc/1/exe")
    assert done.exit_code != 0


def test_it_owns_nothing_and_can_do_nothing(node: Node, tracer: str) -> None:
    status = init_status(node, tracer)
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[kind], 16) == 0, kind
    assert status["Uid"].split() == status["Gid"].split() == ["65534"] * 4
    assert status["Groups"].split() == []
    assert status["NoNewPrivs"] == "1"
    assert status["Threads"] == "1"
    own = node.shell(tracer, "grep ^CapEff: /proc/self/status").split()[1]
    assert int(own, 16) >> 19 & 1 == 1, "the container has CAP_SYS_PTRACE, 19"


def test_orphans_leave_no_zombies(node: Node, images: Images) -> None:
    # A shell whose child forks and ends: the grandchild's parent becomes the namespace's first.
    script = f"for n in $(seq {ORPHANS}); do (sleep 0.5 & ); done; exec sleep 600"
    pod = node.run_pod("shared", namespaces={"pid": cri.POD})
    container = node.run_container(pod, images["busybox"], command=script)

    def of_init() -> list[str]:
        """The processes that the init is the parent of, as "STAT ARGS"."""
        rows = [row.split(None, 2) for row in node.shell(container, PS).splitlines()]
        return [f"{stat} {args}" for stat, parent, args in rows if parent == "1"]

    wait_until(lambda: len(of_init()) == ORPHANS, what="the orphans have a new parent")
    wait_until(lambda: of_init() == [], what="neither orphan nor zombie is left")
    assert node.status(container).state == cri.CONTAINER_RUNNING


def test_nobody_in_the_pod_can_end_it(node: Node, tracer: str) -> None:
    """The kernel keeps signals without a handler from it; its end would be that of the pod."""
    node.shell(tracer, "for s in TERM INT HUP USR1 SEGV CHLD KILL STOP; do kill -s $s 1; done")
    assert init_status(node, tracer)["State"].startswith("S")
    assert node.status(tracer).state == cri.CONTAINER_RUNNING


@pytest.mark.usefixtures("tracer")
def test_it_costs_a_few_pages(node: Node) -> None:
    pid = host_pid_of_init(node)
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    (pss_kb,) = [int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")]
    assert pss_kb <= 16
