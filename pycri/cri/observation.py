# SPDX-License-Identifier: Apache-2.0
"""The part of RuntimeService that tells what pods and containers use and what becomes of them."""
# ruff: noqa: N802  the methods bear the CRI's names

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TypeVar

from pycri.cri.api import runtime_v1_pb2 as pb
from pycri.cri.application import Observed
from pycri.cri.chunks import chunks
from pycri.cri.decode import request as decode
from pycri.cri.encode.events import encode_event
from pycri.cri.encode.metrics import encode_metric_descriptors, encode_pod_metrics
from pycri.cri.encode.stats import encode_container_stats, encode_pod_stats

R = TypeVar("R")
M = TypeVar("M")


class ObservationService:
    """Statistics, metrics, events."""

    def __init__(self, observed: Observed) -> None:
        self._stats = observed.stats
        self._metrics = observed.metrics
        self._events = observed.events

    async def ContainerStats(self, request: pb.ContainerStatsRequest) -> pb.ContainerStatsResponse:
        container_id = decode.decode_id(request.container_id, "container_id")
        stats = await self._stats.container(container_id)
        return pb.ContainerStatsResponse(stats=encode_container_stats(stats))

    async def ListContainerStats(
        self, request: pb.ListContainerStatsRequest
    ) -> pb.ListContainerStatsResponse:
        return pb.ListContainerStatsResponse(stats=await self._container_stats(request.filter))

    async def StreamContainerStats(
        self, request: pb.StreamContainerStatsRequest
    ) -> AsyncIterator[pb.StreamContainerStatsResponse]:
        stats = await self._container_stats(request.filter)
        for chunk in chunks(stats, pb.ContainerStats.ByteSize):
            yield pb.StreamContainerStatsResponse(container_stats=chunk)

    async def PodSandboxStats(
        self, request: pb.PodSandboxStatsRequest
    ) -> pb.PodSandboxStatsResponse:
        pod_id = decode.decode_id(request.pod_sandbox_id, "pod_sandbox_id")
        stats = await self._stats.pod(pod_id)
        return pb.PodSandboxStatsResponse(stats=encode_pod_stats(stats))

    async def ListPodSandboxStats(
        self, request: pb.ListPodSandboxStatsRequest
    ) -> pb.ListPodSandboxStatsResponse:
        return pb.ListPodSandboxStatsResponse(stats=await self._pod_stats(request.filter))

    async def StreamPodSandboxStats(
        self, request: pb.StreamPodSandboxStatsRequest
    ) -> AsyncIterator[pb.StreamPodSandboxStatsResponse]:
        stats = await self._pod_stats(request.filter)
        for chunk in chunks(stats, pb.PodSandboxStats.ByteSize):
            yield pb.StreamPodSandboxStatsResponse(pod_sandbox_stats=chunk)

    def ListMetricDescriptors(
        self, request: pb.ListMetricDescriptorsRequest
    ) -> pb.ListMetricDescriptorsResponse:
        return pb.ListMetricDescriptorsResponse(descriptors=encode_metric_descriptors())

    async def ListPodSandboxMetrics(
        self, request: pb.ListPodSandboxMetricsRequest
    ) -> pb.ListPodSandboxMetricsResponse:
        metrics = await self._pod_metrics()
        return pb.ListPodSandboxMetricsResponse(pod_metrics=metrics)

    async def StreamPodSandboxMetrics(
        self, request: pb.StreamPodSandboxMetricsRequest
    ) -> AsyncIterator[pb.StreamPodSandboxMetricsResponse]:
        for chunk in chunks(await self._pod_metrics(), pb.PodSandboxMetrics.ByteSize):
            yield pb.StreamPodSandboxMetricsResponse(pod_sandbox_metrics=chunk)

    async def GetContainerEvents(
        self, request: pb.GetEventsRequest
    ) -> AsyncIterator[pb.ContainerEventResponse | None]:
        with self._events.reading() as events:
            # Whoever sees it knows: nothing that happens from now on is missed.
            yield None
            async for event in events:
                yield encode_event(event)

    # What these encode is some ten thousand messages on a full node: too long for the event loop.

    async def _pod_metrics(self) -> list[pb.PodSandboxMetrics]:
        return await _encoded(encode_pod_metrics, await self._metrics.read())

    async def _container_stats(self, wanted: pb.ContainerStatsFilter) -> list[pb.ContainerStats]:
        stats = await self._stats.containers(
            id_prefix=wanted.id,
            pod_prefix=wanted.pod_sandbox_id,
            labels=dict(wanted.label_selector),
        )
        return await _encoded(encode_container_stats, stats)

    async def _pod_stats(self, wanted: pb.PodSandboxStatsFilter) -> list[pb.PodSandboxStats]:
        stats = await self._stats.pods(id_prefix=wanted.id, labels=dict(wanted.label_selector))
        return await _encoded(encode_pod_stats, stats)


async def _encoded(encode: Callable[[R], M], readings: Sequence[R]) -> list[M]:
    return await asyncio.to_thread(lambda: [encode(one) for one in readings])
