# SPDX-License-Identifier: Apache-2.0
"""What containers of a pod share with each other, and with the node if asked to."""

import os
import socket

import pytest

from pycri.cri.api import runtime_v1_pb2 as cri
from tests.world.daemon import Node, wait_until
from tests.world.images import Images

SLEEP = ["sleep", "600"]


def namespace(node: Node, container: str, kind: str) -> str:
    return os.readlink(f"/proc/{node.pid(container)}/ns/{kind}")


def two(node: Node, images: Images, **namespaces: int) -> tuple[str, str]:
    pod = node.run_pod("two", namespaces=namespaces)
    first = node.run_container(pod, images["busybox"], name="a", command=SLEEP)
    return first, node.run_container(pod, images["busybox"], name="b", command=SLEEP)


def test_containers_share_network_ipc_and_names_and_nothing_else(
    node: Node, images: Images
) -> None:
    first, second = two(node, images)
    for kind, shared in {
        "net": True,
        "ipc": True,
        "uts": True,
        "pid": False,
        "mnt": False,
    }.items():
        own = namespace(node, first, kind)
        assert (own == namespace(node, second, kind)) is shared, kind
        assert own != os.readlink(f"/proc/self/ns/{kind}"), kind


@pytest.mark.parametrize(("option", "kind"), [("network", "net"), ("pid", "pid"), ("ipc", "ipc")])
def test_a_namespace_of_the_node_is_joined_when_asked(
    option: str, kind: str, node: Node, images: Images
) -> None:
    first, _ = two(node, images, **{option: cri.NODE})
    for each in ("net", "pid", "ipc"):
        is_host = namespace(node, first, each) == os.readlink(f"/proc/self/ns/{each}")
        assert is_host is (each == kind), each


def test_a_pod_on_the_node_s_network_has_its_name_and_no_address(
    node: Node, images: Images
) -> None:
    pod = node.run_pod("host", namespaces={"network": cri.NODE}, hostname="")
    assert node.pod_ip(pod) == ""
    container = node.run_container(pod, images["busybox"], command=SLEEP)
    assert node.shell(container, "hostname") == f"{socket.gethostname()}\n"
    links = {name for _, name in socket.if_nameindex()}
    assert set(node.shell(container, "ls /sys/class/net").split()) == links


def test_a_shared_pid_namespace_has_an_init_that_reaps(node: Node, images: Images) -> None:
    first, second = two(node, images, pid=cri.POD)
    assert namespace(node, first, "pid") == namespace(node, second, "pid")
    assert node.shell(first, "ps -o pid,args").count("sleep 600") == 2
    assert node.shell(first, "echo $PPID").strip() == "0"
    node.shell(first, "for n in 1 2 3 4 5; do (sleep 0.05 &); done")

    def reaped() -> bool:
        states = node.shell(second, "grep -h ^State: /proc/[0-9]*/status 2>/dev/null; true")
        names = node.shell(second, "ps -o args")
        return "Z" not in states and "sleep 0.05" not in names

    wait_until(reaped, what="no zombie is left")
    node.stop_container(first)
    assert node.status(second).state == cri.CONTAINER_RUNNING


def test_stopping_one_of_a_shared_pid_namespace_ends_all_of_its_own(
    node: Node, images: Images
) -> None:
    pod = node.run_pod("shared", namespaces={"pid": cri.POD})
    script = "setsid sleep 615 & exec sleep 616"
    first = node.run_container(pod, images["busybox"], name="a", command=script)
    second = node.run_container(pod, images["busybox"], name="b", command=SLEEP)
    wait_until(lambda: "sleep 615" in node.shell(second, "ps -o args"), what="both run")
    node.stop_container(first)
    wait_until(lambda: "sleep 61" not in node.shell(second, "ps -o args"), what="both ended")


def test_a_container_can_join_another_s_pid_namespace(node: Node, images: Images) -> None:
    pod = node.run_pod("target")
    target = node.run_container(pod, images["busybox"], name="a", command=SLEEP)
    debugger = node.run_container(
        pod,
        images["busybox"],
        name="b",
        command=SLEEP,
        security={"namespace_options": {"pid": cri.TARGET, "target_id": target}},
    )
    assert namespace(node, target, "pid") == namespace(node, debugger, "pid")
    assert namespace(node, target, "mnt") != namespace(node, debugger, "mnt")
    node.stop_container(debugger)
    assert node.status(target).state == cri.CONTAINER_RUNNING


def test_the_pod_s_name_and_files_are_in_every_container(node: Node, images: Images) -> None:
    dns = {"servers": ["192.0.2.53"], "searches": ["a.test", "b.test"], "options": ["ndots:3"]}
    pod = node.run_pod("named", hostname="a-name", dns_config=dns)
    container = node.run_container(pod, images["busybox"], command=SLEEP)
    assert node.shell(container, "hostname; cat /etc/hostname") == "a-name\na-name\n"
    lines = node.shell(container, "cat /etc/resolv.conf").splitlines()
    assert sorted(lines) == ["nameserver 192.0.2.53", "options ndots:3", "search a.test b.test"]
    hosts = [line.split() for line in node.shell(container, "cat /etc/hosts").splitlines()]
    assert any("localhost" in words for words in hosts)


def test_resolv_conf_is_the_node_s_when_nothing_is_asked(node: Node, images: Images) -> None:
    pod = node.run_pod("resolver")
    output = node.run_to_end(pod, images["busybox"], command=["cat", "/etc/resolv.conf"])
    with open("/etc/resolv.conf") as own:
        assert output == own.read()


def test_a_mount_of_the_request_wins_over_the_pod_s_file(node: Node, images: Images) -> None:
    hosts = node.folder / "hosts"
    hosts.write_text("192.0.2.1 given\n")
    mounts = [{"host_path": str(hosts), "container_path": "/etc/hosts"}]
    pod = node.run_pod("hosts")
    output = node.run_to_end(pod, images["busybox"], command=["cat", "/etc/hosts"], mounts=mounts)
    assert output == "192.0.2.1 given\n"


def test_sysctls_are_the_pod_s_alone(node: Node, images: Images) -> None:
    sysctls = {"net.ipv4.ip_unprivileged_port_start": "81", "kernel.shm_rmid_forced": "1"}
    with open("/proc/sys/kernel/shm_rmid_forced") as own:
        before = own.read()
    pod = node.run_pod("sysctls", linux={"sysctls": sysctls})
    script = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced"
    assert node.run_to_end(pod, images["busybox"], command=script) == "81\n1\n"
    with open("/proc/sys/kernel/shm_rmid_forced") as own:
        assert own.read() == before


def test_shared_memory_is_the_pod_s(node: Node, images: Images) -> None:
    first, second = two(node, images)
    node.shell(first, "echo shared > /dev/shm/file")
    assert node.shell(second, "cat /dev/shm/file") == "shared\n"
    size = node.shell(second, "df -k /dev/shm | tail -1").split()[1]
    assert size == "65536"
