# SPDX-License-Identifier: Apache-2.0
"""What plugins are told of a pod: CNI_ARGS for all, arguments for those that declare them. Pure.

Source: CNI CONVENTIONS.md; the names in CNI_ARGS are those that containerd and CRI-O give.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pycri.errors import InvalidRequest
from pycri.model.ids import PodId
from pycri.model.pod import PodSpec
from pycri.model.ranges import Network
from pycri.network.annotations import parse_addresses, parse_bandwidth, parse_mac
from pycri.network.cni.conflist import Json

UNLIMITED_BURST_BITS: Final = 2**32 - 1
"""A plugin wants a burst with a rate; the pod names none."""

NETWORKS: Final = "network.pycri/networks"
"""An annotation: "storage, backup", further networks of the folder by their names."""
MAIN_ONLY: Final = frozenset({"portMappings", "bandwidth", "ipRanges", "mac", "ips"})
"""Capabilities of the pod's main network; its other networks do not get these arguments."""


def parse_networks(annotations: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names of the pod's networks besides the default one, in their order."""
    names = annotations.get(NETWORKS, "").split(",")
    return tuple(name.strip() for name in names if name.strip())


def list_arguments(pod_id: PodId, spec: PodSpec) -> tuple[tuple[str, str], ...]:
    """Return the pairs of CNI_ARGS.

    Raises: InvalidRequest for a value that would end its pair.
    """
    metadata = spec.metadata
    pairs = (
        ("IgnoreUnknown", "1"),
        ("K8S_POD_NAMESPACE", metadata.namespace),
        ("K8S_POD_NAME", metadata.name),
        ("K8S_POD_INFRA_CONTAINER_ID", pod_id),
        ("K8S_POD_UID", metadata.uid),
    )
    for name, value in pairs:
        if ";" in value or "\0" in value:
            field = name.removeprefix("K8S_POD_").lower()
            raise InvalidRequest(f"config.metadata.{field}", f"CNI has no way to say {value!r}")
    return pairs


def make_capability_arguments(spec: PodSpec, ranges: Sequence[Network]) -> Json:
    """Return the arguments by capability; what the pod does not ask for is left out.

    ranges: of pod addresses, as UpdateRuntimeConfig said last. Raises: InvalidRequest.
    """
    dns = spec.dns
    arguments: dict[str, Any] = {
        "portMappings": [
            {
                "hostPort": port.host_port,
                "containerPort": port.container_port,
                "protocol": port.protocol.name.lower(),
                **({"hostIP": port.host_ip} if port.host_ip else {}),
            }
            for port in spec.port_mappings
            if port.host_port
        ],
        "bandwidth": _bandwidth(spec),
        "dns": dns
        and {
            "servers": list(dns.servers),
            "searches": list(dns.searches),
            "options": list(dns.options),
        },
        "ipRanges": [[{"subnet": str(network)}] for network in ranges],
        "cgroupPath": spec.cgroup_parent,
        "aliases": [spec.metadata.name],
        "mac": parse_mac(spec.annotations),
        "ips": [str(address) for address in parse_addresses(spec.annotations)],
        "io.kubernetes.cri.pod-annotations": spec.annotations,
    }
    return {name: value for name, value in arguments.items() if value}


def _bandwidth(spec: PodSpec) -> Json:
    limits = parse_bandwidth(spec.annotations)
    asked: Json = {}
    if limits.ingress_bits is not None:
        asked |= {"ingressRate": limits.ingress_bits, "ingressBurst": UNLIMITED_BURST_BITS}
    if limits.egress_bits is not None:
        asked |= {"egressRate": limits.egress_bits, "egressBurst": UNLIMITED_BURST_BITS}
    return asked
