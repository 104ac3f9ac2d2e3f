# SPDX-License-Identifier: Apache-2.0
"""CDI devices: what their files add to a container, and the hooks they ask for."""

import contextlib
import json
import os
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from pycri.cri.api import runtime_v1_pb2 as cri
from tests.world.daemon import Node, is_running, refused, wait_until
from tests.world.images import Images

INVALID = grpc.StatusCode.INVALID_ARGUMENT
SLEEP = ["sleep", "600"]


@pytest.fixture
def nodes(tmp_path: Path) -> Path:
    """A folder with a device node."""
    os.mknod(tmp_path / "zero", stat.S_IFCHR | 0o640, os.makedev(1, 5))
    return tmp_path


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


def spec(*edits: dict[str, Any], shared: dict[str, Any] | None = None) -> str:
    """Return a CDI file of kind "acme.org/gpu", with a device "0", "1", ... for each edit."""
    devices = [{"name": str(i), "containerEdits": edit} for i, edit in enumerate(edits)]
    return json.dumps(
        {
            "cdiVersion": "0.6.0",
            "kind": "acme.org/gpu",
            "devices": devices,
            "containerEdits": shared or {},
        }
    )


@pytest.fixture
def write_spec(cdi_node: Node) -> Iterator[Callable[..., None]]:
    """Write a CDI file of kind "acme.org/gpu": `write_spec("high/a.json", {...device edits})`."""
    folder: Path = cdi_node.cdi  # type: ignore[attr-defined]

    def write(path: str, *edits: dict[str, Any], shared: dict[str, Any] | None = None) -> None:
        (folder / path).write_text(spec(*edits, shared=shared))

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


def test_a_mount_of_a_cdi_device_gets_the_hosts_later_mounts_if_it_can(
    cdi_node: Node, images: Images, write_spec: Callable[..., None], nodes: Path
) -> None:
    node = cdi_node
    subprocess.run(["mount", "-t", "tmpfs", "acme", nodes], check=True)
    try:
        (nodes / "inner").mkdir()
        mount = {"hostPath": str(nodes), "containerPath": "/acme", "options": ["rbind", "rslave"]}
        write_spec("low/acme.json", {"mounts": [mount]})
        pod = node.run_pod("propagation")
        words: dict[str, Any] = {"command": SLEEP, "CDI_devices": cdi("acme.org/gpu=0")}
        subprocess.run(["mount", "--make-private", nodes], check=True)
        with refused(INVALID, "config.CDI_devices", "/acme", "rslave", f"{nodes} is not on"):
            node.create_container(pod, images["busybox"], **words)
        subprocess.run(["mount", "--make-shared", nodes], check=True)
        container = node.run_container(pod, images["busybox"], **words)
        subprocess.run(["mount", "-t", "tmpfs", "inner", nodes / "inner"], check=True)
        assert "/acme/inner" in node.shell(container, "cat /proc/mounts")
    finally:
        subprocess.run(["umount", "--recursive", nodes], check=True)


# hooks


def hook(name: str, path: Path, script: str, **fields: Any) -> dict[str, Any]:
    """A hook that is a shell script at `path`, made here."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return {"hookName": name, "path": str(path), "args": [path.name, "word"], **fields}


LOOK = 'cat >"$0.state"; readlink /proc/self/ns/net >"$0.net"; env >"$0.env"; echo "$@" >"$0.args"'


def test_hooks_of_a_cdi_device_are_run_when_oci_says(
    cdi_node: Node, images: Images, write_spec: Callable[..., None], nodes: Path
) -> None:
    node = cdi_node
    root = 'root=$(sed -n \'s/.*"path": "\\(.*rootfs\\)".*/\\1/p\' config.json)'
    hooks = [
        hook("createRuntime", nodes / "runtime", f'{LOOK}; {root}; echo r >>"$root/order"'),
        hook(
            "createContainer",
            nodes / "container",
            f'{LOOK}; {root}; echo c >>"$root/order"; ln -s /bin/busybox "$root/acme"; '
            'mkdir "$root/held"; mount -t tmpfs acme "$root/held"; touch "$root/held/inside"',
            env=["ACME=for the hook"],
        ),
        {"hookName": "startContainer", "path": "/bin/sh", "args": ["sh", "-c", "id -u >>/order"]},
        hook("poststart", nodes / "started", LOOK),
        hook("poststop", nodes / "stopped", LOOK),
        hook("prestart", nodes / "first", f'cat >/dev/null; {root}; echo p >>"$root/order"'),
    ]
    write_spec("low/acme.json", {"hooks": hooks})
    pod = node.run_pod("hooks")
    container = node.run_container(
        pod,
        images["busybox"],
        command=SLEEP,
        annotations={"colour": "red"},
        CDI_devices=cdi("acme.org/gpu=0"),
    )
    assert node.shell(container, "cat /order") == "p\nr\nc\n0\n"
    assert node.shell(container, "readlink /acme; ls /held") == "/bin/busybox\ninside\n"
    pid = node.pid(container)
    states = {name: json.loads((nodes / f"{name}.state").read_text())
              for name in ("runtime", "container", "started")}  # fmt: skip
    assert {name: state["status"] for name, state in states.items()} == {
        "runtime": "creating", "container": "creating", "started": "running"
    }  # fmt: skip
    assert all(
        (state["pid"], state["id"], state["annotations"]) == (pid, container, {"colour": "red"})
        for state in states.values()
    )
    seen = {name: (nodes / f"{name}.net").read_text().strip() for name in states}
    assert seen["container"] == os.readlink(f"/proc/{pid}/ns/net")
    assert seen["runtime"] == seen["started"] == os.readlink("/proc/self/ns/net")
    assert "ACME=for the hook\n" in (nodes / "container.env").read_text()
    assert (nodes / "runtime.args").read_text() == "word\n"
    assert not (nodes / "stopped.state").exists()
    node.stop_container(container)
    assert json.loads((nodes / "stopped.state").read_text())["status"] == "stopped"


def test_a_container_with_hooks_sees_nothing_of_the_host(
    cdi_node: Node, images: Images, write_spec: Callable[..., None], nodes: Path
) -> None:
    """Its hooks' process has the host's mounts, also in a pid namespace that others share."""
    node = cdi_node
    write_spec("low/acme.json", {"hooks": [hook("createContainer", nodes / "hook", "true")]})
    pod = node.run_pod("shared", namespaces={"pid": cri.POD})
    for name, read_only in (("one", False), ("two", True)):
        container = node.run_container(
            pod,
            images["busybox"],
            name=name,
            command=SLEEP,
            security={"readonly_rootfs": read_only},
            CDI_devices=cdi("acme.org/gpu=0"),
        )
        shown = node.shell(container, "cat /proc/self/mountinfo")
        assert str(node.state_dir) not in "".join(line.split(" ")[4] for line in shown.splitlines())
        assert node.exec(container, "test", "-e", str(nodes)).exit_code != 0
        assert (node.exec(container, "touch", "/new").exit_code != 0) is read_only


@pytest.mark.parametrize(
    ("name", "script", "fields", "words"),
    [
        ("createRuntime", "echo no such card >&2; exit 3", {},
         ("createRuntime hook", "ended with 3: no such card")),
        ("createContainer", "exec sleep 600", {"timeout": 1}, ("has not ended in 1 s",)),
    ],
)  # fmt: skip
def test_a_hook_that_fails_fails_the_start(
    name: str,
    script: str,
    fields: dict[str, Any],
    words: tuple[str, ...],
    cdi_node: Node,
    images: Images,
    write_spec: Callable[..., None],
    nodes: Path,
) -> None:
    node = cdi_node
    hooks = [hook(name, nodes / "hook", script, **fields), hook("poststop", nodes / "stop", LOOK)]
    write_spec("low/acme.json", {"hooks": hooks})
    pod = node.run_pod("fails")
    container = node.create_container(pod, images["busybox"], CDI_devices=cdi("acme.org/gpu=0"))
    with refused(grpc.StatusCode.INTERNAL, str(nodes / "hook"), *words):
        node.start_container(container)
    assert node.status(container).reason == "StartError"
    assert (nodes / "stop.state").exists()


def test_a_hook_that_is_not_there_is_named(
    cdi_node: Node, images: Images, write_spec: Callable[..., None]
) -> None:
    missing = [{"hookName": "startContainer", "path": "/bin/acme", "args": ["acme"]}]
    write_spec("low/acme.json", {"hooks": missing})
    pod = cdi_node.run_pod("missing")
    container = cdi_node.create_container(pod, images["busybox"], CDI_devices=cdi("acme.org/gpu=0"))
    with refused(grpc.StatusCode.INTERNAL, "startContainer hook /bin/acme", "No such file"):
        cdi_node.start_container(container)


def test_a_hook_works_in_a_pod_with_a_user_namespace(
    cdi_node: Node, images: Images, write_spec: Callable[..., None], nodes: Path
) -> None:
    """It is the host's root there, whom the namespace does not know."""
    root = 'root=$(sed -n \'s/.*"path": "\\(.*rootfs\\)".*/\\1/p\' config.json)'
    script = f'cat >/dev/null; {root}; ln -s /bin/busybox "$root/acme"'
    write_spec("low/acme.json", {"hooks": [hook("createContainer", nodes / "hook", script)]})
    mapping = {"host_id": 300_000, "container_id": 0, "length": 65_536}
    own = {"mode": cri.POD, "uids": [mapping], "gids": [mapping]}
    pod = cdi_node.run_pod("mapped", namespaces={"userns_options": own})
    container = cdi_node.run_container(
        pod, images["busybox"], command=SLEEP, CDI_devices=cdi("acme.org/gpu=0")
    )
    shown = cdi_node.shell(container, "readlink /acme; stat -c %u /acme; id -u")
    assert shown == "/bin/busybox\n65534\n0\n"


def test_a_daemon_that_dies_while_a_hook_runs_leaves_none(
    make_node: Callable[..., Node], images: Images, nodes: Path
) -> None:
    node = make_node(settings=f'cdi_dirs = ["{nodes}"]')
    script = 'echo $$ >"$0.new"; mv "$0.new" "$0.pid"; exec sleep 600'
    hooks = [hook("createContainer", nodes / "hook", script)]
    (nodes / "acme.json").write_text(spec({"hooks": hooks}))
    pod = node.run_pod("dies")
    container = node.create_container(pod, images["busybox"], CDI_devices=cdi("acme.org/gpu=0"))
    starting = threading.Thread(target=suppressed, args=(node.start_container, container))
    starting.start()
    path = nodes / "hook.pid"
    wait_until(path.exists, what="the hook")
    pid = int(path.read_text())
    node.kill("daemon")
    starting.join()
    wait_until(lambda: not is_running(pid), what="the end of the hook")
    node.start()
    assert node.status(container).state == cri.CONTAINER_CREATED


def suppressed(call: Callable[[str], object], argument: str) -> None:
    with contextlib.suppress(grpc.RpcError):
        call(argument)
