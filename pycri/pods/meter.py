# SPDX-License-Identifier: Apache-2.0
"""Reads what pods and containers use: counters of control groups and of links, rates of CPU use.

Files of control groups and /proc/net/dev only: no disk, and no lock that the making of pods holds.
A rate is over the time since a sample; until the first, over a container's whole life if that was
short. Of one meter all calls come from one thread.

Network counters are those of the host's end of each pod's link, with the directions swapped: one
file for all pods, also for those whose processes have ended. An interface without such an end is
looked at from inside, by way of a process (decision 0033).
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from pycri.kernel import counters
from pycri.kernel.process import start_time
from pycri.model.container import ContainerRecord, ContainerState
from pycri.model.image import FilesystemUsage
from pycri.model.pod import PodRecord
from pycri.model.stats import (
    ContainerStats,
    GroupUsage,
    InterfaceCounters,
    NetworkUsage,
    PodStats,
)
from pycri.plan.cgroups import pod_cgroup_path
from pycri.pods.groups import Groups

SHORTEST_WINDOW_NS: Final = 1_000_000_000
"""A rate over less would be noise."""
LONGEST_WINDOW_NS: Final = 60_000_000_000
_SECOND_NS: Final = 1_000_000_000

Interfaces = Mapping[str, InterfaceCounters]


class CpuRates:
    """Rates of growing counters, over the time since one of the last two samples."""

    def __init__(self) -> None:
        self._samples: dict[str, list[tuple[int, int]]] = {}

    def sample(self, key: str, now_ns: int, used_ns: int) -> None:
        """Remember a counter. now_ns: nanoseconds of the clock that all calls share."""
        self._samples[key] = [*self._samples.get(key, [])[-1:], (now_ns, used_ns)]

    def rate(self, key: str, now_ns: int, used_ns: int) -> int | None:
        """Return CPU nanoseconds a second since the last sample that is old enough, else None."""
        for then_ns, before_ns in reversed(self._samples.get(key, [])):
            window_ns = now_ns - then_ns
            if SHORTEST_WINDOW_NS <= window_ns <= LONGEST_WINDOW_NS:
                return max(0, used_ns - before_ns) * _SECOND_NS // window_ns
        return None

    def keep_only(self, keys: Iterable[str]) -> None:
        """Forget all others."""
        self._samples = {key: self._samples[key] for key in keys if key in self._samples}


class Meter:
    """Reads on demand; `sample` is to be called every few seconds."""

    def __init__(self, groups: Groups, cgroup_parent: str) -> None:
        """cgroup_parent: of pods whose caller names none."""
        self._groups = groups
        self._cgroup_parent = cgroup_parent
        self._rates = CpuRates()

    def container(self, record: ContainerRecord, layer: FilesystemUsage | None) -> ContainerStats:
        """Read one container's counters, if it runs."""
        if record.state is not ContainerState.RUNNING:
            return ContainerStats(container=record, writable_layer=layer)
        usage = self._groups.usage(record.cgroup)
        return ContainerStats(
            container=record,
            usage=usage,
            nano_cores=self._rate(record.id, usage, record.started_ns),
            writable_layer=layer,
        )

    def pod(
        self, record: PodRecord, containers: tuple[ContainerStats, ...], interfaces: Interfaces
    ) -> PodStats:
        """Read the counters of a pod's own group and link. interfaces: the host's."""
        path = pod_group(record, self._cgroup_parent)
        usage = self._groups.usage(path)
        records = [stats.container for stats in containers]
        return PodStats(
            pod=record,
            usage=usage,
            nano_cores=self._rate(record.id, usage, record.ready_ns),
            network=pod_network(record, interfaces, lambda: read_inside(records)),
            processes=len(self._groups.processes(path)),
            containers=containers,
        )

    def sample(self, pods: list[PodRecord], containers: list[ContainerRecord]) -> None:
        """Remember the CPU counters of all that live; forget the others."""
        groups: dict[str, str] = {pod.id: pod_group(pod, self._cgroup_parent) for pod in pods}
        groups |= {container.id: container.cgroup for container in containers}
        for key, path in groups.items():
            used_ns = self._groups.cpu_ns(path)
            if used_ns is not None:
                self._rates.sample(key, time.monotonic_ns(), used_ns)
        self._rates.keep_only(groups)

    def _rate(self, key: str, usage: GroupUsage, started_ns: int | None) -> int | None:
        if usage.cpu is None:
            return None
        rate = self._rates.rate(key, time.monotonic_ns(), usage.cpu.used_ns)
        if rate is not None or started_ns is None:
            return rate
        age_ns = usage.timestamp_ns - started_ns
        return usage.cpu.used_ns * _SECOND_NS // age_ns if 0 < age_ns < LONGEST_WINDOW_NS else None


def pod_group(pod: PodRecord, default_parent: str) -> str:
    """Return the path of the group that holds all of a pod."""
    return pod_cgroup_path(pod.spec.cgroup_parent, default_parent, pod.id)


def read_interfaces() -> Interfaces:
    """Read the counters of the host's interfaces, by name."""
    return counters.parse_interfaces(counters.read("/proc/self/net/dev") or "")


def pod_network(
    pod: PodRecord, host: Interfaces, inside: Callable[[], Interfaces]
) -> NetworkUsage | None:
    """Return what a pod's interfaces counted: by their host ends, else as seen from inside.

    host: the host's interfaces. inside: reads the pod's own, {} if none of its processes runs.
    """
    found = []
    for interface in pod.attachment.interfaces if pod.attachment else ():
        if interface.host_interface:
            counted = host.get(interface.host_interface)
            found.append(counted and _from_the_other_end(interface.name, counted))
        else:
            found.append(inside().get(interface.name))
    if not found or found[0] is None:
        return None  # the host's network, or the pod is stopped
    others = tuple(counted for counted in found[1:] if counted is not None)
    return NetworkUsage(timestamp_ns=time.time_ns(), default=found[0], others=others)


def _from_the_other_end(name: str, counted: InterfaceCounters) -> InterfaceCounters:
    return InterfaceCounters(
        name=name,
        rx_bytes=counted.tx_bytes,
        rx_packets=counted.tx_packets,
        rx_errors=counted.tx_errors,
        rx_dropped=counted.tx_dropped,
        tx_bytes=counted.rx_bytes,
        tx_packets=counted.rx_packets,
        tx_errors=counted.rx_errors,
        tx_dropped=counted.rx_dropped,
    )


def read_inside(containers: Iterable[ContainerRecord]) -> Interfaces:
    """Read the interfaces of the namespace that the first living container is in."""
    for record in containers:
        text = counters.read(f"/proc/{record.pid}/net/dev") if record.pid else None
        # Compared afterwards: by then nobody else has had the pid while it was read.
        with contextlib.suppress(OSError):
            if text and start_time(record.pid) == record.pid_start_time:
                return counters.parse_interfaces(text)
    return {}
