# SPDX-License-Identifier: Apache-2.0
"""RunPodSandboxRequest to PodSpec: what passes, and the path named by what does not."""

from collections.abc import Callable

import pytest

from pycri.cri.api import runtime_v1_pb2 as pb
from pycri.cri.decode.pod import decode_pod_spec
from pycri.errors import InvalidRequest
from pycri.model.pod import DnsConfig, Protocol
from pycri.model.security import NamespaceMode

Change = Callable[[pb.RunPodSandboxRequest], object]
CONTEXT = "config.linux.security_context"


def request() -> pb.RunPodSandboxRequest:
    """The kind of request a kubelet sends for an ordinary pod."""
    message = pb.RunPodSandboxRequest()
    config = message.config
    config.metadata.name = "web"
    config.metadata.uid = "0e9b"
    config.metadata.namespace = "default"
    config.hostname = "web"
    config.log_directory = "/var/log/pods/default_web_0e9b"
    config.dns_config.servers.append("10.96.0.10")
    config.dns_config.searches.append("default.svc.cluster.local")
    config.dns_config.options.append("ndots:5")
    config.port_mappings.add(protocol=pb.UDP, container_port=53)
    config.labels["app"] = "web"
    config.annotations["note"] = "two\nlines"
    config.linux.cgroup_parent = "/kubepods/besteffort/pod0e9b"
    config.linux.sysctls["net.ipv4.ip_local_port_range"] = "1024\t65535"
    config.linux.resources.cpu_shares = 2
    context = config.linux.security_context
    context.namespace_options.pid = pb.CONTAINER
    context.namespace_options.userns_options.mode = pb.NODE
    context.seccomp.profile_type = pb.SecurityProfile.RuntimeDefault
    return message


def test_an_ordinary_request_of_the_kubelet_becomes_a_spec() -> None:
    spec = decode_pod_spec(request())
    assert (spec.metadata.name, spec.metadata.attempt) == ("web", 0)
    assert spec.dns == DnsConfig(
        servers=("10.96.0.10",), searches=("default.svc.cluster.local",), options=("ndots:5",)
    )
    assert spec.port_mappings[0].protocol is Protocol.UDP
    assert spec.namespaces.pid is NamespaceMode.CONTAINER
    assert spec.sysctls == {"net.ipv4.ip_local_port_range": "1024 65535"}
    assert spec.annotations == {"note": "two\nlines"}
    assert spec.resources is not None
    assert spec.resources.cpu_shares == 2
    assert spec.overhead is None


@pytest.mark.parametrize(
    ("name", "hostname"),
    [
        ("web", "web"),
        ("a_b c", "a-b-c"),
        ("x" * 80, "x" * 63),
        ("y" * 62 + ".z", "y" * 62),
        ("---", "pod"),
    ],
)
def test_a_missing_hostname_is_made_of_the_pods_name(name: str, hostname: str) -> None:
    message = request()
    message.config.hostname = ""
    message.config.metadata.name = name
    assert decode_pod_spec(message).hostname == hostname


def test_a_host_network_pod_may_have_no_hostname_and_host_ports() -> None:
    message = request()
    message.config.hostname = ""
    message.config.linux.sysctls.clear()
    message.config.linux.security_context.namespace_options.network = pb.NODE
    message.config.port_mappings.add(container_port=80, host_port=80)
    spec = decode_pod_spec(message)
    assert spec.hostname == ""
    assert spec.port_mappings[1].host_port == 80


def test_an_empty_dns_config_means_the_hosts() -> None:
    message = request()
    message.config.dns_config.Clear()
    assert decode_pod_spec(message).dns is None


def set_userns(mode: pb.NamespaceMode.ValueType, *, mapped: bool = False) -> Change:
    def change(message: pb.RunPodSandboxRequest) -> None:
        context = message.config.linux.security_context
        options = context.namespace_options.userns_options
        options.mode = mode
        if mapped:
            options.uids.add(host_id=1 << 16, container_id=0, length=1 << 16)

    return change


def host_network(message: pb.RunPodSandboxRequest) -> None:
    message.config.linux.security_context.namespace_options.network = pb.NODE


def sysctl(name: str, value: str = "1") -> Change:
    return lambda m: m.config.linux.sysctls.update({name: value})


def merge(**config: object) -> Change:
    """Merge fields of PodSandboxConfig into the request."""
    return lambda m: m.config.MergeFrom(pb.PodSandboxConfig(**config))  # type: ignore[arg-type]


def linux(**fields: object) -> Change:
    return merge(linux=pb.LinuxPodSandboxConfig(**fields))  # type: ignore[arg-type]


def security(**fields: object) -> Change:
    context = pb.LinuxSandboxSecurityContext(**fields)  # type: ignore[arg-type]
    return linux(security_context=context)


def namespaces(**fields: object) -> Change:
    return security(namespace_options=pb.NamespaceOption(**fields))  # type: ignore[arg-type]


INVALID: list[tuple[Change, str]] = [
    (lambda m: m.ClearField("config"), "config"),
    (lambda m: m.config.ClearField("metadata"), "config.metadata"),
    (lambda m: m.config.metadata.ClearField("name"), "config.metadata.name"),
    (lambda m: m.config.metadata.ClearField("uid"), "config.metadata.uid"),
    (lambda m: m.config.metadata.ClearField("namespace"), "config.metadata.namespace"),
    (merge(metadata=pb.PodSandboxMetadata(name="a\nb")), "config.metadata.name"),
    (lambda m: setattr(m, "runtime_handler", "kata"), "runtime_handler"),
    (merge(hostname="a b"), "config.hostname"),
    (merge(hostname="h" * 65), "config.hostname"),
    (merge(hostname="-h"), "config.hostname"),
    (merge(log_directory="var/log"), "config.log_directory"),
    (merge(log_directory="/a\0b"), "config.log_directory"),
    (merge(dns_config=pb.DNSConfig(servers=["dns"])), "config.dns_config.servers[1]"),
    (merge(dns_config=pb.DNSConfig(searches=["a b"])), "config.dns_config.searches[1]"),
    (merge(dns_config=pb.DNSConfig(options=["x\ny"])), "config.dns_config.options[1]"),
    (
        merge(port_mappings=[pb.PortMapping(container_port=0)]),
        "config.port_mappings[1].container_port",
    ),
    (
        merge(port_mappings=[pb.PortMapping(container_port=1, host_port=65536)]),
        "config.port_mappings[1].host_port",
    ),
    (
        merge(port_mappings=[pb.PortMapping(container_port=1, host_ip="x")]),
        "config.port_mappings[1].host_ip",
    ),
    (
        merge(port_mappings=[pb.PortMapping(container_port=1, protocol=9)]),  # type: ignore[arg-type]
        "config.port_mappings[1].protocol",
    ),
    (linux(cgroup_parent="kubepods/x"), "config.linux.cgroup_parent"),
    (linux(cgroup_parent="/a/../b"), "config.linux.cgroup_parent"),
    (sysctl("kernel.panic"), "config.linux.sysctls[kernel.panic]"),
    (sysctl("net/../kernel/panic"), "config.linux.sysctls[net/../kernel/panic]"),
    (sysctl("net..x"), "config.linux.sysctls[net..x]"),
    (sysctl("net.core.somaxconn", "1\n2"), "config.linux.sysctls[net.core.somaxconn]"),
    (host_network, "config.linux.sysctls[net.ipv4.ip_local_port_range]"),
    (security(run_as_group=pb.Int64Value(value=1)), f"{CONTEXT}.run_as_group"),
    (security(run_as_user=pb.Int64Value(value=-1)), f"{CONTEXT}.run_as_user"),
    (security(run_as_user=pb.Int64Value(value=2**32 - 1)), f"{CONTEXT}.run_as_user"),
    (security(supplemental_groups=[-1]), f"{CONTEXT}.supplemental_groups[0]"),
    (security(supplemental_groups_policy=7), f"{CONTEXT}.supplemental_groups_policy"),
    (namespaces(network=pb.CONTAINER), f"{CONTEXT}.namespace_options.network"),
    (namespaces(ipc=pb.TARGET), f"{CONTEXT}.namespace_options.ipc"),
    (namespaces(pid=pb.TARGET, target_id="x"), f"{CONTEXT}.namespace_options.pid"),
    (namespaces(target_id="x"), f"{CONTEXT}.namespace_options.target_id"),
    (namespaces(pid=8), f"{CONTEXT}.namespace_options.pid"),
    (set_userns(pb.CONTAINER), f"{CONTEXT}.namespace_options.userns_options.mode"),
    (set_userns(pb.NODE, mapped=True), f"{CONTEXT}.namespace_options.userns_options.uids"),
    (set_userns(pb.POD), f"{CONTEXT}.namespace_options.userns_options.uids"),
    (set_userns(pb.POD, mapped=True), f"{CONTEXT}.namespace_options.userns_options.gids"),
]


@pytest.mark.parametrize(("change", "field"), INVALID)
def test_a_wrong_field_is_named_by_its_path(change: Change, field: str) -> None:
    message = request()
    change(message)
    with pytest.raises(InvalidRequest) as caught:
        decode_pod_spec(message)
    assert caught.value.field == field


@pytest.mark.parametrize("parent", ["kubepods-pod1.slice", "/kubepods.slice/kubepods-pod1.slice"])
def test_a_parent_may_be_the_name_of_a_slice_or_its_path(parent: str) -> None:
    message = request()
    message.config.linux.cgroup_parent = parent
    assert decode_pod_spec(message).cgroup_parent == parent
