# SPDX-License-Identifier: Apache-2.0
"""Mounts of the request: propagation, read-only, options, links, targets; seen from both sides."""

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from pycri.cri.api import runtime_v1_pb2 as cri
from tests.world.daemon import Node, refused
from tests.world.hostile import push_image
from tests.world.images import Images
from tests.world.oci import Layer
from tests.world.registry import Registry

PRIVATE, SLAVE, SHARED = (
    cri.PROPAGATION_PRIVATE,
    cri.PROPAGATION_HOST_TO_CONTAINER,
    cri.PROPAGATION_BIDIRECTIONAL,
)
PRIVILEGED = {"privileged": True}
SLEEP = ["sleep", "600"]


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True)


def mount(source: Path | str, target: str, **fields: Any) -> dict[str, Any]:
    return {"host_path": str(source), "container_path": target, **fields}


@pytest.fixture
def volume(node: Node) -> Iterator[Path]:
    """A tmpfs of the host with two folders, shared with nobody yet; with all below it at the end
    gone."""
    folder = node.folder / "tmpfs"
    folder.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=8m", "tests", folder)
    run("mount", "--make-private", folder)
    for name in ("from-host", "from-container"):
        (folder / name).mkdir()
    yield folder
    node.clear()
    run("umount", "-R", folder)
    folder.rmdir()


@pytest.mark.parametrize(
    ("propagation", "into", "back"),
    [(PRIVATE, False, False), (SLAVE, True, False), (SHARED, True, True)],
    ids=["private", "slave", "shared"],
)
def test_mounts_propagate_as_asked_and_no_further(
    propagation: int, into: bool, back: bool, node: Node, images: Images, volume: Path
) -> None:
    run("mount", "--make-shared", volume)
    pod = node.run_pod("propagation", security=PRIVILEGED)
    container = node.run_container(
        pod,
        images["busybox"],
        command=SLEEP,
        security=PRIVILEGED,
        mounts=[mount(volume, "/data", propagation=propagation)],
    )
    assert node.status(container).mounts[0].propagation == propagation
    run("mount", "-t", "tmpfs", "-o", "size=4k", "tests", volume / "from-host")
    (volume / "from-host" / "flag").touch()
    assert ("flag" in node.shell(container, "ls /data/from-host")) is into
    node.shell(
        container,
        "mount -t tmpfs -o size=4k t /data/from-container; touch /data/from-container/flag",
    )
    assert (volume / "from-container" / "flag").exists() is back


def test_what_is_shared_is_cut_when_the_container_ends(
    node: Node, images: Images, volume: Path
) -> None:
    run("mount", "--make-shared", volume)
    pod = node.run_pod("cut", security=PRIVILEGED)
    node.run_to_end(
        pod,
        images["busybox"],
        command="true",
        security=PRIVILEGED,
        mounts=[mount(volume, "/data", propagation=SHARED)],
    )
    assert (volume / "from-host").is_dir()
    assert os.path.ismount(volume)


def test_a_slave_of_a_slave_gets_what_the_host_mounts(
    node: Node, images: Images, volume: Path
) -> None:
    run("mount", "--make-shared", volume)
    slave = node.folder / "slave"
    slave.mkdir()
    run("mount", "--bind", volume, slave)
    try:
        run("mount", "--make-slave", slave)
        pod = node.run_pod("slave")
        container = node.run_container(
            pod,
            images["busybox"],
            command=SLEEP,
            mounts=[mount(slave, "/data", propagation=SLAVE)],
        )
        run("mount", "-t", "tmpfs", "-o", "size=4k", "tests", volume / "from-host")
        (volume / "from-host" / "flag").touch()
        assert "flag" in node.shell(container, "ls /data/from-host")
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "config.mounts[0].propagation"):
            node.create_container(
                pod,
                images["busybox"],
                name="two",
                mounts=[mount(slave, "/data", propagation=SHARED)],
            )
    finally:
        node.clear()
        run("umount", "-R", slave)
        slave.rmdir()


@pytest.mark.parametrize("propagation", [SLAVE, SHARED])
@pytest.mark.parametrize("below", ["", "missing/folder"], ids=["itself", "missing"])
def test_a_private_source_cannot_propagate(
    propagation: int, below: str, node: Node, images: Images, volume: Path
) -> None:
    pod = node.run_pod("refused")
    mounts = [mount("/etc", "/ok"), mount(volume / below, "/data", propagation=propagation)]
    with refused(
        grpc.StatusCode.INVALID_ARGUMENT, "config.mounts[1].propagation", "shared", str(volume)
    ):
        node.create_container(pod, images["busybox"], mounts=mounts)
    assert not (volume / "missing").exists()
    # What has become private since the creation is found at the start.
    run("mount", "--make-shared", volume)
    container = node.create_container(pod, images["busybox"], mounts=mounts)
    run("mount", "--make-private", volume)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "config.mounts[1].propagation"):
        node.start_container(container)


WRITES = "for d in /data /data/from-host; do touch $d/new 2>/dev/null && echo $d; done; true"


@pytest.mark.parametrize(
    ("fields", "written"),
    [
        ({}, ["/data", "/data/from-host"]),
        ({"readonly": True}, ["/data/from-host"]),
        ({"readonly": True, "recursive_read_only": True}, []),
    ],
    ids=["writable", "readonly", "recursive"],
)
def test_read_only_reaches_what_is_mounted_below_only_if_asked(
    fields: dict[str, Any], written: list[str], node: Node, images: Images, volume: Path
) -> None:
    run("mount", "-t", "tmpfs", "-o", "size=4k", "tests", volume / "from-host")
    pod = node.run_pod("readonly")
    container = node.create_container(
        pod, images["busybox"], command=WRITES, mounts=[mount(volume, "/data", **fields)]
    )
    shown = node.status(container).mounts[0]
    assert {name: getattr(shown, name) for name in fields} == fields
    node.start_container(container)
    node.wait_exited(container)
    assert node.output(container).split() == written


def mounted_options(node: Node, container: str, target: str) -> set[str]:
    """Return the options of the topmost mount at a path of a container, from its mountinfo."""
    lines = Path(f"/proc/{node.pid(container)}/mountinfo").read_text().splitlines()
    return set([line.split()[5] for line in lines if line.split()[4] == target][-1].split(","))


@pytest.mark.parametrize(
    ("before", "options", "after"),
    [
        ([], ["noexec"], {"noexec"}),
        ([], ["nosuid", "nodev"], {"nosuid", "nodev"}),
        (["noexec", "nosuid", "nodev"], [], {"noexec", "nosuid", "nodev"}),
        (["noexec", "nosuid", "nodev"], ["exec", "suid"], {"nodev"}),
        ([], ["noexec", "exec"], set()),
    ],
)
def test_mount_options_are_added_to_what_the_volume_has(
    before: list[str],
    options: list[str],
    after: set[str],
    node: Node,
    images: Images,
    volume: Path,
) -> None:
    run("mount", "-o", ",".join(["remount,bind", *before]), volume)
    pod = node.run_pod("options")
    container = node.run_container(
        pod,
        images["busybox"],
        command=SLEEP,
        mounts=[mount(volume, "/data", mount_options=options)],
    )
    found = mounted_options(node, container, "/data")
    assert found & {"noexec", "nosuid", "nodev"} == after
    assert "rw" in found
    script = "cp /bin/busybox /data/busybox; /data/busybox echo ran 2>&1; true"
    ran = node.shell(container, script) == "ran\n"
    assert ran is ("noexec" not in after)
    assert list(node.status(container).mounts[0].mount_options) == options


def test_nodev_takes_the_power_from_a_node_in_the_volume(
    node: Node, images: Images, volume: Path
) -> None:
    os.mknod(volume / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    pod = node.run_pod("nodev")
    container = node.run_container(
        pod,
        images["busybox"],
        command=SLEEP,
        mounts=[mount(volume, "/with"), mount(volume, "/without", mount_options=["nodev"])],
    )
    assert node.shell(container, "head -c 3 /with/zero | wc -c").strip() == "3"
    assert node.exec(container, "head", "-c", "3", "/without/zero").exit_code != 0


def test_the_features_say_that_mount_options_are_understood(node: Node) -> None:
    status = node.runtime.Status(cri.StatusRequest())
    assert status.features.mount_options
    assert all(h.features.recursive_read_only_mounts for h in status.runtime_handlers)


def test_links_of_the_host_are_followed_to_the_volume(
    node: Node, images: Images, tmp_path: Path
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_text("kept\n")
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to(tmp_path / "real")
    (tmp_path / "file").symlink_to("one/file")
    pod = node.run_pod("links")
    output = node.run_to_end(
        pod,
        images["busybox"],
        command="cat /data/file /etc/one; touch /data/new",
        mounts=[mount(tmp_path / "one", "/data"), mount(tmp_path / "file", "/etc/one")],
    )
    assert output == "kept\nkept\n"
    assert (tmp_path / "real" / "new").exists()


def test_a_dangling_link_of_the_host_is_an_error(
    node: Node, images: Images, tmp_path: Path
) -> None:
    (tmp_path / "dangling").symlink_to("nowhere")
    pod = node.run_pod("dangling")
    container = node.create_container(
        pod, images["busybox"], mounts=[mount(tmp_path / "dangling", "/data")]
    )
    with refused(grpc.StatusCode.INTERNAL, f"bind {tmp_path}/dangling -> /data", "No such file"):
        node.start_container(container)


def hostile_layer() -> Layer:
    """Return links that lead out, around, to /proc and to nowhere, and a file among folders."""
    layer = Layer()
    for name, destination in {
        "out": "../../../../outside/place",
        "absolute": "/srv",
        "to-proc": "/proc/sys",
        "to-self": "/proc/self/attr",
        "loop": "loop",
        "dangling": "made/by/mount",
        "file-link": "/made/file",
        "deep": "out/deep",
    }.items():
        layer.symlink(name, destination)
    return layer.file("plain", "plain\n").directory("folder")


@pytest.fixture(scope="module")
def hostile(registry: Registry) -> str:
    return push_image(registry, "mount-targets", hostile_layer())


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ("/out", "/outside/place"),
        ("/out/below", "/outside/place/below"),
        ("/absolute/x", "/srv/x"),
        ("/dangling", "/made/by/mount"),
        ("/dangling/x", "/made/by/mount/x"),
        ("/deep", "/outside/place/deep"),
        ("/new/deep/folder", "/new/deep/folder"),
    ],
)
def test_links_in_the_image_are_followed_in_the_image(
    target: str, found: str, node: Node, hostile: str, tmp_path: Path
) -> None:
    (tmp_path / "flag").write_text("flag\n")
    pod = node.run_pod("inside")
    script = f"cat {found}/flag; grep -c ' {found} ' /proc/self/mountinfo"
    output = node.run_to_end(pod, hostile, command=script, mounts=[mount(tmp_path, target)])
    assert output == "flag\n1\n"


def test_a_file_is_mounted_where_a_dangling_link_leads(
    node: Node, hostile: str, tmp_path: Path
) -> None:
    (tmp_path / "flag").write_text("flag\n")
    pod = node.run_pod("file")
    output = node.run_to_end(
        pod,
        hostile,
        command="cat /file-link /made/file /new/dir/flag /plain",
        mounts=[
            mount(tmp_path / "flag", "/file-link"),
            mount(tmp_path / "flag", "/new/dir/flag"),
            mount(tmp_path / "flag", "/plain"),
        ],
    )
    assert output == "flag\n" * 4


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        ("", "/loop", ("/loop (private)", "Too many levels of symbolic links")),
        ("", "/loop/x", ("Too many levels of symbolic links",)),
        ("", "/plain", ("-> /plain", "Not a directory")),
        ("", "/plain/below", ("-> /plain/below", "Not a directory")),
        ("flag", "/plain/below", ("-> /plain/below", "Not a directory")),
        ("flag", "/folder", ("-> /folder", "is a folder, but what is mounted there is a file")),
        ("", "/to-proc", ("-> /to-proc", "is inside a proc file system")),
        ("", "/to-proc/kernel", ("-> /to-proc/kernel", "is inside a proc file system")),
        ("", "/to-self", ("-> /to-self", "is inside a proc file system")),
        ("", "/proc", ("-> /proc", "only a proc file system may be mounted there")),
    ],
)
def test_a_target_that_cannot_be_is_an_error_that_names_the_mount(
    source: str, target: str, words: tuple[str, ...], node: Node, hostile: str, tmp_path: Path
) -> None:
    (tmp_path / "flag").write_text("flag\n")
    pod = node.run_pod("wrong")
    container = node.create_container(
        pod, hostile, command="true", mounts=[mount(tmp_path / source, target)]
    )
    with refused(grpc.StatusCode.INTERNAL, "bind", *words):
        node.start_container(container)
    assert node.status(container).reason == "StartError"
    assert os.listdir(tmp_path) == ["flag"]


@pytest.mark.parametrize("target", ["/proc/1/attr", "/proc/sys/kernel", "/tmp/../proc/self"])
def test_a_target_inside_proc_is_refused_at_once(
    target: str, node: Node, images: Images, tmp_path: Path
) -> None:
    pod = node.run_pod("proc")
    with refused(
        grpc.StatusCode.INVALID_ARGUMENT, "config.mounts[0].container_path", "inside /proc"
    ):
        node.create_container(pod, images["busybox"], mounts=[mount(tmp_path, target)])


def test_files_that_tell_of_the_machine_may_be_replaced(
    node: Node, images: Images, tmp_path: Path
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 1 kB\n")
    pod = node.run_pod("lxcfs")
    output = node.run_to_end(
        pod,
        images["busybox"],
        command="cat /proc/meminfo /host/self/stat | head -1; cut -d' ' -f1 /host/uptime | wc -l",
        mounts=[mount(tmp_path / "meminfo", "/proc/meminfo"), mount("/proc", "/host")],
    )
    assert output == "MemTotal: 1 kB\n1\n"


def test_the_hosts_proc_may_take_the_place_of_ours(node: Node, images: Images) -> None:
    pod = node.run_pod("hostproc")
    output = node.run_to_end(
        pod,
        images["busybox"],
        command=f"head -c 6 /proc/{os.getpid()}/comm | wc -c",
        mounts=[mount("/proc", "/proc")],
    )
    assert output == "6\n"


def test_a_mount_lies_below_another_in_whatever_order(
    node: Node, images: Images, tmp_path: Path
) -> None:
    for name in ("outer", "inner", "innermost", "later"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    pod = node.run_pod("order")
    output = node.run_to_end(
        pod,
        images["busybox"],
        command="ls /a /a/b /a/b/c",
        mounts=[
            mount(tmp_path / "innermost", "/a/b/c"),
            mount(tmp_path / "outer", "/a"),
            mount(tmp_path / "inner", "/a/b"),
            mount(tmp_path / "later", "/a//b/c"),
        ],
    )
    assert output.split() == ["/a:", "b", "outer", "/a/b:", "c", "inner", "/a/b/c:", "later"]
    assert sorted(os.listdir(tmp_path / "outer")) == ["b", "outer"]


def test_mounts_in_dev_take_the_place_of_ours(node: Node, images: Images, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine\n")
    (tmp_path / "shm").mkdir()
    pod = node.run_pod("dev")
    output = node.run_to_end(
        pod,
        images["busybox"],
        command="cat /dev/termination-log /dev/full; touch /dev/shm/here;"
        "ls -l /dev/stdout | wc -l; echo x >/dev/null; cat /dev/stdin",
        mounts=[
            mount(tmp_path / "file", "/dev/termination-log"),
            mount(tmp_path / "file", "/dev/full"),
            mount(tmp_path / "file", "/dev/stdin"),
            mount(tmp_path / "shm", "/dev/shm"),
        ],
    )
    assert output == "mine\nmine\n1\nmine\n"
    assert os.listdir(tmp_path / "shm") == ["here"]
    assert not Path("/dev/termination-log").exists()


def test_a_mount_lies_in_a_volume_that_the_image_declares(
    node: Node, registry: Registry, tmp_path: Path
) -> None:
    layer = Layer().directory("declared").file("declared/own", "own\n")
    image = push_image(registry, "declared", layer, Volumes={"/declared": {}, "/empty": {}})
    (tmp_path / "flag").write_text("flag\n")
    pod = node.run_pod("declared")
    output = node.run_to_end(
        pod,
        image,
        command="cat /declared/own /declared/below/flag; touch /declared/new /empty/new && echo ok",
        security={"readonly_rootfs": True},
        mounts=[mount(tmp_path, "/declared/below", readonly=True)],
    )
    assert output == "own\nflag\nok\n"


@pytest.mark.skipif(Path("/sys/fs/selinux/class").exists(), reason="this host has SELinux")
def test_the_kubelets_wish_to_relabel_a_volume_is_none_where_there_is_no_selinux(
    node: Node, images: Images, tmp_path: Path
) -> None:
    pod = node.run_pod("relabel")
    node.run_to_end(
        pod,
        images["busybox"],
        command="touch /data/new",
        mounts=[mount(tmp_path, "/data", selinux_relabel=True)],
    )
    assert (tmp_path / "new").exists()


def test_no_mount_of_a_container_is_seen_on_the_host(
    node: Node, images: Images, tmp_path: Path
) -> None:
    def host_mounts() -> list[str]:
        # Overlays name the node's folders, binds what they are of; others are of other nodes.
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return [line for line in lines if node.name in line or str(tmp_path) in line]

    pod = node.run_pod("unseen")
    before = host_mounts()
    assert before, "the pod's own pins are there"
    container = node.run_container(
        pod, images["busybox"], command=SLEEP, mounts=[mount(tmp_path, "/data")]
    )
    assert host_mounts() == before
    inside = Path(f"/proc/{node.pid(container)}/mountinfo").read_text()
    assert node.name in inside
    assert str(tmp_path) in inside
