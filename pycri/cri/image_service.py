# SPDX-License-Identifier: Apache-2.0
"""ImageService. RPCs not here answer UNIMPLEMENTED."""
# ruff: noqa: N802  the methods bear the CRI's names

from collections.abc import Iterator

import msgspec

from pycri.cri.api import runtime_v1_pb2 as pb
from pycri.cri.application import Images, WritableLayers
from pycri.cri.chunks import chunks
from pycri.cri.decode.image import decode_auth, decode_image_spec
from pycri.cri.encode import records as encode


class ImageService:
    """Images of the node."""

    def __init__(self, images: Images, layers: WritableLayers) -> None:
        self._images = images
        self._layers = layers

    def ListImages(self, request: pb.ListImagesRequest) -> pb.ListImagesResponse:
        return pb.ListImagesResponse(images=list(self._listed(request.filter)))

    def StreamImages(self, request: pb.StreamImagesRequest) -> Iterator[pb.StreamImagesResponse]:
        for chunk in chunks(self._listed(request.filter), pb.Image.ByteSize):
            yield pb.StreamImagesResponse(images=chunk)

    def _listed(self, wanted: pb.ImageFilter) -> Iterator[pb.Image]:
        """Yield all, or the one the filter names, or none."""
        if wanted.image.image:
            found = self._images.find(wanted.image.image)
            return map(encode.encode_image, [found] if found else [])
        return map(encode.encode_image, self._images.images())

    def ImageStatus(self, request: pb.ImageStatusRequest) -> pb.ImageStatusResponse:
        """Return the image; an absent one is an empty answer (CRI, `ImageStatus`)."""
        image = self._images.find(decode_image_spec(request.image, "image").image)
        if image is None:
            return pb.ImageStatusResponse()
        return pb.ImageStatusResponse(
            image=encode.encode_image(image),
            info=encode.encode_image_info(image) if request.verbose else None,
        )

    async def PullImage(self, request: pb.PullImageRequest) -> pb.PullImageResponse:
        name = decode_image_spec(request.image, "image").image
        image = await self._images.pull(name, decode_auth(request))
        return pb.PullImageResponse(image_ref=image.id)

    async def RemoveImage(self, request: pb.RemoveImageRequest) -> pb.RemoveImageResponse:
        await self._images.remove(decode_image_spec(request.image, "image").image)
        return pb.RemoveImageResponse()

    async def ImageFsInfo(self, request: pb.ImageFsInfoRequest) -> pb.ImageFsInfoResponse:
        """Return one file system twice, with what images and what writable layers take of it.

        Both are in the state folder: with one mount point the kubelet takes them for one file
        system. Its image collector fails if either list is empty.
        """
        images = self._images.usage()
        used_bytes, inodes = self._layers.total()
        layers = msgspec.structs.replace(images, used_bytes=used_bytes, inodes_used=inodes)
        return pb.ImageFsInfoResponse(
            image_filesystems=[encode.encode_filesystem(images)],
            container_filesystems=[encode.encode_filesystem(layers)],
        )
