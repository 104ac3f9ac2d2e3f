# SPDX-License-Identifier: Apache-2.0
"""Devices of the request and of CDI specs: made, owned, and allowed or not."""

import os
import stat
from pathlib import Path

import grpc
import pytest

from tests.world.daemon import Node, refused
from tests.world.images import Images

INVALID = grpc.StatusCode.INVALID_ARGUMENT
SLEEP = ["sleep", "600"]


def device(host: Path | str, target: str, permissions: str = "rwm") -> dict[str, str]:
    return {"host_path": str(host), "container_path": target, "permissions": permissions}


@pytest.fixture
def nodes(tmp_path: Path) -> Path:
    """A folder of device nodes: zero, owned by kim, full below a folder, and no device."""
    os.mknod(tmp_path / "zero", stat.S_IFCHR, os.makedev(1, 5))
    os.chmod(tmp_path / "zero", 0o640)
    os.chown(tmp_path / "zero", 1000, 33)
    (tmp_path / "deep").mkdir()
    os.mknod(tmp_path / "deep" / "full", stat.S_IFCHR | 0o600, os.makedev(1, 7))
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("zero")
    return tmp_path


def test_a_device_has_the_mode_and_owner_of_the_hosts(
    node: Node, images: Images, nodes: Path
) -> None:
    pod = node.run_pod("device")
    container = node.run_container(
        pod,
        images["busybox"],
        command=SLEEP,
        devices=[device(nodes / "zero", "/dev/mine"), device(nodes / "link", "/opt/dev/linked")],
    )
    for path in ("/dev/mine", "/opt/dev/linked"):
        shown = node.shell(container, f"stat -c '%F %t:%T %a %u:%g' {path}")
        assert shown == "character special file 1:5 640 1000:33\n"
        assert node.shell(container, f"head -c 4 {path} | wc -c").strip() == "4"


def test_a_folder_stands_for_all_devices_in_it(node: Node, images: Images, nodes: Path) -> None:
    pod = node.run_pod("folder")
    container = node.run_container(
        pod, images["busybox"], command=SLEEP, devices=[device(nodes, "/dev/all")]
    )
    listing = node.shell(container, "cd /dev/all; find . -type c | sort; find . -type f -o -type l")
    assert listing.split() == ["./deep/full", "./zero"]


@pytest.mark.parametrize(
    ("permissions", "read", "write", "make"),
    [("rwm", 1, 1, 1), ("r", 1, 0, 1), ("w", 0, 1, 1)],
)
def test_permissions_are_enforced(
    permissions: str, read: int, write: int, make: int, node: Node, images: Images, tmp_path: Path
) -> None:
    """With a device that whoever sees it may open. Making nodes is allowed to all."""
    (line,) = [line for line in Path("/proc/misc").read_text().splitlines() if "fuse" in line]
    number = int(line.split()[0])
    os.mknod(tmp_path / "fuse", stat.S_IFCHR | 0o666, os.makedev(10, number))
    pod = node.run_pod("permissions")
    container = node.run_container(
        pod,
        images["busybox"],
        command=SLEEP,
        devices=[device(tmp_path / "fuse", "/dev/mine", permissions)],
    )
    tries = {
        "exec 3</dev/mine": read,
        "exec 3>>/dev/mine": write,
        f"mknod /dev/made c 10 {number}": make,
    }
    for script, allowed in tries.items():
        done = node.exec(container, "sh", "-c", script)
        assert (done.exit_code == 0) is bool(allowed), (script, done.stderr)


@pytest.mark.parametrize(
    ("name", "reason"), [("missing", "does not exist"), ("file", "no device at")]
)
def test_what_is_no_device_is_named(
    name: str, reason: str, node: Node, images: Images, nodes: Path
) -> None:
    pod = node.run_pod("nodevice")
    devices = [device(nodes / "zero", "/dev/a"), device(nodes / name, "/dev/b")]
    with refused(INVALID, "config.devices[1].host_path", reason):
        node.create_container(pod, images["busybox"], devices=devices)


def test_a_device_never_takes_the_place_of_a_file(node: Node, images: Images, nodes: Path) -> None:
    pod = node.run_pod("place")
    container = node.create_container(
        pod, images["busybox"], devices=[device(nodes / "zero", "/etc/passwd")]
    )
    with refused(grpc.StatusCode.INTERNAL, "device /etc/passwd", "something else is in"):
        node.start_container(container)
