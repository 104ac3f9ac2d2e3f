# SPDX-License-Identifier: Apache-2.0
"""What requests carry besides a pod's or a container's config: ids, filters, times, ranges."""

import ipaddress
from typing import Literal

import msgspec

from pycri.cri.api import runtime_v1_pb2 as pb
from pycri.cri.decode import fields
from pycri.cri.decode.resources import decode_resources
from pycri.errors import InvalidRequest
from pycri.model.container import ContainerState
from pycri.model.pod import PodState
from pycri.model.resources import Resources

_LONGEST_S = 1 << 31
"""Longer waits are as good as no limit, and still fit every clock."""


class PodFilter(msgspec.Struct, frozen=True, kw_only=True):
    """All that are set must match."""

    id_prefix: str = ""
    state: PodState | None = None
    labels: dict[str, str] = {}


class ContainerFilter(msgspec.Struct, frozen=True, kw_only=True):
    """All that are set must match."""

    id_prefix: str = ""
    pod_prefix: str = ""
    state: ContainerState | None = None
    labels: dict[str, str] = {}


def decode_id(text: str, path: str) -> str:
    """Return an id or a prefix of one; an empty one would be a prefix of all."""
    return fields.required(text, path)


def decode_pod_filter(message: pb.PodSandboxFilter) -> PodFilter:
    state = None
    if message.HasField("state"):
        state = fields.choice(message.state.state, "filter.state.state", PodState)
    return PodFilter(id_prefix=message.id, state=state, labels=dict(message.label_selector))


def decode_container_filter(message: pb.ContainerFilter) -> ContainerFilter:
    state = None
    if message.HasField("state"):
        state = fields.choice(message.state.state, "filter.state.state", ContainerState)
    return ContainerFilter(
        id_prefix=message.id,
        pod_prefix=message.pod_sandbox_id,
        state=state,
        labels=dict(message.label_selector),
    )


def decode_timeout(seconds: int, path: str) -> int:
    """Return seconds to wait, capped; what 0 means is the call's to say."""
    if seconds < 0:
        raise InvalidRequest(path, f"{seconds} is below 0")
    return min(seconds, _LONGEST_S)


def decode_command(message: pb.ExecSyncRequest) -> tuple[str, ...]:
    command = fields.arguments(message.cmd, "cmd")
    if not command or not command[0]:
        raise InvalidRequest("cmd", "is missing")
    return command


def decode_optional_resources(
    message: pb.UpdatePodSandboxResourcesRequest, field: Literal["overhead", "resources"]
) -> Resources | None:
    """Return the resources in `field`, None where it is not set."""
    return decode_resources(getattr(message, field), field) if message.HasField(field) else None


def decode_pod_cidr(message: pb.UpdateRuntimeConfigRequest) -> str:
    """Return the range, or two parted by a comma (IPv4 and IPv6); "" leaves things as they are."""
    path = "runtime_config.network_config.pod_cidr"
    text = message.runtime_config.network_config.pod_cidr
    for part in text.split(",") if text else ():
        try:
            ipaddress.ip_network(part)
        except ValueError:
            raise InvalidRequest(path, f"{part!r} is not an address range") from None
    return text
