# SPDX-License-Identifier: Apache-2.0
"""Ports of the host that lead to pods: which a pod asks for, and which exclude each other. Pure.

A host IP of "" is every address of the host, "0.0.0.0" every one of IPv4, "::" every one of IPv6.
A program of the host that listens on a mapped port is not asked: as under other runtimes, the
mapping comes before it.
"""

from collections.abc import Sequence
from ipaddress import ip_address

import msgspec

from pycri.errors import InvalidRequest
from pycri.model.pod import PodSpec, PortMapping


def host_ports_of(spec: PodSpec) -> tuple[PortMapping, ...]:
    """Return the mappings that take a port of the host, host IPs in one spelling.

    Raises: InvalidRequest if two of them exclude each other, or one cannot be.
    """
    found: list[PortMapping] = []
    for index, mapping in enumerate(spec.port_mappings):
        if not mapping.host_port:
            continue
        host_ip = str(ip_address(mapping.host_ip)) if mapping.host_ip else ""
        if host_ip == "::1":
            field = f"config.port_mappings[{index}].host_ip"
            raise InvalidRequest(field, "the kernel leads nothing from ::1 to a pod and back")
        mapping = msgspec.structs.replace(mapping, host_ip=host_ip)
        if any(exclude(mapping, other) for other in found):
            field = f"config.port_mappings[{index}].host_port"
            raise InvalidRequest(field, f"{name_of(mapping)} is asked for twice")
        found.append(mapping)
    return tuple(found)


def check_families(ports: Sequence[PortMapping], versions: frozenset[int]) -> None:
    """Raise InvalidRequest for a host IP of a family that pods have no address of."""
    for mapping in ports:
        if not families_of(mapping) & versions:
            reason = f"pods have no IPv{ip_address(mapping.host_ip).version} address"
            raise InvalidRequest("config.port_mappings.host_ip", f"{mapping.host_ip}: {reason}")


def families_of(mapping: PortMapping) -> frozenset[int]:
    """Return the IP versions that a mapping is for."""
    return frozenset((ip_address(mapping.host_ip).version,) if mapping.host_ip else (4, 6))


def is_for_all(mapping: PortMapping) -> bool:
    """Tell whether a mapping is for every address of its families."""
    return not mapping.host_ip or ip_address(mapping.host_ip).is_unspecified


def exclude(one: PortMapping, other: PortMapping) -> bool:
    """Tell whether only one of the two can be, as with sockets that are bound to them."""
    if (one.protocol, one.host_port) != (other.protocol, other.host_port):
        return False
    if not families_of(one) & families_of(other):
        return False
    return one.host_ip == other.host_ip or is_for_all(one) or is_for_all(other)


def name_of(mapping: PortMapping) -> str:
    """Return the text of a host port: "192.0.2.1:8080/TCP"."""
    host = f"[{mapping.host_ip}]" if ":" in mapping.host_ip else mapping.host_ip or "*"
    return f"{host}:{mapping.host_port}/{mapping.protocol.name}"
