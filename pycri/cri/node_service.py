# SPDX-License-Identifier: Apache-2.0
"""pycri.v1.Node: what pycri offers beside the CRI, for its own verbs."""
# ruff: noqa: N802  the methods bear the service's names

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Final

from pycri.cri.api import node_v1_pb2 as node_pb
from pycri.cri.application import Images, Networks
from pycri.cri.decode import fields
from pycri.cri.decode.image import decode_login
from pycri.cri.encode.network import encode_pod_network
from pycri.errors import InvalidRequest
from pycri.images.checking import CheckedImage
from pycri.images.progress import LayerProgress
from pycri.images.usage import ImageUsage
from pycri.model.image import Image

_PROGRESS_INTERVAL_S: Final = 0.1


class NodeService:
    """What pycri offers beside the CRI."""

    def __init__(self, images: Images, networks: Networks) -> None:
        self._images = images
        self._networks = networks

    async def ListNetwork(self, request: node_pb.ListNetworkRequest) -> node_pb.ListNetworkResponse:
        return node_pb.ListNetworkResponse(
            pods=[encode_pod_network(pod) for pod in self._networks.list()]
        )

    async def CheckNetwork(
        self, request: node_pb.CheckNetworkRequest
    ) -> node_pb.CheckNetworkResponse:
        return node_pb.CheckNetworkResponse(problems=await self._networks.check())

    async def CollectNetwork(
        self, request: node_pb.CollectNetworkRequest
    ) -> node_pb.CollectNetworkResponse:
        await self._networks.collect()
        return node_pb.CollectNetworkResponse()

    async def ImportImage(self, request: node_pb.ImportImageRequest) -> node_pb.ImportImageResponse:
        path = Path(fields.absolute(request.path, "path"))
        name = fields.word(request.name, "name") if request.name else ""
        images = await self._images.import_archive(path, name)
        return node_pb.ImportImageResponse(image_refs=[image.id for image in images])

    async def ExportImages(
        self, request: node_pb.ExportImagesRequest
    ) -> node_pb.ExportImagesResponse:
        path = Path(fields.absolute(request.path, "path"))
        names = [fields.word(name, f"names[{i}]") for i, name in enumerate(request.names)]
        if not names:
            raise InvalidRequest("names", "is empty")
        await self._images.export(path, names, folder=request.folder)
        return node_pb.ExportImagesResponse()

    async def CheckImages(
        self, request: node_pb.CheckImagesRequest
    ) -> AsyncIterator[node_pb.CheckedImage]:
        """Tell of each image as it has been read; then, if asked for, of the repair."""
        broken: list[CheckedImage] = []
        async with aclosing(self._images.check()) as found:  # type: ignore[type-var]
            async for checked in found:
                broken += [checked] if checked.problems else []
                yield _encode_checked(checked)
        if request.repair and broken:
            for image in await self._images.repair(broken):
                names = _names(image)
                yield node_pb.CheckedImage(image_ref=image.id, names=names, unlisted=True)

    async def ListImageUsage(
        self, request: node_pb.ListImageUsageRequest
    ) -> node_pb.ListImageUsageResponse:
        total = self._images.usage()
        return node_pb.ListImageUsageResponse(
            images=map(_encode_usage, self._images.usages()),
            total_bytes=total.used_bytes,
            total_inodes=total.inodes_used,
        )

    async def WatchPull(
        self, request: node_pb.WatchPullRequest
    ) -> AsyncIterator[node_pb.PullProgress]:
        """Pull, telling how far it is; a client that goes away leaves the pull."""
        name = fields.word(request.name, "name")
        auth = decode_login(request.username, request.password)
        shown: tuple[LayerProgress, ...] = ()
        pull = asyncio.create_task(self._images.pull(name, auth))
        try:
            while not pull.done():
                await asyncio.wait([pull], timeout=_PROGRESS_INTERVAL_S)
                layers = self._images.pull_progress(name, auth)
                if layers not in ((), shown):
                    shown = layers
                    yield node_pb.PullProgress(layers=map(_encode_progress, layers))
            yield node_pb.PullProgress(image_ref=(await pull).id)
        finally:
            pull.cancel()
            await asyncio.wait([pull])


def _encode_progress(layer: LayerProgress) -> node_pb.LayerProgress:
    return node_pb.LayerProgress(
        digest=layer.digest,
        size_bytes=layer.size_bytes,
        received_bytes=layer.received_bytes,
        state=node_pb.LayerProgress.State.Value(layer.state.upper()),
    )


def _encode_checked(checked: CheckedImage) -> node_pb.CheckedImage:
    return node_pb.CheckedImage(
        image_ref=checked.image.id,
        names=_names(checked.image),
        problems=checked.problems,
        not_compared=checked.not_compared,
    )


def _encode_usage(usage: ImageUsage) -> node_pb.ImageUsage:
    return node_pb.ImageUsage(
        image_ref=usage.image.id,
        names=_names(usage.image),
        size_bytes=usage.size_bytes,
        shared_bytes=usage.shared_bytes,
        reclaimable_bytes=usage.reclaimable_bytes,
        pinned=usage.image.pinned,
    )


def _names(image: Image) -> tuple[str, ...]:
    return (*image.tags, *image.digests)
