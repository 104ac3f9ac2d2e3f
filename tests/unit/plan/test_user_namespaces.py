# SPDX-License-Identifier: Apache-2.0
"""Plans of pods that have a user namespace of their own."""

from typing import Any

import pytest

from pycri.errors import InvalidRequest, Unsupported
from pycri.model.container import Device, Mount, Propagation
from pycri.model.plan import BindMount, MakeDevice, MountFilesystem, MountOverlay, Step
from pycri.model.security import (
    ContainerSecurity,
    IdMapping,
    IdMappings,
    NamespaceMode,
    NamespaceModes,
    User,
)
from pycri.plan.container import ContainerInputs, plan_container
from pycri.plan.devices import HostDevice
from pycri.plan.sandbox import plan_sandbox
from tests.unit.plan.samples import (
    POD_ID,
    container_inputs,
    container_spec,
    host_v1,
    host_v2,
    pod_paths,
    pod_spec,
)

UIDS = (IdMapping(host_id=100_000, container_id=0, length=65_536),)
GIDS = (IdMapping(host_id=200_000, container_id=0, length=1_000),)
IDS = IdMappings(uids=UIDS, gids=GIDS)
MODES = NamespaceModes(user=IDS)
OPTIONS = "config.linux.security_context.namespace_options.userns_options"


def inputs(
    *,
    mounts: tuple[Mount, ...] = (),
    devices: tuple[Device, ...] = (),
    host_devices: tuple[HostDevice, ...] = (),
    user: User | None = None,
    **security: object,
) -> ContainerInputs:
    context = ContainerSecurity(**({"namespaces": MODES} | security))  # type: ignore[arg-type]
    return container_inputs(
        pod=pod_spec(namespaces=MODES, privileged=True),
        spec=container_spec(security=context, mounts=mounts, devices=devices),
        user=user or User(uid=0, gid=0, groups=(0,)),
        host_devices=host_devices,
    )


def steps(**fields: object) -> list[Step]:
    return list(plan_container(inputs(**fields)).steps)  # type: ignore[arg-type]


def test_the_user_namespace_is_pinned_first_and_joined_last() -> None:
    spec = pod_spec(namespaces=MODES)
    sandbox = plan_sandbox(POD_ID, spec, pod_paths(spec), host_v2(), "/pycri")
    assert sandbox.user_namespace == IDS
    assert [pin.kind for pin in sandbox.pins] == ["user", "net", "ipc", "uts"]
    plan = plan_container(inputs())
    assert [join.kind for join in plan.namespaces] == ["net", "ipc", "uts"]
    assert plan.user_namespace is not None
    assert (plan.user_namespace.path, plan.user_namespace.ids) == ("/run/pycri/ns/pod/user", IDS)


def test_a_pod_without_one_has_none_of_it() -> None:
    spec = pod_spec()
    sandbox = plan_sandbox(POD_ID, spec, pod_paths(spec), host_v2(), "/pycri")
    assert sandbox.user_namespace is None
    plan = plan_container(container_inputs())
    assert plan.user_namespace is None
    assert all(getattr(step, "ids", None) is None for step in plan.steps)


def test_groups_that_may_ping_are_those_of_the_namespace() -> None:
    spec = pod_spec(namespaces=MODES)
    sandbox = plan_sandbox(POD_ID, spec, pod_paths(spec), host_v2(), "/pycri")
    assert dict(sandbox.sysctls)["net/ipv4/ping_group_range"] == "0 999"


def test_the_root_and_the_pod_s_files_are_shown_mapped() -> None:
    volumes = (Mount(container_path="/plain", host_path="/srv/plain"),)
    made = steps(mounts=volumes)
    assert isinstance(made[0], MountOverlay)
    assert made[0].ids == IDS
    mapped = {step.target for step in made if isinstance(step, BindMount) and step.ids == IDS}
    assert mapped == {"/etc/hosts", "/etc/hostname", "/etc/resolv.conf"}


def test_a_mount_s_own_map_stays_and_is_named() -> None:
    own = IdMappings(uids=GIDS, gids=UIDS)
    mounts = (
        Mount(container_path="/a", host_path="/a"),
        Mount(container_path="/b", host_path="/b", ids=own),
    )
    (found,) = [s for s in steps(mounts=mounts) if isinstance(s, BindMount) and s.target == "/b"]
    assert (found.ids, found.ids_field) == (own, "config.mounts[1].uidMappings")


def test_device_nodes_have_the_host_s_ids_of_their_owners() -> None:
    node = HostDevice(path="/dev/kvm", kind="c", major=10, minor=232, uid=0, gid=107)
    far = HostDevice(path="/dev/far", kind="c", major=10, minor=233, uid=70_000, gid=70_000)
    devices = tuple(
        Device(container_path=found.path, host_path=found.path, permissions="rw")
        for found in (node, far)
    )
    made = steps(devices=devices, host_devices=(node, far))
    owners = {step.path: (step.uid, step.gid) for step in made if isinstance(step, MakeDevice)}
    assert owners["/dev/null"] == (100_000, 200_000)
    assert owners["/dev/kvm"] == (100_000, 200_107)
    assert owners["/dev/far"] == (100_000, 200_000)


def test_terminals_have_the_host_s_id_of_their_group() -> None:
    (pts,) = [s for s in steps() if isinstance(s, MountFilesystem) and s.filesystem == "devpts"]
    assert "gid=200005" in pts.options


def test_a_group_of_terminals_that_is_not_mapped_is_left_out() -> None:
    small = IdMappings(uids=UIDS, gids=(IdMapping(host_id=1, container_id=0, length=5),))
    modes = NamespaceModes(user=small)
    plan = plan_container(
        container_inputs(
            pod=pod_spec(namespaces=modes), security=ContainerSecurity(namespaces=modes)
        )
    )
    (pts,) = [s for s in plan.steps if isinstance(s, MountFilesystem) and s.filesystem == "devpts"]
    assert not [option for option in pts.options if option.startswith("gid=")]


@pytest.mark.parametrize("host", [host_v1(), host_v2()], ids=["v1", "v2"])
def test_privileged_gives_none_of_the_host_s_devices(host: object) -> None:
    disk = HostDevice(path="/dev/vda", kind="b", major=254, minor=0)
    plan = plan_container(inputs(privileged=True, host_devices=(disk,)))
    nodes = [step.path for step in plan.steps if isinstance(step, MakeDevice)]
    assert "/dev/vda" not in nodes
    assert plan.cgroup.device_rules is not None
    assert "a" not in {rule.kind for rule in plan.cgroup.device_rules}
    assert plan.new_namespaces == ("cgroup",)


@pytest.mark.parametrize(
    ("user", "security", "field"),
    [
        (User(uid=65_536), {"run_as_user": 65_536}, "run_as_user"),
        (User(uid=65_536), {"run_as_username": "far"}, "run_as_username"),
        (User(uid=65_536), {}, "config.image"),
        (User(uid=1, gid=1_000), {"run_as_user": 1, "run_as_group": 1_000}, "run_as_group"),
        (User(uid=1, gid=1_000), {"run_as_user": 1}, "run_as_user"),
        (User(uid=0, groups=(0, 1_000)), {"supplemental_groups": (1_000,)}, "supplemental_groups"),
    ],
)
def test_ids_that_are_not_mapped_are_refused_by_name(
    user: User, security: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        plan_container(inputs(user=user, **security))
    assert caught.value.field.endswith(field)


@pytest.mark.parametrize(
    "modes", [NamespaceModes(), NamespaceModes(user=IdMappings(uids=GIDS, gids=GIDS))]
)
def test_another_user_namespace_than_the_pod_s_is_refused(modes: NamespaceModes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        plan_container(inputs(namespaces=modes))
    assert caught.value.field == OPTIONS


def test_a_user_namespace_in_a_pod_without_one_is_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        plan_container(container_inputs(security=ContainerSecurity(namespaces=MODES)))
    assert caught.value.field == OPTIONS


def test_mounts_cannot_propagate_out_of_a_user_namespace() -> None:
    mount = Mount(container_path="/a", host_path="/a", propagation=Propagation.BIDIRECTIONAL)
    with pytest.raises(Unsupported, match=r"config\.mounts\[0\]\.propagation"):
        plan_container(inputs(mounts=(mount,), privileged=True))


def test_an_old_kernel_is_refused_by_the_field_that_asks_too_much() -> None:
    host = host_v2(kernel=(6, 1), user_namespaces=False)
    spec = pod_spec(namespaces=MODES)
    with pytest.raises(Unsupported, match=r"userns_options: needs Linux 6\.3"):
        plan_sandbox(POD_ID, spec, pod_paths(spec), host, "/pycri")
    mounts = (Mount(container_path="/a", host_path="/a", ids=IDS),)
    with pytest.raises(Unsupported, match=r"config\.mounts\[0\]\.uidMappings: needs Linux 6\.3"):
        plan_container(container_inputs(spec=container_spec(mounts=mounts), host=host))


def test_the_node_s_network_keeps_its_namespaces() -> None:
    modes = NamespaceModes(user=IDS, network=NamespaceMode.NODE)
    spec = pod_spec(namespaces=modes, hostname="")
    sandbox = plan_sandbox(POD_ID, spec, pod_paths(spec), host_v2(), "/pycri")
    assert [pin.kind for pin in sandbox.pins] == ["user", "ipc"]
    assert sandbox.sysctls == ()


@pytest.mark.parametrize("network", [NamespaceMode.NODE, NamespaceMode.POD])
def test_privileged_makes_sys_writable_only_where_it_is_the_pod_s(network: NamespaceMode) -> None:
    modes = NamespaceModes(user=IDS, network=network)
    plan = plan_container(
        container_inputs(
            pod=pod_spec(namespaces=modes, privileged=True),
            security=ContainerSecurity(namespaces=modes, privileged=True),
        )
    )
    (sys,) = [s for s in plan.steps if isinstance(s, MountFilesystem) and s.filesystem == "sysfs"]
    assert ("ro" in sys.attributes) is (network is NamespaceMode.NODE)
