# SPDX-License-Identifier: Apache-2.0
"""Pods: what was asked (PodSpec) and what is known (PodRecord).

A record holds facts with times; its state is derived from them:

    intent written ──ready_ns──▶ READY ──stopped_ns──▶ NOTREADY ──▶ removed (no record)
          └── failed and could not be cleaned up: NOTREADY, so that the kubelet stops and removes it
"""

import enum

import msgspec

from pycri.model.ids import PodId
from pycri.model.network import Attachment
from pycri.model.resources import Resources
from pycri.model.security import NamespaceModes


class PodState(enum.Enum):
    """CRI PodSandboxState."""

    READY = 0
    NOTREADY = 1


class Protocol(enum.Enum):
    """CRI Protocol of a port mapping."""

    TCP = 0
    UDP = 1
    SCTP = 2


class PodMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """CRI PodSandboxMetadata: unique among the pods of a node."""

    name: str
    uid: str
    namespace: str
    attempt: int = 0


class DnsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """CRI DNSConfig: lines of resolv.conf(5)."""

    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class PortMapping(msgspec.Struct, frozen=True, kw_only=True):
    """CRI PortMapping. host_port 0: the port is not mapped."""

    protocol: Protocol = Protocol.TCP
    container_port: int
    host_port: int = 0
    host_ip: str = ""


class PodSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A pod sandbox as asked (CRI PodSandboxConfig), valid and complete.

    hostname: "" only with the host's network namespace.
    log_directory: absolute host path or "".
    cgroup_parent: as the kubelet gave it, or "".
    dns: None means the host's resolv.conf.
    """

    metadata: PodMetadata
    hostname: str = ""
    log_directory: str = ""
    dns: DnsConfig | None = None
    port_mappings: tuple[PortMapping, ...] = ()
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    cgroup_parent: str = ""
    sysctls: dict[str, str] = {}
    namespaces: NamespaceModes = NamespaceModes()
    selinux_label: str = ""
    privileged: bool = False
    overhead: Resources | None = None
    resources: Resources | None = None
    runtime_handler: str = ""


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """One timed part of a call: `start_ns` by the wall clock, `duration_ns` by the monotonic."""

    name: str
    start_ns: int
    duration_ns: int


class PodRecord(msgspec.Struct, frozen=True, kw_only=True, weakref=True):
    """All that is known of one pod sandbox."""

    id: PodId
    spec: PodSpec
    created_ns: int
    ready_ns: int | None = None
    stopped_ns: int | None = None
    attachment: Attachment | None = None
    timeline: tuple[Stage, ...] = ()
    updated_overhead: Resources | None = None
    updated_resources: Resources | None = None
    """As UpdatePodSandboxResources said last. The kubelet writes the pod's group itself."""

    @property
    def overhead(self) -> Resources | None:
        """What the pod costs besides its containers, as told last."""
        return self.updated_overhead or self.spec.overhead

    @property
    def resources(self) -> Resources | None:
        """The sum of the containers' resources, as told last."""
        return self.updated_resources or self.spec.resources

    @property
    def state(self) -> PodState:
        """READY from the end of RunPodSandbox until StopPodSandbox begins."""
        ready = self.ready_ns is not None and self.stopped_ns is None
        return PodState.READY if ready else PodState.NOTREADY
