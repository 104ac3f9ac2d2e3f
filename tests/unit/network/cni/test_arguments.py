# SPDX-License-Identifier: Apache-2.0
from ipaddress import ip_network

import msgspec
import pytest

from pycri.errors import InvalidRequest
from pycri.model.ids import PodId
from pycri.model.pod import DnsConfig, PodMetadata, PodSpec, PortMapping, Protocol
from pycri.network.cni.arguments import (
    list_arguments,
    make_capability_arguments,
    parse_networks,
)

SPEC = PodSpec(metadata=PodMetadata(name="web", uid="u", namespace="shop"))

ANNOTATIONS = {
    "kubernetes.io/egress-bandwidth": "1Ki",
    "network.pycri/mac": "02:00:00:00:00:50",
    "network.pycri/addresses": "10.5.0.9, fd05::9",
}


def test_plugins_are_told_the_pods_names() -> None:
    assert dict(list_arguments(PodId("abc"), SPEC)) == {
        "IgnoreUnknown": "1",
        "K8S_POD_NAMESPACE": "shop",
        "K8S_POD_NAME": "web",
        "K8S_POD_INFRA_CONTAINER_ID": "abc",
        "K8S_POD_UID": "u",
    }


def test_a_name_that_would_add_an_argument_is_refused() -> None:
    metadata = PodMetadata(name="web;IP=10.0.0.1", uid="u", namespace="shop")
    with pytest.raises(InvalidRequest) as caught:
        list_arguments(PodId("abc"), msgspec.structs.replace(SPEC, metadata=metadata))
    assert caught.value.field == "config.metadata.name"


def test_a_plain_pod_asks_for_little() -> None:
    assert make_capability_arguments(SPEC, []) == {"aliases": ["web"]}


def test_every_wish_has_its_capability() -> None:
    spec = msgspec.structs.replace(
        SPEC,
        dns=DnsConfig(servers=("10.0.0.10",), searches=("local",)),
        port_mappings=(
            PortMapping(container_port=80, host_port=8080),
            PortMapping(container_port=53, host_port=53, protocol=Protocol.UDP, host_ip="::1"),
            PortMapping(container_port=90),
        ),
        annotations=ANNOTATIONS,
        cgroup_parent="/kubepods/pod1",
    )
    assert make_capability_arguments(spec, [ip_network("10.5.0.0/16")]) == {
        "portMappings": [
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "::1"},
        ],
        "bandwidth": {"egressRate": 1024, "egressBurst": 2**32 - 1},
        "dns": {"servers": ["10.0.0.10"], "searches": ["local"], "options": []},
        "ipRanges": [[{"subnet": "10.5.0.0/16"}]],
        "cgroupPath": "/kubepods/pod1",
        "aliases": ["web"],
        "mac": "02:00:00:00:00:50",
        "ips": ["10.5.0.9", "fd05::9"],
        "io.kubernetes.cri.pod-annotations": ANNOTATIONS,
    }


def test_networks_are_named_in_an_annotation() -> None:
    assert parse_networks({}) == ()
    assert parse_networks({"network.pycri/networks": " a, b,,"}) == ("a", "b")
