# SPDX-License-Identifier: Apache-2.0
"""What CDI devices add to a container's plan."""

from typing import Any

import msgspec
import pytest

from pycri.errors import InvalidRequest, Unsupported
from pycri.model.cdi import CdiChanges, CdiSpec, DeviceEdits
from pycri.model.hooks import Hook
from pycri.model.plan import BindMount, ContainerPlan, MakeDevice, MountFilesystem
from pycri.model.security import User
from pycri.plan.cdi import FoundDevice, check_spec, host_paths, merge_edits
from pycri.plan.container import plan_container
from pycri.plan.devices import HostDevice
from tests.unit.plan.samples import container_inputs, container_spec

FIELD = "config.CDI_devices[0].name"
NODE = {"path": "/dev/acme0", "type": "c", "major": 240, "minor": 3}


def spec(*edits: dict[str, Any], shared: dict[str, Any] | None = None, **fields: Any) -> CdiSpec:
    """Return a file with a device "0", "1", ... for each of the edits."""
    devices = [{"name": str(i), "containerEdits": edit} for i, edit in enumerate(edits)]
    plain = {
        "cdiVersion": "0.8.0",
        "kind": "acme.org/gpu",
        "devices": devices,
        "containerEdits": shared or {},
    }
    return msgspec.convert(plain | fields, CdiSpec)


def found(file: CdiSpec) -> tuple[FoundDevice, ...]:
    return tuple(
        FoundDevice(field=FIELD, name=f"{file.kind}={device.name}", spec=file, device=device)
        for device in file.devices
    )


def edits(
    *changes: dict[str, Any],
    shared: dict[str, Any] | None = None,
    nodes: dict[str, HostDevice] | None = None,
) -> DeviceEdits:
    return merge_edits(found(spec(*changes, shared=shared)), nodes or {})


def plan(found: DeviceEdits, **changes: Any) -> ContainerPlan:
    return plan_container(container_inputs(device_edits=found, **changes))


def test_a_files_own_edits_come_once_and_before_its_devices() -> None:
    merged = edits(
        {"env": ["A=0", "ONE=1"]},
        {"env": ["A=1"]},
        shared={"env": ["A=shared", "S=1"], "additionalGids": [44, 0]},
    )
    assert dict(merged.env) == {"A": b"1", "S": b"1", "ONE": b"1"}
    assert merged.groups == (44,)


def test_variables_and_groups_of_devices_win_over_the_request() -> None:
    merged = edits({"env": ["A=cdi", "B="], "additionalGids": [44]})
    process = plan(merged, spec=container_spec(env=(("A", b"asked"),))).process
    assert {b"A=cdi", b"B="} <= set(process.env)
    assert b"A=asked" not in process.env
    assert process.user.groups == (0, 44)


def test_a_node_is_made_as_written_and_may_be_used() -> None:
    node = {**NODE, "fileMode": 0o640, "uid": 5, "gid": 6, "permissions": "rw"}
    made = plan(edits({"deviceNodes": [node]}))
    wanted = MakeDevice(path="/dev/acme0", kind="c", major=240, minor=3, mode=0o640, uid=5, gid=6)
    assert wanted in made.steps
    assert made.cgroup.device_rules is not None
    assert "c 240:3 rw" in map(str, made.cgroup.device_rules)


def test_a_node_without_owner_is_the_containers_users() -> None:
    made = plan(edits({"deviceNodes": [NODE]}), user=User(uid=7, gid=8, groups=(8,)))
    wanted = MakeDevice(path="/dev/acme0", kind="c", major=240, minor=3, uid=7, gid=8)
    assert wanted in made.steps


def test_what_a_node_does_not_say_the_hosts_node_tells() -> None:
    node = {"path": "/dev/inside", "hostPath": "/dev/acme9"}
    assert host_paths(found(spec({"deviceNodes": [node, NODE]}))) == ("/dev/acme9",)
    host = HostDevice(path="/dev/acme9", kind="b", major=9, minor=1)
    merged = edits({"deviceNodes": [node]}, nodes={"/dev/acme9": host})
    (made,) = merged.nodes
    assert (made.path, made.kind, made.major, made.minor, made.access) == (
        "/dev/inside", "b", 9, 1, "rwm",
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["", "c"])
def test_a_node_that_the_host_lacks_is_named(kind: str) -> None:
    block = HostDevice(path="/dev/other", kind="b", major=9, minor=1)
    node = {"path": "/dev/other", "type": kind}
    with pytest.raises(InvalidRequest) as caught:
        edits({"deviceNodes": [node]}, nodes={"/dev/other": block} if kind else {})
    assert caught.value.field == FIELD
    assert "acme.org/gpu=0: no device at /dev/other" in caught.value.reason


def test_mounts_are_binds_by_their_options_and_take_others_places() -> None:
    merged = edits(
        {
            "mounts": [
                {"hostPath": "/h/a", "containerPath": "/etc//hosts", "options": ["ro", "nodev"]},
                {"hostPath": "/h/b", "containerPath": "/b", "options": ["bind", "rslave", "rw"]},
                {"hostPath": "t", "containerPath": "/t", "type": "tmpfs", "options": ["size=1k"]},
            ]
        }
    )
    steps = plan(merged).steps
    assert [s for s in steps if isinstance(s, BindMount) and s.target == "/etc/hosts"] == [
        BindMount(source="/h/a", target="/etc/hosts", attributes=("ro", "nodev"))
    ]
    assert BindMount(source="/h/b", target="/b", propagation="slave", recursive=False) in steps
    assert MountFilesystem(filesystem="tmpfs", target="/t", options=("size=1k",)) in steps


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"intelRdt": {"closID": "x"}}, "intelRdt"),
        ({"deviceNodes": [{**NODE, "type": "p"}]}, "type 'p'"),
        ({"mounts": [{"hostPath": "/a", "containerPath": "/a", "type": "nfs"}]}, "type 'nfs'"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(Unsupported) as caught:
        edits(change)
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"{FIELD}: acme.org/gpu=0")


def test_hooks_of_all_devices_are_run_and_prestart_ones_before_createruntime_ones() -> None:
    def hook(name: str, path: str) -> dict[str, Any]:
        return {"hooks": [{"hookName": name, "path": path, "args": ["x"], "env": ["A=b"]}]}

    merged = edits(
        hook("createRuntime", "/a"), hook("prestart", "/b"), shared=hook("poststop", "/c")
    )
    assert [hook.path for hook in merged.hooks.create_runtime] == ["/b", "/a"]
    assert merged.hooks.poststop == (Hook(path="/c", args=("x",), env=("A=b",)),)
    hooks = plan(merged).hooks
    assert hooks is not None
    assert hooks.hooks == merged.hooks
    assert plan(edits({})).hooks is None


def test_an_unknown_mount_option_is_named() -> None:
    with pytest.raises(InvalidRequest, match="unknown mount option 'shiny' for /a"):
        edits({"mounts": [{"hostPath": "/a", "containerPath": "/a", "options": ["shiny"]}]})


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (spec(cdiVersion="0.2.0"), "cdiVersion '0.2.0'"),
        (spec(kind="gpu"), "kind 'gpu'"),
        (spec(devices=[{"name": "a"}, {"name": "a"}]), "'a' is wrong, or there twice"),
        (spec(devices=[{"name": "a/b"}]), "'a/b' is wrong"),
        (spec({"env": ["NOVALUE"]}), "NAME=VALUE"),
        (spec({"deviceNodes": [{"path": "dev"}]}), "'dev' is not an absolute path"),
        (spec({"deviceNodes": [{**NODE, "permissions": "x"}]}), "permissions 'x'"),
        (spec(shared={"mounts": [{"hostPath": "/a", "containerPath": "b"}]}), "'b' is not"),
        (spec(shared={"mounts": [{"hostPath": "/a", "containerPath": "/./"}]}), "root"),
        (
            spec({"hooks": [{"hookName": "atnight", "path": "/a"}]}),
            "'atnight' is not among prestart",
        ),
        (spec({"hooks": [{"hookName": "poststop", "path": "a"}]}), "'a' is not an absolute path"),
        (spec({"hooks": [{"hookName": "poststop", "path": "/a", "env": ["X"]}]}), "NAME=VALUE"),
        (spec({"hooks": [{"hookName": "poststop", "path": "/a", "timeout": 0}]}), "not above 0"),
        (spec({"hooks": [{"hookName": "poststop", "path": "/a", "args": ["\0"]}]}), "zero byte"),
    ],
)
def test_a_file_that_says_what_it_may_not_is_refused(file: CdiSpec, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        check_spec(file)
    assert words in str(caught.value)


@pytest.mark.parametrize("version", ["0.3.0", "0.5.0", "0.8.0", "1.0.0"])
def test_versions_of_the_format_are_known(version: str) -> None:
    check_spec(spec({"deviceNodes": [NODE]}, cdiVersion=version))
    assert CdiChanges() == spec().container_edits
