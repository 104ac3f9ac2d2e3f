# SPDX-License-Identifier: Apache-2.0
"""Readings for the metrics of pods and containers, in a thread of their own.

They take several times what statistics take (descriptors are counted process by process), so they
neither wait for these nor hold them up. The table of `model/metric_table.py` makes metrics of them.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from pycri.kernel.tasks import count_descriptors, read_soft_limits
from pycri.model.container import ContainerRecord, ContainerState
from pycri.model.pod import PodRecord, PodState
from pycri.model.stats import PodReading, ProcessCounts, Reading
from pycri.pods.foundation import Foundation
from pycri.pods.meter import Interfaces, pod_group, pod_network, read_inside, read_interfaces
from pycri.pods.usage import LayerUsage

_MOST_DESCRIPTORS: Final = 2000
"""How many descriptors of a process are looked at for sockets."""
_MOST_PROCESSES: Final = 500
"""Of how many processes of a container descriptors are counted."""


class Metrics:
    """The use case of ListPodSandboxMetrics."""

    def __init__(self, foundation: Foundation, layers: LayerUsage) -> None:
        self._catalogue = foundation.catalogue
        self._groups = foundation.groups
        self._cgroup_parent = foundation.settings.cgroup_parent
        self._layers = layers
        self._thread = ThreadPoolExecutor(1, "metrics")

    async def read(self) -> list[PodReading]:
        """Read all ready pods and their running containers."""
        pods = [
            (
                pod,
                [
                    container
                    for container in self._catalogue.containers_of(pod.id)
                    if container.state is ContainerState.RUNNING
                ],
            )
            for pod in self._catalogue.pods()
            if pod.state is PodState.READY
        ]
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._read, pods)

    def close(self) -> None:
        """Let a reading under way end."""
        self._thread.shutdown()

    def _read(self, pods: list[tuple[PodRecord, list[ContainerRecord]]]) -> list[PodReading]:
        interfaces = read_interfaces()
        return [
            PodReading(
                pod=self._read_pod(pod, containers, interfaces),
                containers=tuple(self._read_container(pod, record) for record in containers),
            )
            for pod, containers in pods
        ]

    def _read_pod(
        self, pod: PodRecord, containers: list[ContainerRecord], interfaces: Interfaces
    ) -> Reading:
        path = pod_group(pod, self._cgroup_parent)
        return Reading(
            pod=pod,
            group=path,
            usage=self._groups.usage(path),
            detail=self._groups.detail(path),
            network=pod_network(pod, interfaces, lambda: read_inside(containers)),
        )

    def _read_container(self, pod: PodRecord, record: ContainerRecord) -> Reading:
        return Reading(
            pod=pod,
            container=record,
            group=record.cgroup,
            usage=self._groups.usage(record.cgroup),
            detail=self._groups.detail(record.cgroup),
            processes=self._count_processes(record),
            writable_layer=self._layers.of(record),
            capacity=self._layers.capacity(),
        )

    def _count_processes(self, record: ContainerRecord) -> ProcessCounts:
        pids = self._groups.processes(record.cgroup)
        counts = [count_descriptors(pid, _MOST_DESCRIPTORS) for pid in pids[:_MOST_PROCESSES]]
        return ProcessCounts(
            processes=len(pids),
            descriptors=sum(descriptors for descriptors, _ in counts),
            sockets=sum(sockets for _, sockets in counts),
            # Only while the group still has the process that the record names.
            soft_limits=read_soft_limits(record.pid) if record.pid in pids else {},
        )
