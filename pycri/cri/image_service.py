# SPDX-License-Identifier: Apache-2.0
"""ImageService, and pycri's own Node service beside it. RPCs not here answer UNIMPLEMENTED."""
# ruff: noqa: N802  the methods bear the CRI's names

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import grpc  # noqa: TID251  the edge is its home

from pycri.cri.api import node_v1_pb2 as node_pb
from pycri.cri.api import runtime_v1_pb2 as pb
from pycri.cri.api.node_v1_pb2_grpc import NodeServicer
from pycri.cri.api.runtime_v1_pb2_grpc import ImageServiceServicer
from pycri.cri.application import Images
from pycri.cri.chunks import chunks
from pycri.cri.decode import fields
from pycri.cri.decode.image import decode_auth, decode_image_spec, decode_login
from pycri.cri.encode import records as encode
from pycri.images.progress import LayerProgress

_PROGRESS_INTERVAL_S: Final = 0.1

Context = grpc.aio.ServicerContext[object, object]


class ImageService(ImageServiceServicer):
    """Images of the node."""

    def __init__(self, images: Images) -> None:
        self._images = images

    async def ListImages(
        self, request: pb.ListImagesRequest, context: Context
    ) -> pb.ListImagesResponse:
        return pb.ListImagesResponse(images=list(self._listed(request.filter)))

    async def StreamImages(
        self, request: pb.StreamImagesRequest, context: Context
    ) -> AsyncIterator[pb.StreamImagesResponse]:
        for chunk in chunks(self._listed(request.filter)):
            yield pb.StreamImagesResponse(images=chunk)

    def _listed(self, wanted: pb.ImageFilter) -> Iterator[pb.Image]:
        """Yield all, or the one the filter names, or none."""
        if wanted.image.image:
            found = self._images.find(wanted.image.image)
            return map(encode.encode_image, [found] if found else [])
        return map(encode.encode_image, self._images.images())

    async def ImageStatus(
        self, request: pb.ImageStatusRequest, context: Context
    ) -> pb.ImageStatusResponse:
        """Return the image; an absent one is an empty answer (CRI, `ImageStatus`)."""
        image = self._images.find(decode_image_spec(request.image, "image").image)
        if image is None:
            return pb.ImageStatusResponse()
        return pb.ImageStatusResponse(
            image=encode.encode_image(image),
            info=encode.encode_image_info(image) if request.verbose else None,
        )

    async def PullImage(
        self, request: pb.PullImageRequest, context: Context
    ) -> pb.PullImageResponse:
        name = decode_image_spec(request.image, "image").image
        image = await self._images.pull(name, decode_auth(request))
        return pb.PullImageResponse(image_ref=image.id)

    async def RemoveImage(
        self, request: pb.RemoveImageRequest, context: Context
    ) -> pb.RemoveImageResponse:
        await self._images.remove(decode_image_spec(request.image, "image").image)
        return pb.RemoveImageResponse()

    async def ImageFsInfo(
        self, request: pb.ImageFsInfoRequest, context: Context
    ) -> pb.ImageFsInfoResponse:
        """Return one file system twice: images and writable layers share the state folder.

        The kubelet's image collector fails if either list is empty.
        """
        usage = encode.encode_filesystem(self._images.usage())
        return pb.ImageFsInfoResponse(image_filesystems=[usage], container_filesystems=[usage])


class NodeService(NodeServicer):
    """What pycri offers beside the CRI."""

    def __init__(self, images: Images) -> None:
        self._images = images

    async def ImportImage(
        self, request: node_pb.ImportImageRequest, context: Context
    ) -> node_pb.ImportImageResponse:
        path = Path(fields.absolute(request.path, "path"))
        image = await self._images.import_layout(path, fields.word(request.name, "name"))
        return node_pb.ImportImageResponse(image_ref=image.id)

    async def WatchPull(
        self, request: node_pb.WatchPullRequest, context: Context
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
