# SPDX-License-Identifier: Apache-2.0
"""Pods with a user namespace of their own, seen from inside and from the host."""

import fcntl
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from pycri.cri.api import runtime_v1_pb2 as cri
from tests.world.daemon import Node, is_running, refused, wait_until
from tests.world.images import Images
from tests.world.oci import Layer, build_image
from tests.world.registry import Registry

SLEEP = ["sleep", "600"]
HOST_ID, LENGTH = 300_000, 65_536
MAPPING: dict[str, int] = {"host_id": HOST_ID, "container_id": 0, "length": LENGTH}
OWN: dict[str, Any] = {"mode": cri.POD, "uids": [MAPPING], "gids": [MAPPING]}
NS_GET_USERNS = 0xB701  # ioctl_nsfs(2)


def run_pod(node: Node, name: str = "mapped", **namespaces: Any) -> str:
    return node.run_pod(name, namespaces={"userns_options": OWN, **namespaces})


def owner_of(path: str) -> str:
    """Return the user namespace that owns the namespace at `path`, as its link says it."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        owner = fcntl.ioctl(fd, NS_GET_USERNS)
        try:
            return os.readlink(f"/proc/self/fd/{owner}")
        finally:
            os.close(owner)
    finally:
        os.close(fd)


def ids_of(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_uid, status.st_gid


def volume(node: Node, name: str) -> Path:
    folder = node.folder / name
    folder.mkdir()
    return folder


def mapped(host: Path, target: str, **fields: Any) -> dict[str, Any]:
    maps = {"uidMappings": [MAPPING], "gidMappings": [MAPPING]}
    return {"host_path": str(host), "container_path": target, **maps, **fields}


def test_ids_are_those_of_the_map_inside_and_on_the_host(node: Node, images: Images) -> None:
    pod = run_pod(node)
    container = node.run_container(pod, images["busybox"], command=SLEEP)
    for name in ("uid_map", "gid_map"):
        line = node.shell(container, f"cat /proc/self/{name}").split()
        assert line == ["0", str(HOST_ID), str(LENGTH)]
    status = Path(f"/proc/{node.pid(container)}/status").read_text().splitlines()
    ids = {line.split()[0]: line.split()[1:] for line in status}
    assert set(ids["Uid:"]) == set(ids["Gid:"]) == {str(HOST_ID)}
    assert ids["Groups:"] == [str(HOST_ID)]
    assert node.shell(container, "id -u; id -g") == "0\n0\n"


def test_namespaces_of_the_pod_belong_to_its_user_namespace(node: Node, images: Images) -> None:
    pod = run_pod(node)
    container = node.run_container(pod, images["busybox"], command=SLEEP)
    folder = f"/proc/{node.pid(container)}/ns"
    own = os.readlink(f"{folder}/user")
    assert own != os.readlink("/proc/self/ns/user")
    assert own == os.readlink(f"/proc/{node.pid(container)}/ns/user")
    for kind in ("net", "ipc", "uts", "mnt"):
        assert owner_of(f"{folder}/{kind}") == own, kind


def test_files_of_the_image_are_root_s_inside(node: Node, images: Images) -> None:
    container = node.run_container(run_pod(node), images["busybox"], command=SLEEP)
    paths = "/ /bin/sh /dev /dev/null /dev/pts/ptmx /dev/shm /dev/mqueue /etc/hosts"
    assert set(node.shell(container, f"stat -c %u:%g {paths}").split()) == {"0:0"}
    assert node.shell(container, "echo more >> /etc/hosts && tail -1 /etc/hosts") == "more\n"


def test_files_that_are_made_in_the_root_belong_to_the_mapped_user(
    node: Node, images: Images
) -> None:
    container = node.run_container(run_pod(node), images["busybox"], command=SLEEP)
    node.shell(container, "mkdir /made; touch /made/a /made/b; chown 5:6 /made/b; mv /made/a /c")
    upper = node.state_dir / "containers" / container / "upper"
    assert ids_of(upper / "made") == ids_of(upper / "c") == (HOST_ID, HOST_ID)
    assert ids_of(upper / "made" / "b") == (HOST_ID + 5, HOST_ID + 6)
    assert node.shell(container, "stat -c %u:%g /made/b") == "5:6\n"


def test_a_volume_that_is_mapped_keeps_its_owners_on_the_host(node: Node, images: Images) -> None:
    folder = volume(node, "mapped-volume")
    (folder / "old").write_text("old")
    os.chown(folder / "old", 7, 8)
    pod = run_pod(node)
    container = node.run_container(
        pod, images["busybox"], command=SLEEP, mounts=[mapped(folder, "/data")]
    )
    assert node.shell(container, "stat -c %u:%g /data /data/old") == "0:0\n7:8\n"
    node.shell(container, "touch /data/new; chown 9:10 /data/new; touch /data/root")
    assert ids_of(folder / "new") == (9, 10)
    assert ids_of(folder / "root") == (0, 0)


def test_a_volume_that_is_not_mapped_is_nobody_s(node: Node, images: Images) -> None:
    folder = volume(node, "plain-volume")
    pod = run_pod(node)
    mounts = [{"host_path": str(folder), "container_path": "/data"}]
    container = node.run_container(pod, images["busybox"], command=SLEEP, mounts=mounts)
    assert node.shell(container, "stat -c %u:%g /data") == "65534:65534\n"
    assert node.exec(container, "touch", "/data/file").exit_code != 0
    assert list(folder.iterdir()) == []


def test_a_mount_can_have_a_map_of_its_own(node: Node, images: Images) -> None:
    folder = volume(node, "other-volume")
    (folder / "file").write_text("")
    os.chown(folder / "file", 40, 41)
    lines = [{"host_id": HOST_ID + 70, "container_id": 40, "length": 2}]
    mount: dict[str, Any] = {"host_path": str(folder), "container_path": "/data"}
    mount |= {"uidMappings": lines, "gidMappings": lines}
    container = node.run_container(run_pod(node), images["busybox"], command=SLEEP, mounts=[mount])
    assert node.shell(container, "stat -c %u:%g /data/file") == "70:71\n"


def test_a_mapped_mount_needs_no_user_namespace(node: Node, images: Images) -> None:
    folder = volume(node, "host-volume")
    (folder / "file").write_text("")
    container = node.run_container(
        node.run_pod("plain"), images["busybox"], command=SLEEP, mounts=[mapped(folder, "/data")]
    )
    assert node.shell(container, "stat -c %u:%g /data/file") == f"{HOST_ID}:{HOST_ID}\n"


def test_a_file_system_that_cannot_be_mapped_is_named_by_its_field(
    node: Node, images: Images
) -> None:
    pod = run_pod(node)
    mounts = [mapped(volume(node, "good"), "/data"), mapped(Path("/proc"), "/other")]
    container = node.create_container(pod, images["busybox"], mounts=mounts)
    with refused(grpc.StatusCode.INTERNAL, "config.mounts[1].uidMappings", "id-mapped"):
        node.start_container(container)
    assert node.status(container).reason == "StartError"


def test_an_exec_is_in_the_user_namespace_too(node: Node, images: Images) -> None:
    pod = run_pod(node)
    container = node.run_container(
        pod,
        images["busybox"],
        command=SLEEP,
        security={
            "run_as_user": {"value": 1000},
            "run_as_group": {"value": 1000},
            "supplemental_groups": [2000],
            "supplemental_groups_policy": cri.Strict,
        },
    )
    script = "id -u; id -g; id -G; readlink /proc/self/ns/user; touch /tmp/file"
    uid, gid, groups, namespace, *_ = node.shell(container, script).splitlines()
    assert (uid, gid, groups) == ("1000", "1000", "1000 2000")
    assert namespace == os.readlink(f"/proc/{node.pid(container)}/ns/user")
    upper = node.state_dir / "containers" / container / "upper"
    assert ids_of(upper / "tmp" / "file") == (HOST_ID + 1000, HOST_ID + 1000)
    assert node.shell(container, "echo again > /dev/stdout") == "again\n"


def test_the_output_of_a_user_that_is_not_root_can_be_opened_again(
    node: Node, images: Images
) -> None:
    script = "echo out > /dev/stdout; echo err > /dev/stderr"
    output = node.run_to_end(
        run_pod(node),
        images["busybox"],
        command=script,
        security={"run_as_user": {"value": 1000}},
    )
    assert output == "out\n"


def test_a_terminal_belongs_to_the_user(node: Node, images: Images) -> None:
    output = node.run_to_end(
        run_pod(node),
        images["busybox"],
        command="stat -L -c %u:%g /dev/console /proc/self/fd/0; echo x > /dev/tty",
        tty=True,
        security={"run_as_user": {"value": 1000}},
    )
    assert output.split() == ["1000:5", "1000:5", "x"]


def test_every_capability_counts_inside_and_none_on_the_host(node: Node, images: Images) -> None:
    pod = run_pod(node)
    container = node.run_container(
        pod,
        images["busybox"],
        command=SLEEP,
        security={"capabilities": {"add_capabilities": ["ALL"]}},
    )
    node.shell(
        container, "ip link add dummy0 type dummy 2>/dev/null; ip addr add 192.0.2.7/32 dev lo"
    )
    node.shell(container, "mkdir /x && mount -t tmpfs none /x && hostname other")
    assert b"not permitted" in node.exec(container, "date", "-s", "2001-01-01").stderr
    for forbidden in (
        "mknod /null c 1 3",
        "echo 1 > /proc/sys/kernel/panic",
        "echo 3 > /proc/sys/vm/drop_caches",
        "chown 70000 /x",
        "umount /proc/sys",
        "mount -o remount,rw /sys",
    ):
        done = node.exec(container, "sh", "-c", forbidden)
        assert done.exit_code != 0, forbidden


def test_read_only_volumes_and_masks_cannot_be_undone_inside(node: Node, images: Images) -> None:
    folder = volume(node, "locked")
    pod = run_pod(node)
    container = node.run_container(
        pod,
        images["busybox"],
        command=SLEEP,
        mounts=[mapped(folder, "/data", readonly=True)],
        security={
            "capabilities": {"add_capabilities": ["ALL"]},
            "masked_paths": ["/proc/kcore", "/sys/firmware"],
            "readonly_paths": ["/proc/sys"],
        },
    )
    for attempt in (
        "mount -o remount,rw /data",
        "mount -o remount,rw,bind /data",
        "umount /data",
        "umount /sys/firmware",
        "umount /proc/kcore",
        "mount -o remount,rw,bind /proc/sys",
        "touch /data/file",
    ):
        assert node.exec(container, "sh", "-c", attempt).exit_code != 0, attempt
    assert list(folder.iterdir()) == []


def test_a_privileged_container_is_privileged_in_its_user_namespace_only(
    node: Node, images: Images
) -> None:
    pod = node.run_pod(
        "privileged", namespaces={"userns_options": OWN}, security={"privileged": True}
    )
    container = node.run_container(
        pod, images["busybox"], command=SLEEP, security={"privileged": True}
    )
    node.shell(container, "mkdir /x && mount -t tmpfs none /x && hostname other")
    devices = set(node.shell(container, "ls /dev").split())
    assert devices <= {
        *("null", "zero", "full", "random", "urandom", "tty", "fd", "stdin", "stdout", "stderr"),
        *("core", "ptmx", "pts", "shm", "mqueue"),
    }
    assert node.exec(container, "sh", "-c", "echo 1 > /proc/sys/kernel/panic").exit_code != 0


def test_pods_in_user_namespaces_reach_each_other(node: Node, images: Images) -> None:
    server = run_pod(node, "server")
    node.run_container(
        server,
        images["busybox"],
        command="while :; do echo hello | nc -l -p 80; done",
        security={"run_as_user": {"value": 1000}},
    )
    client = node.run_container(run_pod(node, "client"), images["busybox"], command=SLEEP)
    address = node.pod_ip(server)
    wait_until(
        lambda: "hello" in node.exec(client, "nc", "-w", "2", address, "80").stdout.decode(),
        what="an answer over TCP",
    )
    node.shell(client, f"ping -c 1 -W 2 {address}")
    with socket.create_connection((address, 80), 5) as connection:
        assert connection.recv(16) == b"hello\n"


def test_sysctls_and_shared_memory_are_the_pod_s(node: Node, images: Images) -> None:
    sysctls = {"net.ipv4.ip_unprivileged_port_start": "81", "kernel.shm_rmid_forced": "1"}
    config = node.pod_config(
        "sysctls", namespaces={"userns_options": OWN}, linux={"sysctls": sysctls}
    )
    pod = node.run_config(config)
    first = node.run_container(pod, images["busybox"], name="a", command=SLEEP)
    second = node.run_container(pod, images["busybox"], name="b", command=SLEEP)
    script = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced"
    assert node.shell(first, script) == "81\n1\n"
    node.shell(first, "echo shared > /dev/shm/file")
    assert node.shell(second, "cat /dev/shm/file; stat -c %u /dev/shm/file") == "shared\n0\n"


def test_a_shared_pid_namespace_has_its_init_in_the_user_namespace(
    node: Node, images: Images
) -> None:
    pod = run_pod(node, pid=cri.POD)
    first = node.run_container(pod, images["busybox"], name="a", command=SLEEP)
    second = node.run_container(pod, images["busybox"], name="b", command=SLEEP)
    assert node.shell(first, "ps -o args").count("sleep 600") == 2
    spawner = node.pid_of("spawner")
    children = Path(f"/proc/{spawner}/task/{spawner}/children").read_text().split()
    (init,) = [
        child
        for child in children
        if Path(f"/proc/{child}/cmdline").read_bytes() == b"pycri-pod-init\0"
    ]
    for kind in ("user", "net", "ipc", "uts", "pid"):
        own = os.readlink(f"/proc/{node.pid(first)}/ns/{kind}")
        assert os.readlink(f"/proc/{init}/ns/{kind}") == own, kind
    uids = node.shell(first, "grep ^Uid: /proc/1/status").split()[1:]
    assert uids == ["65534"] * 4
    assert f"Uid:\t{HOST_ID + 65534}\t" in Path(f"/proc/{init}/status").read_text()
    assert node.exec(first, "ls", "/proc/1/root/").exit_code != 0
    node.shell(first, "for n in 1 2 3; do (sleep 0.05 &); done")

    def reaped() -> bool:
        states = node.shell(second, "grep -h ^State: /proc/[0-9]*/status 2>/dev/null; true")
        return "Z" not in states and "sleep 0.05" not in node.shell(second, "ps -o args")

    wait_until(reaped, what="no zombie is left")


def test_the_node_s_network_can_be_had_in_a_user_namespace(node: Node, images: Images) -> None:
    config = node.pod_config(
        "hostnet", namespaces={"userns_options": OWN, "network": cri.NODE}, hostname=""
    )
    container = node.run_container(node.run_config(config), images["busybox"], command=SLEEP)
    links = {name for _, name in socket.if_nameindex()}
    assert set(node.shell(container, "ls /sys/class/net").split()) == links
    assert os.readlink(f"/proc/{node.pid(container)}/ns/net") == os.readlink("/proc/self/ns/net")
    assert node.exec(container, "ip", "link", "set", "lo", "down").exit_code != 0
    assert node.exec(container, "touch", "/sys/file").exit_code != 0


def test_pins_go_with_the_pod(node: Node, images: Images) -> None:
    pod = run_pod(node)
    pins = node.run_dir / "ns" / pod
    assert {path.name for path in pins.iterdir()} == {"user", "net", "ipc", "uts", "shm"}
    node.run_container(pod, images["busybox"], command=SLEEP)
    node.stop_pod(pod)
    assert not pins.exists()
    node.remove_pod(pod)
    assert list((node.state_dir / "containers").iterdir()) == []


def test_a_container_outlives_the_spawner_and_is_exec_ed_into_by_the_next(
    make_node: Callable[..., Node], images: Images
) -> None:
    node = make_node()
    pod = run_pod(node)
    container = node.run_container(pod, images["busybox"], command=SLEEP)
    pid = node.pid(container)
    node.kill("spawner", number=signal.SIGKILL)

    def answers() -> bool:
        try:
            return node.shell(container, "id -u") == "0\n"
        except grpc.RpcError:
            return False

    wait_until(answers, what="an exec works again")
    assert is_running(pid)
    again = node.run_container(pod, images["busybox"], name="again", command=SLEEP)
    assert node.shell(again, "cat /proc/self/uid_map").split()[1] == str(HOST_ID)


def test_the_status_shows_what_was_asked(node: Node, images: Images) -> None:
    pod = run_pod(node)
    options = node.pod_status(pod).linux.namespaces.options.userns_options
    assert options == cri.UserNamespace(**OWN)
    folder = volume(node, "shown")
    container = node.create_container(pod, images["busybox"], mounts=[mapped(folder, "/data")])
    (mount,) = node.status(container).mounts
    assert mount.uidMappings == mount.gidMappings == [cri.IDMapping(**MAPPING)]


def test_the_node_tells_that_it_can(node: Node) -> None:
    status = node.runtime.Status(cri.StatusRequest())
    assert all(handler.features.user_namespaces for handler in status.runtime_handlers)
    assert status.features.user_namespaces_host_network


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"mode": cri.POD, "uids": [MAPPING, MAPPING], "gids": [MAPPING]}, "uids"),
        ({"mode": cri.POD, "uids": [MAPPING | {"container_id": 1}], "gids": [MAPPING]}, "uids[0]"),
        ({"mode": cri.CONTAINER}, "mode"),
        ({"mode": cri.TARGET}, "mode"),
        ({"mode": cri.POD, "uids": [MAPPING]}, "gids"),
        ({"mode": cri.POD, "uids": [MAPPING], "gids": [MAPPING | {"length": 0}]}, "gids[0].length"),
        ({"mode": cri.NODE, "uids": [MAPPING]}, "uids"),
    ],
)
def test_a_map_that_makes_no_sense_is_refused(
    node: Node, options: dict[str, Any], field: str
) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT, f"userns_options.{field}"):
        node.run_pod("refused", namespaces={"userns_options": options})


def test_a_container_must_ask_for_the_user_namespace_of_its_pod(node: Node, images: Images) -> None:
    mapped_pod, plain_pod = run_pod(node), node.run_pod("plain")
    other = {"mode": cri.POD, "uids": [MAPPING | {"host_id": 9000}], "gids": [MAPPING]}
    for pod, options in (
        (mapped_pod, {"pid": cri.CONTAINER}),
        (mapped_pod, {"pid": cri.CONTAINER, "userns_options": {"mode": cri.NODE}}),
        (mapped_pod, {"pid": cri.CONTAINER, "userns_options": other}),
        (plain_pod, {"pid": cri.CONTAINER, "userns_options": OWN}),
    ):
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "namespace_options.userns_options"):
            node.create_container(
                pod, images["busybox"], command=SLEEP, security={"namespace_options": options}
            )


@pytest.mark.parametrize(
    ("security", "field"),
    [
        ({"run_as_user": {"value": LENGTH}}, "run_as_user"),
        ({"run_as_user": {"value": 0}, "run_as_group": {"value": LENGTH}}, "run_as_group"),
        ({"supplemental_groups": [LENGTH]}, "supplemental_groups"),
    ],
)
def test_an_id_that_is_not_mapped_is_refused(
    node: Node, images: Images, security: dict[str, Any], field: str
) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT, field, "user namespace"):
        node.create_container(run_pod(node), images["busybox"], command=SLEEP, security=security)


def test_an_image_is_a_volume_of_root_s_files(
    node: Node, images: Images, registry: Registry
) -> None:
    layer = Layer().directory("data").file("data/file", "data\n")
    registry.push(build_image([layer.tar()], {}), "tests/mapped-volume")
    image = registry.reference("tests/mapped-volume")
    node.pull(image)
    whole = {"container_path": "/whole", "image": {"image": image}, "readonly": True}
    part = whole | {"container_path": "/part", "image_sub_path": "data"}
    container = node.run_container(
        run_pod(node), images["busybox"], command=SLEEP, mounts=[whole, part]
    )
    script = "cat /part/file; stat -c %u:%g /whole/data/file /part"
    assert node.shell(container, script) == "data\n0:0\n0:0\n"
    assert node.exec(container, "touch", "/whole/new").exit_code != 0


def test_what_the_host_mounts_reaches_a_slave_and_nothing_comes_back(
    node: Node, images: Images
) -> None:
    folder = volume(node, "shared")
    run = subprocess.check_call
    run(["mount", "-t", "tmpfs", "-o", f"uid={HOST_ID}", "tests", folder])
    try:
        run(["mount", "--make-shared", folder])
        (folder / "below").mkdir()
        mount = {"host_path": str(folder), "container_path": "/data"}
        container = node.run_container(
            run_pod(node),
            images["busybox"],
            command=SLEEP,
            mounts=[mount | {"propagation": cri.PROPAGATION_HOST_TO_CONTAINER}],
            security={"capabilities": {"add_capabilities": ["SYS_ADMIN"]}},
        )
        run(["mount", "-t", "tmpfs", "tests", folder / "below"])
        (folder / "below" / "file").write_text("seen\n")
        assert node.shell(container, "cat /data/below/file") == "seen\n"
        node.shell(container, "mkdir /data/inside && mount -t tmpfs none /data/inside")
        assert not os.path.ismount(folder / "inside")
        node.stop_container(container)
    finally:
        run(["umount", "-R", folder])


def test_mounts_cannot_be_shared_with_the_host(node: Node, images: Images) -> None:
    mount = {"host_path": str(volume(node, "both-ways")), "container_path": "/data"}
    with refused(grpc.StatusCode.UNIMPLEMENTED, "config.mounts[0].propagation"):
        node.create_container(
            run_pod(node),
            images["busybox"],
            mounts=[mount | {"propagation": cri.PROPAGATION_BIDIRECTIONAL}],
        )


def test_a_filter_goes_with_a_user_namespace(node: Node, images: Images) -> None:
    profile = {"profile_type": cri.SecurityProfile.RuntimeDefault}
    container = node.run_container(
        run_pod(node),
        images["busybox"],
        command=SLEEP,
        security={"seccomp": profile, "run_as_user": {"value": 1000}},
    )
    status = node.shell(container, "grep -E '^(Seccomp|Uid):' /proc/self/status").split()
    assert status[-2:] == ["Seccomp:", "2"]
    assert status[1] == "1000"


@pytest.mark.parametrize("pid", [cri.CONTAINER, cri.POD])
def test_a_pod_that_cannot_be_made_says_why_and_leaves_nothing(node: Node, pid: int) -> None:
    config = node.pod_config(
        "failing",
        namespaces={"userns_options": OWN, "pid": pid},
        linux={"sysctls": {"net.ipv4.ip_unprivileged_port_start": "nonsense"}},
    )
    with refused(grpc.StatusCode.INTERNAL, "sysctl net/ipv4/ip_unprivileged_port_start"):
        node.run_config(config)
    assert not node.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items
    assert list((node.run_dir / "ns").iterdir()) == []


def test_the_last_id_there_is_can_be_mapped(node: Node) -> None:
    far = MAPPING | {"host_id": (1 << 32) - 2, "length": 1}
    ids = {"mode": cri.POD, "uids": [far], "gids": [far]}
    pod = node.run_pod("far", namespaces={"userns_options": ids})
    assert node.pod_status(pod).state == cri.SANDBOX_READY
