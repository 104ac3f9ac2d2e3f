# SPDX-License-Identifier: Apache-2.0
"""PodSandboxConfig to PodSpec."""

import re

from pycri.cri.api import runtime_v1_pb2 as pb
from pycri.cri.decode import fields, resources, security
from pycri.cri.decode.handlers import decode_runtime_handler
from pycri.errors import InvalidRequest
from pycri.model.pod import DnsConfig, PodMetadata, PodSpec, PortMapping, Protocol
from pycri.model.security import NamespaceMode, NamespaceModes, SupplementalGroupsPolicy
from pycri.plan.sandbox import IPC_SYSCTLS

_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
"""Prefixes of what each ipc namespace has of its own; net/ is the net namespace's, sysctl(5)."""


def decode_pod_spec(message: pb.RunPodSandboxRequest) -> PodSpec:
    """Return the pod as asked."""
    handler = decode_runtime_handler(message.runtime_handler, "runtime_handler")
    if not message.HasField("config"):
        raise InvalidRequest("config", "is missing")
    config, linux = message.config, message.config.linux
    context = linux.security_context
    namespaces = _decode_security(context, "config.linux.security_context")
    metadata = _decode_metadata(config)
    return PodSpec(
        metadata=metadata,
        hostname=_decode_hostname(config.hostname, metadata, namespaces),
        log_directory=fields.absolute_or_empty(config.log_directory, "config.log_directory"),
        dns=_decode_dns(config.dns_config, "config.dns_config"),
        port_mappings=tuple(
            _decode_port(port, f"config.port_mappings[{i}]")
            for i, port in enumerate(config.port_mappings)
        ),
        labels=dict(config.labels),
        annotations=dict(config.annotations),
        cgroup_parent=_decode_cgroup_parent(linux.cgroup_parent, "config.linux.cgroup_parent"),
        sysctls={
            _sysctl_name(name, "config.linux.sysctls", namespaces): fields.one_line(
                value.replace("\t", " "), f"config.linux.sysctls[{name}]"
            )
            for name, value in linux.sysctls.items()
        },
        namespaces=namespaces,
        selinux_label=security.decode_selinux(
            context.selinux_options, "config.linux.security_context.selinux_options"
        ),
        privileged=context.privileged,
        overhead=resources.decode_resources(linux.overhead, "config.linux.overhead")
        if linux.HasField("overhead")
        else None,
        resources=resources.decode_resources(linux.resources, "config.linux.resources")
        if linux.HasField("resources")
        else None,
        runtime_handler=handler,
    )


def _decode_metadata(config: pb.PodSandboxConfig) -> PodMetadata:
    """Return the metadata; the kubelet rejects a status without any of the three texts."""
    if not config.HasField("metadata"):
        raise InvalidRequest("config.metadata", "is missing")
    return PodMetadata(
        name=fields.required(config.metadata.name, "config.metadata.name"),
        uid=fields.required(config.metadata.uid, "config.metadata.uid"),
        namespace=fields.required(config.metadata.namespace, "config.metadata.namespace"),
        attempt=config.metadata.attempt,
    )


def _decode_hostname(text: str, metadata: PodMetadata, namespaces: NamespaceModes) -> str:
    """Return the hostname; one that is missing is made of the pod's name, as Kubernetes does.

    64 bytes at most: __NEW_UTS_LEN of the kernel, sethostname(2).
    """
    if text and not _HOSTNAME.fullmatch(text):
        raise InvalidRequest("config.hostname", f"{text!r} is not a host name of 64 at most")
    if text or namespaces.network is NamespaceMode.NODE:
        return text
    made = re.sub(r"[^A-Za-z0-9.-]", "-", metadata.name).strip("-.")
    return made[:63].rstrip("-.") or "pod"


def _decode_dns(message: pb.DNSConfig, path: str) -> DnsConfig | None:
    """Return the lines of resolv.conf(5); all empty is none, which means the host's file."""
    if not (message.servers or message.searches or message.options):
        return None
    return DnsConfig(
        servers=tuple(
            fields.address(text, f"{path}.servers[{i}]") for i, text in enumerate(message.servers)
        ),
        searches=fields.words(message.searches, f"{path}.searches"),
        options=fields.words(message.options, f"{path}.options"),
    )


def _decode_port(message: pb.PortMapping, path: str) -> PortMapping:
    """Return a port mapping; with the host's network it means nothing."""
    return PortMapping(
        protocol=fields.choice(message.protocol, f"{path}.protocol", Protocol),
        container_port=fields.number(message.container_port, f"{path}.container_port", 1, 65535),
        host_port=fields.number(message.host_port, f"{path}.host_port", 0, 65535),
        host_ip=fields.address(message.host_ip, f"{path}.host_ip") if message.host_ip else "",
    )


def _decode_cgroup_parent(text: str, path: str) -> str:
    """Return a path below each hierarchy, or the name of a slice (`plan/cgroups.py`)."""
    if text.endswith(".slice") and "/" not in text:
        return fields.one_line(text, path)
    return fields.beneath(fields.absolute(text, path), path) if text else ""


def _sysctl_name(name: str, path: str, namespaces: NamespaceModes) -> str:
    """Return the name as given; refuse what is not the pod's own to set.

    The first separator tells which of the two forms of sysctl(8) it is.
    """
    dotted = re.match(r"[^./]*\.", name) is not None
    file = name.translate(str.maketrans("./", "/.")) if dotted else name
    place = f"{path}[{name}]"
    if not all(re.fullmatch(r"[A-Za-z0-9_.:@-]+", part) for part in file.split("/")):
        raise InvalidRequest(place, "is not the name of a sysctl")
    if {".", ".."} & set(file.split("/")):
        raise InvalidRequest(place, "is not the name of a sysctl")
    if file.startswith("net/"):
        owner, mode = "network", namespaces.network
    elif file.startswith(IPC_SYSCTLS):
        owner, mode = "ipc", namespaces.ipc
    else:
        raise InvalidRequest(place, "is not a namespaced sysctl")
    if mode is NamespaceMode.NODE:
        raise InvalidRequest(place, f"would change the host's: the pod has its {owner} namespace")
    return name


def _decode_security(message: pb.LinuxSandboxSecurityContext, path: str) -> NamespaceModes:
    """Return the namespaces and check the rest.

    Identity, groups and profiles are those of a process that holds the pod together; there is none
    but our own init, so they are checked and dropped.
    """
    if message.HasField("run_as_user"):
        security.decode_user_id(message.run_as_user, f"{path}.run_as_user")
    if message.HasField("run_as_group"):
        has_user = message.HasField("run_as_user")
        security.check_group(message.run_as_group, f"{path}.run_as_group", has_user=has_user)
    security.decode_groups(message.supplemental_groups, f"{path}.supplemental_groups")
    fields.choice(
        message.supplemental_groups_policy,
        f"{path}.supplemental_groups_policy",
        SupplementalGroupsPolicy,
    )
    return security.decode_namespaces(
        message.namespace_options, f"{path}.namespace_options", pod=True
    )
