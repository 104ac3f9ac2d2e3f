# SPDX-License-Identifier: Apache-2.0
"""Statistics of pods and containers: which are asked for, and who reads them.

One thread reads, so that the event loop waits for no file and no call for another's; the writable
layers come from memory (`usage.py`). A pod or container that goes while it is read is shown with
what was still there.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from pycri.logs import Log
from pycri.model.container import ContainerRecord, ContainerState
from pycri.model.pod import PodRecord, PodState
from pycri.model.stats import ContainerStats, PodStats
from pycri.pods.foundation import Foundation
from pycri.pods.meter import Meter, read_interfaces
from pycri.pods.usage import LayerUsage

T = TypeVar("T")

_log = Log("stats")

SAMPLE_S: Final = 10.0
"""How often the counters are sampled from which rates are made."""


class Stats:
    """The use cases of ContainerStats, PodSandboxStats and their lists."""

    def __init__(self, foundation: Foundation, layers: LayerUsage) -> None:
        self._catalogue = foundation.catalogue
        self._meter = Meter(foundation.groups, foundation.settings.cgroup_parent)
        self._layers = layers
        self._thread = ThreadPoolExecutor(1, "stats")

    async def container(self, container_id: str) -> ContainerStats:
        """Return the statistics of one container, whatever its state. Raises NotFound."""
        record = self._catalogue.container(container_id)
        return (await self._in_thread(lambda: self._read_containers([record])))[0]

    async def containers(
        self, *, id_prefix: str = "", pod_prefix: str = "", labels: Mapping[str, str] | None = None
    ) -> list[ContainerStats]:
        """Return those of the containers that match every given filter and have not ended."""
        found = self._catalogue.find_containers(
            id_prefix=id_prefix, pod_prefix=pod_prefix, labels=labels
        )
        records = [one for one in found if one.state is not ContainerState.EXITED]
        return await self._in_thread(lambda: self._read_containers(records))

    async def pod(self, pod_id: str) -> PodStats:
        """Return the statistics of one pod, whatever its state. Raises NotFound."""
        records = self._with_containers([self._catalogue.pod(pod_id)])
        return (await self._in_thread(lambda: self._read_pods(records)))[0]

    async def pods(
        self, *, id_prefix: str = "", labels: Mapping[str, str] | None = None
    ) -> list[PodStats]:
        """Return those of the ready pods that match every given filter."""
        found = self._catalogue.find_pods(id_prefix=id_prefix, state=PodState.READY, labels=labels)
        records = self._with_containers(found)
        return await self._in_thread(lambda: self._read_pods(records))

    async def watch(self) -> None:
        """Sample the counters for as long as the daemon runs."""
        while True:
            try:
                await self._sample()
            except Exception as error:  # noqa: BLE001 - the next round is another chance
                _log.exception("round failed", error)
            await asyncio.sleep(SAMPLE_S)

    def close(self) -> None:
        """Let a reading under way end."""
        self._thread.shutdown()

    async def _sample(self) -> None:
        pods = [pod for pod in self._catalogue.pods() if pod.state is PodState.READY]
        containers = [
            container
            for container in self._catalogue.containers()
            if container.state is ContainerState.RUNNING
        ]
        await self._in_thread(lambda: self._meter.sample(pods, containers))

    def _with_containers(
        self, pods: Sequence[PodRecord]
    ) -> list[tuple[PodRecord, list[ContainerRecord]]]:
        return [
            (
                pod,
                [
                    container
                    for container in self._catalogue.containers_of(pod.id)
                    if container.state is not ContainerState.EXITED
                ],
            )
            for pod in pods
        ]

    def _read_containers(self, records: list[ContainerRecord]) -> list[ContainerStats]:
        return [self._meter.container(record, self._layers.of(record)) for record in records]

    def _read_pods(self, records: list[tuple[PodRecord, list[ContainerRecord]]]) -> list[PodStats]:
        interfaces = read_interfaces()
        return [
            self._meter.pod(pod, tuple(self._read_containers(containers)), interfaces)
            for pod, containers in records
        ]

    async def _in_thread(self, read: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, read)
