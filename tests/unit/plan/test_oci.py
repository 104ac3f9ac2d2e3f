# SPDX-License-Identifier: Apache-2.0
"""Plans as OCI config.json; tests/conformance runs them."""

from typing import Any

import msgspec
import pytest

from pycri.errors import Unsupported
from pycri.model.container import Mount, Propagation
from pycri.model.hooks import Hook, Hooks
from pycri.model.host import HostFacts
from pycri.model.image import ImageConfig
from pycri.model.plan import (
    BindMount,
    ContainerPlan,
    DeviceRule,
    HookPlan,
    JoinUserNamespace,
    MakeSymlink,
    MountImage,
    ProcessPlan,
)
from pycri.model.resources import HugepageLimit, Resources
from pycri.model.seccomp import SeccompProgram
from pycri.model.security import (
    ContainerSecurity,
    IdMapping,
    IdMappings,
    NamespaceMode,
    NamespaceModes,
    User,
)
from pycri.plan.container import ContainerInputs, plan_container
from pycri.plan.oci import Bundle, render_config
from pycri.plan.seccomp import select_rules
from pycri.plan.seccomp_default import default_profile
from tests.unit.plan.samples import container_inputs, container_spec, host_v1, host_v2, pod_spec

BUNDLE = Bundle(rootfs="/bundle/root", cgroup="/pycri/pod/ctr", pid_namespace="/proc/7/ns/pid")
CGROUP_MOUNT = "/sys/fs/cgroup"
LIMITS = Resources(
    cpu_period_us=100_000,
    cpu_quota_us=50_000,
    cpu_shares=512,
    memory_limit_bytes=64 << 20,
    cpuset_cpus="0-1",
)


def render(inputs: ContainerInputs) -> dict[str, Any]:
    return render_plan(plan_container(inputs))


def render_plan(plan: ContainerPlan) -> dict[str, Any]:
    config: dict[str, Any] = msgspec.json.decode(render_config(plan, BUNDLE))
    return config


def mounts_at(config: dict[str, Any], target: str) -> list[dict[str, Any]]:
    return [mount for mount in config["mounts"] if mount["destination"] == target]


def test_the_process_is_the_plan_s() -> None:
    spec = container_spec(env=(("COLOUR", "grün".encode()),), resources=Resources(oom_score_adj=7))
    config = render(container_inputs(spec=spec, user=User(uid=5, gid=6, groups=(6, 7))))
    process = config["process"]
    assert process["args"] == ["/entrypoint", "serve"]
    assert "COLOUR=grün" in process["env"]
    assert process["user"] == {"uid": 5, "gid": 6, "umask": 0o022, "additionalGids": [6, 7]}
    assert process["oomScoreAdj"] == 7
    assert "CAP_CHOWN" in process["capabilities"]["bounding"]
    assert process["capabilities"]["ambient"] == []
    assert config["root"] == {"path": "/bundle/root", "readonly": False}


def test_limits_of_a_process_have_their_names() -> None:
    plan = plan_container(container_inputs())
    limited = msgspec.structs.replace(plan.process, rlimits=(("nofile", 10, 20),))
    config = render_plan(msgspec.structs.replace(plan, process=limited))
    assert config["process"]["rlimits"] == [{"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20}]


def test_a_variable_that_is_not_utf_8_is_refused_without_being_shown() -> None:
    spec = container_spec(env=(("KEY", b"secret\xff"),))
    with pytest.raises(Unsupported) as caught:
        render(container_inputs(spec=spec))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("host", [host_v1(), host_v2()], ids=["v1", "v2"])
def test_the_group_s_hierarchies_are_one_mount(host: HostFacts) -> None:
    config = render(container_inputs(host=host))
    (mount,) = mounts_at(config, CGROUP_MOUNT)
    assert mount["type"] == "cgroup"
    assert mount["options"].count("ro") == 1
    assert not [m for m in config["mounts"] if m["destination"].startswith(f"{CGROUP_MOUNT}/")]
    assert config["linux"]["cgroupsPath"] == "/pycri/pod/ctr"


def test_limits_of_version_1_have_their_fields() -> None:
    mounts = host_v1().cgroup1_mounts | {
        name: f"/sys/fs/cgroup/{name}" for name in ("cpuset", "hugetlb")
    }
    controllers = host_v1().cgroup_controllers | {"cpuset", "hugetlb"}
    host = host_v1(cgroup1_mounts=mounts, cgroup_controllers=controllers)
    pages = (HugepageLimit(page_size="2MB", limit_bytes=4 << 20),)
    limits = msgspec.structs.replace(LIMITS, hugepage_limits=pages)
    resources = render(container_inputs(spec=container_spec(resources=limits), host=host))["linux"][
        "resources"
    ]
    assert resources["cpu"] == {"shares": 512, "period": 100_000, "quota": 50_000, "cpus": "0-1"}
    assert resources["memory"] == {"limit": 64 << 20, "swap": 64 << 20}
    assert resources["hugepageLimits"] == [{"pageSize": "2MB", "limit": 4 << 20}]


def test_limits_of_version_2_are_written_as_they_are() -> None:
    config = render(container_inputs(spec=container_spec(resources=LIMITS)))
    unified = config["linux"]["resources"]["unified"]
    assert unified["cpu.max"] == "50000 100000"
    assert unified["memory.max"] == str(64 << 20)


def test_a_write_that_oci_has_no_field_for_is_refused() -> None:
    plan = plan_container(container_inputs(host=host_v1()))
    cgroup = msgspec.structs.replace(plan.cgroup, writes=(("/a/memory.swappiness", "1"),))
    with pytest.raises(Unsupported, match=r"memory\.swappiness"):
        render_plan(msgspec.structs.replace(plan, cgroup=cgroup))


def test_devices_are_denied_before_any_is_allowed() -> None:
    plan = plan_container(container_inputs())
    rules = (DeviceRule(kind="c", major=10, minor=None, access="rw"),)
    cgroup = msgspec.structs.replace(plan.cgroup, device_rules=rules)
    config = render_plan(msgspec.structs.replace(plan, cgroup=cgroup))
    assert config["linux"]["resources"]["devices"] == [
        {"allow": False, "access": "rwm"},
        {"allow": True, "type": "c", "access": "rw", "major": 10},
    ]


def test_namespaces_are_made_or_joined() -> None:
    def kinds(mode: NamespaceMode, pod_mode: NamespaceMode) -> dict[str, str | None]:
        inputs = container_inputs(
            pod=pod_spec(namespaces=NamespaceModes(pid=pod_mode)),
            security=ContainerSecurity(namespaces=NamespaceModes(pid=mode)),
        )
        return {ns["type"]: ns.get("path") for ns in render(inputs)["linux"]["namespaces"]}

    own = kinds(NamespaceMode.CONTAINER, NamespaceMode.CONTAINER)
    assert own.pop("network") == "/run/pycri/ns/pod/net"
    assert own["pid"] is None
    assert own["mount"] is None
    assert own["cgroup"] is None
    assert kinds(NamespaceMode.POD, NamespaceMode.POD)["pid"] == "/proc/7/ns/pid"
    assert "pid" not in kinds(NamespaceMode.NODE, NamespaceMode.NODE)


def test_a_bind_keeps_its_options_and_the_root_lets_its_mounts_through() -> None:
    mounts = (
        Mount(container_path="/a", host_path="/x", readonly=True, recursive_read_only=True),
        Mount(container_path="/b", host_path="/y", propagation=Propagation.HOST_TO_CONTAINER),
    )
    config = render(container_inputs(spec=container_spec(mounts=mounts)))
    assert mounts_at(config, "/a")[0]["options"] == ["rbind", "rro", "rprivate"]
    assert mounts_at(config, "/b")[0]["options"] == ["rbind", "rslave"]
    assert config["linux"]["rootfsPropagation"] == "rslave"


def test_a_volume_of_the_image_below_a_read_only_root_is_no_bind_within_the_root() -> None:
    """A host path inside the root would follow the image's links out of it (CVE-2022-23648)."""
    config = render(
        container_inputs(
            image=ImageConfig(cmd=("x",), volumes=("/cache",)),
            security=ContainerSecurity(readonly_rootfs=True, masked_paths=("/proc/kcore",)),
        )
    )
    (mount,) = mounts_at(config, "/cache")
    assert (mount["type"], mount["options"]) == ("tmpfs", ["tmpcopyup"])
    assert config["root"]["readonly"]
    assert config["linux"]["maskedPaths"] == ["/proc/kcore"]


def test_a_link_that_no_oci_runtime_makes_is_refused() -> None:
    plan = plan_container(container_inputs())
    steps = (*plan.steps, MakeSymlink(path="/dev/other", destination="null"))
    with pytest.raises(Unsupported, match="/dev/other"):
        render_plan(msgspec.structs.replace(plan, steps=steps))


def test_seccomp_rules_come_from_what_the_program_was_compiled_from() -> None:
    plan = plan_container(container_inputs())
    process = msgspec.structs.replace(plan.process, seccomp=SeccompProgram(instructions=b""))
    plan = msgspec.structs.replace(plan, process=process)
    with pytest.raises(Unsupported, match="seccomp"):
        render_plan(plan)
    rules = select_rules(default_profile(), frozenset(), "amd64", (6, 12))
    config = msgspec.json.decode(
        render_config(plan, msgspec.structs.replace(BUNDLE, seccomp=rules))
    )
    seccomp = config["linux"]["seccomp"]
    assert seccomp["defaultAction"] == "SCMP_ACT_ERRNO"
    assert seccomp["defaultErrnoRet"] == rules.default_errno
    assert len(seccomp["syscalls"]) == len(rules.rules)
    conditional = [rule for rule in seccomp["syscalls"] if rule["args"]]
    assert set(conditional[0]["args"][0]) == {"index", "value", "valueTwo", "op"}


def test_a_user_namespace_is_joined_and_its_ids_are_told() -> None:
    lines = (IdMapping(host_id=100_000, container_id=0, length=65536),)
    ids = IdMappings(uids=lines, gids=lines)
    plan = plan_container(container_inputs())
    plan = msgspec.structs.replace(
        plan,
        user_namespace=JoinUserNamespace(path="/pins/user", ids=ids),
        steps=(*plan.steps, BindMount(source="/x", target="/y", ids=ids)),
    )
    config = render_plan(plan)
    told = [{"containerID": 0, "hostID": 100_000, "size": 65536}]
    assert {"type": "user", "path": "/pins/user"} in config["linux"]["namespaces"]
    assert config["linux"]["uidMappings"] == config["linux"]["gidMappings"] == told
    assert mounts_at(config, "/y")[0]["uidMappings"] == told


def test_an_image_is_an_overlay_of_its_layers_and_a_part_of_one_is_refused() -> None:
    plan = plan_container(container_inputs())
    image = MountImage(layers=("/l/2", "/l/1"), target="/image", empty="/empty")
    config = render_plan(msgspec.structs.replace(plan, steps=(*plan.steps, image)))
    assert mounts_at(config, "/image")[0]["options"] == ["ro", "lowerdir=/l/2:/l/1:/empty"]
    part = msgspec.structs.replace(image, sub_path="etc")
    with pytest.raises(Unsupported, match="/etc of"):
        render_plan(msgspec.structs.replace(plan, steps=(*plan.steps, part)))


def test_hooks_are_rendered_by_when_they_are_run() -> None:
    first, last = Hook(path="/first", args=("first", "a")), Hook(path="/last", args=("last",))
    hooks = Hooks(create_runtime=(first,), poststop=(msgspec.structs.replace(last, timeout_s=3),))
    plan = msgspec.structs.replace(
        plan_container(container_inputs()), hooks=HookPlan(hooks=hooks, bundle="/b")
    )
    assert render_plan(plan)["hooks"] == {
        "createRuntime": [{"path": "/first", "args": ["first", "a"], "env": list(first.env)}],
        "poststop": [{"path": "/last", "args": ["last"], "env": list(last.env), "timeout": 3}],
    }
    assert "hooks" not in render_plan(plan_container(container_inputs()))


def test_every_field_of_a_plan_is_known_to_the_renderer() -> None:
    """A new field must be rendered, or be named here as one that OCI has no part in."""
    assert set(ProcessPlan.__struct_fields__) == {
        "args", "env", "cwd", "user", "capabilities", "no_new_privs", "terminal",
        "oom_score_adj", "rlimits", "seccomp", "apparmor_profile", "selinux_label",
    }  # fmt: skip
    # id, stdin and log_path are the caller's; pid_target is Bundle.pid_namespace.
    assert set(ContainerPlan.__struct_fields__) == {
        "id", "cgroup", "pid_namespace", "pid_target", "namespaces", "new_namespaces", "steps",
        "process", "stdin", "log_path", "user_namespace", "hooks",
    }  # fmt: skip
