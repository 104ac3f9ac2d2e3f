# SPDX-License-Identifier: Apache-2.0
"""CreateContainerRequest to ContainerSpec: what passes, and the path named by what does not."""

import signal
from collections.abc import Callable

import pytest

from pycri.cri.api import runtime_v1_pb2 as pb
from pycri.cri.decode.container import decode_container_spec
from pycri.cri.signals import decode_signal, encode_signal
from pycri.errors import InvalidRequest
from pycri.model.container import Propagation
from pycri.model.security import NamespaceMode, ProfileType, SecurityProfile

Change = Callable[[pb.CreateContainerRequest], object]
CONTEXT = "config.linux.security_context"
LIMITS = "config.linux.resources"


def request() -> pb.CreateContainerRequest:
    """The kind of request a kubelet sends for an ordinary container."""
    message = pb.CreateContainerRequest(pod_sandbox_id="f" * 64)
    config = message.config
    config.metadata.name = "app"
    config.metadata.attempt = 3
    config.image.image = "sha256:" + "a" * 64
    config.image.user_specified_image = "example.test/app:1"
    config.command.append("/bin/app")
    config.args.extend(["--flag", ""])
    config.envs.add(key="KEY", value=b"\xff=value")
    config.mounts.add(
        container_path="/data", host_path="/srv", propagation=pb.PROPAGATION_HOST_TO_CONTAINER
    )
    config.mounts.add(
        container_path="/ro", host_path="/srv", readonly=True, recursive_read_only=True
    )
    config.devices.add(container_path="/dev/x", host_path="/dev/null", permissions="mrw")
    config.log_path = "app/3.log"
    config.stop_signal = pb.SIGNAL_SIGUSR1
    config.linux.resources.cpu_period = 100_000
    config.linux.resources.cpu_quota = 50_000
    config.linux.resources.hugepage_limits.add(page_size="2MB", limit=0)
    config.linux.resources.unified["memory.oom.group"] = "1"
    context = config.linux.security_context
    context.namespace_options.pid = pb.CONTAINER
    context.namespace_options.userns_options.mode = pb.NODE
    context.capabilities.add_capabilities.extend(["net_admin", "CAP_SYS_TIME"])
    context.capabilities.drop_capabilities.append("all")
    context.seccomp.profile_type = pb.SecurityProfile.RuntimeDefault
    context.masked_paths.append("/proc/kcore")
    context.run_as_user.value = 0
    context.run_as_group.value = 7
    return message


def test_an_ordinary_request_of_the_kubelet_becomes_a_spec() -> None:
    spec = decode_container_spec(request())
    assert spec.env == (("KEY", b"\xff=value"),)
    assert spec.args == ("--flag", "")
    assert spec.mounts[0].propagation is Propagation.HOST_TO_CONTAINER
    assert spec.mounts[1].recursive_read_only
    assert spec.stop_signal == signal.SIGUSR1
    security = spec.security
    assert security.namespaces.pid is NamespaceMode.CONTAINER
    assert security.add_capabilities == ("CAP_NET_ADMIN", "CAP_SYS_TIME")
    assert security.drop_capabilities == ("ALL",)
    assert security.seccomp == SecurityProfile(type=ProfileType.RUNTIME_DEFAULT)
    assert (security.run_as_user, security.run_as_group) == (0, 7)


def test_absence_of_a_user_differs_from_user_zero() -> None:
    message = request()
    context = message.config.linux.security_context
    context.ClearField("run_as_user")
    context.ClearField("run_as_group")
    security = decode_container_spec(message).security
    assert (security.run_as_user, security.run_as_group) == (None, None)


def test_a_privileged_container_is_unconfined_whatever_its_profile() -> None:
    message = request()
    context = message.config.linux.security_context
    context.privileged = True
    context.seccomp.profile_type = pb.SecurityProfile.Localhost
    assert decode_container_spec(message).security.seccomp is None


@pytest.mark.parametrize(
    ("text", "profile"),
    [
        ("", None),
        ("runtime/default", ProfileType.RUNTIME_DEFAULT),
        ("docker/default", ProfileType.RUNTIME_DEFAULT),
        ("unconfined", ProfileType.UNCONFINED),
    ],
)
def test_the_deprecated_profile_strings_are_understood(
    text: str, profile: ProfileType | None
) -> None:
    message = request()
    context = message.config.linux.security_context
    context.ClearField("seccomp")
    context.seccomp_profile_path = text
    context.apparmor_profile = text
    security = decode_container_spec(message).security
    expected = SecurityProfile(type=profile) if profile else None
    assert (security.seccomp, security.apparmor) == (expected, expected)


@pytest.mark.parametrize("prefix", ["", "localhost/"])
def test_profiles_of_the_node_are_named_in_old_fields_and_new(prefix: str) -> None:
    message = request()
    context = message.config.linux.security_context
    context.ClearField("seccomp")
    context.seccomp_profile_path = "localhost//var/lib/kubelet/seccomp/p.json"
    context.apparmor_profile = "localhost/my-profile"
    old = decode_container_spec(message).security
    context.seccomp.profile_type = context.apparmor.profile_type = pb.SecurityProfile.Localhost
    context.seccomp.localhost_ref = f"{prefix}/var/lib/kubelet/seccomp/p.json"
    context.apparmor.localhost_ref = f"{prefix}my-profile"
    context.seccomp_profile_path = context.apparmor_profile = "unconfined"
    new = decode_container_spec(message).security
    kind = ProfileType.LOCALHOST
    path = "/var/lib/kubelet/seccomp/p.json"
    assert old.seccomp == new.seccomp == SecurityProfile(type=kind, localhost_ref=path)
    assert old.apparmor == new.apparmor == SecurityProfile(type=kind, localhost_ref="my-profile")


def test_a_label_has_the_usual_parts_where_none_are_given() -> None:
    message = request()
    assert decode_container_spec(message).security.selinux_label == ""
    message.config.linux.security_context.selinux_options.level = "s0:c1,c2"
    label = decode_container_spec(message).security.selinux_label
    assert label == "system_u:system_r:container_t:s0:c1,c2"


def merge(**config: object) -> Change:
    """Merge fields of ContainerConfig into the request."""
    return lambda m: m.config.MergeFrom(pb.ContainerConfig(**config))  # type: ignore[arg-type]


def mount(**fields: object) -> Change:
    """Add a third mount, good but for the fields given."""
    given = {"container_path": "/m", "host_path": "/srv", **fields}
    return merge(mounts=[pb.Mount(**given)])  # type: ignore[arg-type]


def device(**fields: object) -> Change:
    given = {"container_path": "/dev/y", "host_path": "/dev/null", "permissions": "r", **fields}
    return merge(devices=[pb.Device(**given)])  # type: ignore[arg-type]


def limits(**fields: object) -> Change:
    resources = pb.LinuxContainerResources(**fields)  # type: ignore[arg-type]
    return merge(linux=pb.LinuxContainerConfig(resources=resources))


def security(**fields: object) -> Change:
    context = pb.LinuxContainerSecurityContext(**fields)  # type: ignore[arg-type]
    return merge(linux=pb.LinuxContainerConfig(security_context=context))


def localhost(name: str) -> pb.SecurityProfile:
    return pb.SecurityProfile(profile_type=pb.SecurityProfile.Localhost, localhost_ref=name)


def group_without_user(message: pb.CreateContainerRequest) -> None:
    message.config.linux.security_context.ClearField("run_as_user")


def name_like(name: str) -> Change:
    def change(message: pb.CreateContainerRequest) -> None:
        group_without_user(message)
        message.config.linux.security_context.run_as_username = name

    return change


INVALID: list[tuple[Change, str]] = [
    (lambda m: m.ClearField("config"), "config"),
    (lambda m: m.config.ClearField("metadata"), "config.metadata"),
    (lambda m: m.config.metadata.ClearField("name"), "config.metadata.name"),
    (lambda m: m.config.ClearField("image"), "config.image.image"),
    (merge(image=pb.ImageSpec(image="a b")), "config.image.image"),
    (merge(image=pb.ImageSpec(runtime_handler="x")), "config.image.runtime_handler"),
    (merge(command=["a\0b"]), "config.command[1]"),
    (merge(args=["a\0b"]), "config.args[2]"),
    (merge(working_dir="here"), "config.working_dir"),
    (merge(envs=[pb.KeyValue(value=b"x")]), "config.envs[1].key"),
    (merge(envs=[pb.KeyValue(key="A=B")]), "config.envs[1].key"),
    (merge(envs=[pb.KeyValue(key="A", value=b"\0")]), "config.envs[1].value"),
    (mount(container_path=""), "config.mounts[2].container_path"),
    (mount(container_path="x"), "config.mounts[2].container_path"),
    (mount(container_path="//"), "config.mounts[2].container_path"),
    (mount(host_path=""), "config.mounts[2].host_path"),
    (mount(host_path="x"), "config.mounts[2].host_path"),
    (mount(propagation=3), "config.mounts[2].propagation"),
    (mount(recursive_read_only=True), "config.mounts[2].recursive_read_only"),
    (
        mount(recursive_read_only=True, readonly=True, propagation=pb.PROPAGATION_BIDIRECTIONAL),
        "config.mounts[2].recursive_read_only",
    ),
    (device(permissions=""), "config.devices[1].permissions"),
    (device(permissions="rx"), "config.devices[1].permissions"),
    (device(host_path="null"), "config.devices[1].host_path"),
    (device(container_path=""), "config.devices[1].container_path"),
    (lambda m: setattr(m.config, "log_path", "/abs.log"), "config.log_path"),
    (lambda m: setattr(m.config, "log_path", "../x.log"), "config.log_path"),
    (merge(stop_signal=99), "config.stop_signal"),
    (limits(cpu_period=999), f"{LIMITS}.cpu_period"),
    (limits(cpu_quota=-2), f"{LIMITS}.cpu_quota"),
    (limits(cpu_quota=10), f"{LIMITS}.cpu_quota"),
    (limits(cpu_shares=-1), f"{LIMITS}.cpu_shares"),
    (limits(memory_limit_in_bytes=-1), f"{LIMITS}.memory_limit_in_bytes"),
    (
        limits(memory_limit_in_bytes=2, memory_swap_limit_in_bytes=1),
        f"{LIMITS}.memory_swap_limit_in_bytes",
    ),
    (limits(oom_score_adj=1001), f"{LIMITS}.oom_score_adj"),
    (limits(cpuset_cpus="0-"), f"{LIMITS}.cpuset_cpus"),
    (limits(cpuset_mems="a"), f"{LIMITS}.cpuset_mems"),
    (
        limits(hugepage_limits=[pb.HugepageLimit(page_size="big")]),
        f"{LIMITS}.hugepage_limits[1].page_size",
    ),
    (
        limits(hugepage_limits=[pb.HugepageLimit(page_size="2MB", limit=2**63)]),
        f"{LIMITS}.hugepage_limits[1].limit",
    ),
    (limits(unified={"../x.y": "1"}), f"{LIMITS}.unified"),
    (group_without_user, f"{CONTEXT}.run_as_group"),
    (security(run_as_user=pb.Int64Value(value=-5)), f"{CONTEXT}.run_as_user"),
    (security(run_as_group=pb.Int64Value(value=2**40)), f"{CONTEXT}.run_as_group"),
    (security(run_as_username="x"), f"{CONTEXT}.run_as_username"),
    (name_like("a:b"), f"{CONTEXT}.run_as_username"),
    (security(supplemental_groups=[1, 2**32]), f"{CONTEXT}.supplemental_groups[1]"),
    (
        security(capabilities=pb.Capability(add_capabilities=["NET-ADMIN"])),
        f"{CONTEXT}.capabilities.add_capabilities[2]",
    ),
    (security(masked_paths=["proc"]), f"{CONTEXT}.masked_paths[1]"),
    (security(readonly_paths=[""]), f"{CONTEXT}.readonly_paths[0]"),
    (security(seccomp=pb.SecurityProfile(profile_type=5)), f"{CONTEXT}.seccomp.profile_type"),  # type: ignore[arg-type]
    (security(seccomp=localhost("mine")), f"{CONTEXT}.seccomp.localhost_ref"),
    (security(seccomp=localhost("")), f"{CONTEXT}.seccomp.localhost_ref"),
    (security(apparmor=localhost("")), f"{CONTEXT}.apparmor.localhost_ref"),
    (security(apparmor_profile="mine"), f"{CONTEXT}.apparmor_profile"),
    (security(apparmor_profile="localhost/"), f"{CONTEXT}.apparmor_profile"),
    (security(selinux_options=pb.SELinuxOption(type="a b")), f"{CONTEXT}.selinux_options.type"),
    (mount(uidMappings=[pb.IDMapping(length=1)]), "config.mounts[2].gidMappings"),
    (
        security(namespace_options=pb.NamespaceOption(pid=pb.TARGET)),
        f"{CONTEXT}.namespace_options.target_id",
    ),
]


@pytest.mark.parametrize(("change", "field"), INVALID)
def test_a_wrong_field_is_named_by_its_path(change: Change, field: str) -> None:
    message = request()
    change(message)
    with pytest.raises(InvalidRequest) as caught:
        decode_container_spec(message)
    assert caught.value.field == field


def test_an_error_never_quotes_the_environment() -> None:
    message = request()
    message.config.envs.add(key="TOKEN=", value=b"hunter2\0")
    with pytest.raises(InvalidRequest) as caught:
        decode_container_spec(message)
    assert "hunter2" not in str(caught.value)
    assert "TOKEN" not in str(caught.value)


def test_every_signal_name_has_the_kernels_number_and_comes_back() -> None:
    numbers = {name: decode_signal(value, "") for name, value in pb.Signal.items()}
    assert numbers["SIGNAL_RUNTIME_DEFAULT"] == 0
    assert numbers["SIGNAL_SIGTERM"] == 15
    assert numbers["SIGNAL_SIGRTMINPLUS3"] == signal.SIGRTMIN + 3
    assert numbers["SIGNAL_SIGRTMAXMINUS14"] == signal.SIGRTMAX - 14
    assert numbers["SIGNAL_SIGCLD"] == numbers["SIGNAL_SIGCHLD"]
    assert set(numbers.values()) >= {
        s.value for s in signal.valid_signals() if isinstance(s, signal.Signals)
    }
    for number in set(numbers.values()):
        assert decode_signal(encode_signal(number), "") == number
