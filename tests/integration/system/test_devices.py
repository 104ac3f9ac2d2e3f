# SPDX-License-Identifier: Apache-2.0
"""Devices of the request and of CDI specs: made, owned, and allowed or not."""

import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from pycri.cri.api import runtime_v1_pb2 as cri
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


# CDI


@pytest.fixture(scope="module")
def cdi_node(
    scope: Any, images: Images, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    """A node whose CDI folders are `low` and `high` in its own folder."""
    folder = tmp_path_factory.mktemp("cdi")
    for name in ("low", "high"):
        (folder / name).mkdir()
    settings = f'cdi_dirs = ["{folder}/low", "{folder}/high", "{folder}/missing"]'
    node = Node(scope, settings=settings)
    node.cdi = folder  # type: ignore[attr-defined]
    try:
        node.start()
        node.warm(images["busybox"])
        yield node
    finally:
        node.close()


@pytest.fixture
def write_spec(cdi_node: Node) -> Iterator[Callable[..., None]]:
    """Write a CDI file of kind "acme.org/gpu": `write_spec("high/a.json", {...device edits})`."""
    folder: Path = cdi_node.cdi  # type: ignore[attr-defined]

    def write(path: str, *edits: dict[str, Any], shared: dict[str, Any] | None = None) -> None:
        spec = {
            "cdiVersion": "0.6.0",
            "kind": "acme.org/gpu",
            "devices": [{"name": str(i), "containerEdits": edit} for i, edit in enumerate(edits)],
            "containerEdits": shared or {},
        }
        (folder / path).write_text(json.dumps(spec))

    yield write
    cdi_node.clear()
    for path in folder.glob("*/*"):
        path.unlink()


def cdi(*names: str) -> list[cri.CDIDevice]:
    return [cri.CDIDevice(name=name) for name in names]


def test_a_cdi_device_adds_variables_nodes_mounts_and_groups(
    cdi_node: Node, images: Images, write_spec: Callable[..., None], nodes: Path
) -> None:
    node = cdi_node
    library = nodes / "library"
    library.mkdir()
    (library / "lib.so").write_text("library\n")
    write_spec(
        "low/acme.json",
        {
            "env": ["ACME_DEVICE=0"],
            "deviceNodes": [{"path": "/dev/acme/0", "hostPath": str(nodes / "zero")}],
        },
        {"deviceNodes": [{"path": "/dev/acme/1", "type": "c", "major": 1, "minor": 11,
                          "permissions": "r", "fileMode": 0o600, "uid": 3, "gid": 4}]},
        shared={
            "env": ["ACME=yes", "ASKED=device"],
            "additionalGids": [4567],
            "mounts": [{"hostPath": str(library), "containerPath": "/opt/acme",
                        "options": ["ro", "nosuid", "nodev", "rbind", "rprivate"]}],
        },
    )  # fmt: skip
    pod = node.run_pod("cdi")
    container = node.run_container(
        pod,
        images["busybox"],
        command=SLEEP,
        env={"ASKED": "request"},
        security={"run_as_user": {"value": 1000}},
        CDI_devices=cdi("acme.org/gpu=1"),
        annotations={"cdi.k8s.io/plugin": "acme.org/gpu=0"},
    )
    script = "env; stat -c '%n %t:%T %a %u:%g' /dev/acme/*; id -G; cat /opt/acme/lib.so"
    shown = node.shell(container, script).splitlines()
    assert {"ACME=yes", "ASKED=device", "ACME_DEVICE=0", "library"} <= set(shown)
    assert "/dev/acme/0 1:5 666 1000:1000" in shown
    assert "/dev/acme/1 1:b 600 3:4" in shown
    assert any("4567" in line.split() for line in shown)
    assert 4567 in node.status(container).user.linux.supplemental_groups
    assert node.exec(container, "touch", "/opt/acme/new").exit_code != 0
    assert not node.status(container).mounts


def test_what_a_cdi_device_adds_stays_when_its_file_goes(
    cdi_node: Node, images: Images, write_spec: Callable[..., None]
) -> None:
    node = cdi_node
    write_spec("low/acme.json", {"env": ["ACME=before"]})
    pod = node.run_pod("stays")
    words: dict[str, Any] = {"command": SLEEP, "CDI_devices": cdi("acme.org/gpu=0")}
    container = node.create_container(pod, images["busybox"], **words)
    write_spec("low/acme.json", {"env": ["ACME=after, and longer"]})
    node.start_container(container)
    assert node.shell(container, "echo $ACME") == "before\n"
    second = node.run_container(pod, images["busybox"], name="two", **words)
    assert node.shell(second, "echo $ACME") == "after, and longer\n"


def test_the_folder_that_comes_last_wins_and_yaml_is_read(
    cdi_node: Node, images: Images, write_spec: Callable[..., None]
) -> None:
    node = cdi_node
    write_spec("low/acme.json", {"env": ["ACME=low"]}, {"env": ["ACME=low"]})
    folder: Path = node.cdi  # type: ignore[attr-defined]
    (folder / "high/acme.yaml").write_text(
        "---\ncdiVersion: 0.5.0\nkind: acme.org/gpu\ndevices:\n"
        "- name: '0'\n  containerEdits:\n    env: ['ACME=high']\n"
        "    deviceNodes:\n    "
        "- {path: /dev/zero-too, type: c, major: 1, minor: 5, fileMode: 0640}\n"
    )
    pod = node.run_pod("folders")
    for name, output in (("0", "high\n640\n"), ("1", "low\n")):
        found = node.run_to_end(
            pod,
            images["busybox"],
            name=f"c{name}",
            command="echo $ACME; stat -c %a /dev/zero-too 2>/dev/null; true",
            CDI_devices=cdi(f"acme.org/gpu={name}"),
        )
        assert found == output


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], ("unresolvable CDI device acme.org/gpu=0",)),
        (["low/a.json", "low/b.json"], ("acme.org/gpu=0 is in two CDI files of one folder",)),
    ],
)
def test_a_cdi_device_nobody_describes_is_named(
    files: list[str],
    words: tuple[str, ...],
    cdi_node: Node,
    images: Images,
    write_spec: Callable[..., None],
) -> None:
    for path in files:
        write_spec(path, {"env": ["A=b"]})
    pod = cdi_node.run_pod("unknown")
    with refused(INVALID, "config.CDI_devices[0].name", *words):
        cdi_node.create_container(pod, images["busybox"], CDI_devices=cdi("acme.org/gpu=0"))
    with refused(INVALID, 'config.annotations["cdi.k8s.io/x"]', *words):
        cdi_node.create_container(
            pod, images["busybox"], annotations={"cdi.k8s.io/x": "acme.org/gpu=0"}
        )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "bad.json"),
        ('{"cdiVersion": "9.9.9", "kind": "acme.org/gpu"}', "cdiVersion '9.9.9'"),
        ('{"cdiVersion": "0.6.0", "kind": "acme.org/gpu", "colour": 1}', "unknown field `colour`"),
    ],
)
def test_a_broken_cdi_file_is_named_and_hides_no_other(
    text: str, reason: str, cdi_node: Node, images: Images, write_spec: Callable[..., None]
) -> None:
    folder: Path = cdi_node.cdi  # type: ignore[attr-defined]
    write_spec("low/good.json", {"env": ["ACME=good"]})
    (folder / "low/bad.json").write_text(text)
    pod = cdi_node.run_pod("broken")
    output = cdi_node.run_to_end(
        pod, images["busybox"], command="echo $ACME", CDI_devices=cdi("acme.org/gpu=0")
    )
    assert output == "good\n"
    with refused(INVALID, "unresolvable CDI device acme.org/gpu=7", "low/bad.json", reason):
        cdi_node.create_container(
            pod, images["busybox"], name="two", CDI_devices=cdi("acme.org/gpu=7")
        )


def test_a_hook_of_a_cdi_device_is_refused_by_name(
    cdi_node: Node, images: Images, write_spec: Callable[..., None]
) -> None:
    hook = {"hookName": "createContainer", "path": "/usr/bin/acme-hook", "args": ["acme-hook"]}
    write_spec("low/acme.json", {"hooks": [hook]})
    pod = cdi_node.run_pod("hook")
    with refused(
        grpc.StatusCode.UNIMPLEMENTED,
        "config.CDI_devices[0].name: acme.org/gpu=0",
        "createContainer hook /usr/bin/acme-hook",
    ):
        cdi_node.create_container(pod, images["busybox"], CDI_devices=cdi("acme.org/gpu=0"))
