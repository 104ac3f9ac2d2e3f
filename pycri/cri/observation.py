# SPDX-License-Identifier: Apache-2.0
"""The part of RuntimeService that tells what pods and containers use."""
# ruff: noqa: N802  the methods bear the CRI's names

from collections.abc import AsyncIterator, Iterator

import grpc  # noqa: TID251  the edge is its home

from pycri.cri.api import runtime_v1_pb2 as pb
from pycri.cri.api.runtime_v1_pb2_grpc import RuntimeServiceServicer
from pycri.cri.application import Stats
from pycri.cri.chunks import chunks
from pycri.cri.decode import request as decode
from pycri.cri.encode.stats import encode_container_stats, encode_pod_stats

Context = grpc.aio.ServicerContext[object, object]


class ObservationService(RuntimeServiceServicer):
    """Statistics."""

    def __init__(self, stats: Stats) -> None:
        self._stats = stats

    async def ContainerStats(
        self, request: pb.ContainerStatsRequest, context: Context
    ) -> pb.ContainerStatsResponse:
        container_id = decode.decode_id(request.container_id, "container_id")
        stats = await self._stats.container(container_id)
        return pb.ContainerStatsResponse(stats=encode_container_stats(stats))

    async def ListContainerStats(
        self, request: pb.ListContainerStatsRequest, context: Context
    ) -> pb.ListContainerStatsResponse:
        return pb.ListContainerStatsResponse(
            stats=list(await self._container_stats(request.filter))
        )

    async def StreamContainerStats(
        self, request: pb.StreamContainerStatsRequest, context: Context
    ) -> AsyncIterator[pb.StreamContainerStatsResponse]:
        for chunk in chunks(await self._container_stats(request.filter)):
            yield pb.StreamContainerStatsResponse(container_stats=chunk)

    async def PodSandboxStats(
        self, request: pb.PodSandboxStatsRequest, context: Context
    ) -> pb.PodSandboxStatsResponse:
        pod_id = decode.decode_id(request.pod_sandbox_id, "pod_sandbox_id")
        stats = await self._stats.pod(pod_id)
        return pb.PodSandboxStatsResponse(stats=encode_pod_stats(stats))

    async def ListPodSandboxStats(
        self, request: pb.ListPodSandboxStatsRequest, context: Context
    ) -> pb.ListPodSandboxStatsResponse:
        return pb.ListPodSandboxStatsResponse(stats=list(await self._pod_stats(request.filter)))

    async def StreamPodSandboxStats(
        self, request: pb.StreamPodSandboxStatsRequest, context: Context
    ) -> AsyncIterator[pb.StreamPodSandboxStatsResponse]:
        for chunk in chunks(await self._pod_stats(request.filter)):
            yield pb.StreamPodSandboxStatsResponse(pod_sandbox_stats=chunk)

    async def _container_stats(
        self, wanted: pb.ContainerStatsFilter
    ) -> Iterator[pb.ContainerStats]:
        stats = await self._stats.containers(
            id_prefix=wanted.id,
            pod_prefix=wanted.pod_sandbox_id,
            labels=dict(wanted.label_selector),
        )
        return map(encode_container_stats, stats)

    async def _pod_stats(self, wanted: pb.PodSandboxStatsFilter) -> Iterator[pb.PodSandboxStats]:
        stats = await self._stats.pods(id_prefix=wanted.id, labels=dict(wanted.label_selector))
        return map(encode_pod_stats, stats)
