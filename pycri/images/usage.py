# SPDX-License-Identifier: Apache-2.0
"""What images take on disk, and what their removal would give back. Pure."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import msgspec

from pycri.model.ids import Digest
from pycri.model.image import Image, layer_keys


class ImageUsage(msgspec.Struct, frozen=True, kw_only=True):
    """One image on disk. shared_bytes: of the layers that another image has as well.

    reclaimable_bytes: what its removal gives back: of the layers that neither another image nor a
    container has.
    """

    image: Image
    size_bytes: int
    shared_bytes: int
    reclaimable_bytes: int


def image_usages(
    images: Sequence[Image], sizes: Mapping[Digest, int], in_use: Collection[Digest]
) -> tuple[ImageUsage, ...]:
    """Return the usage of each image. sizes: bytes of each layer and each settlement.

    in_use: what containers have of them.
    """
    owners = Counter(key for image in images for key in layer_keys(image.layers))

    def usage(image: Image) -> ImageUsage:
        layers = layer_keys(image.layers) & sizes.keys()
        alone = {layer for layer in layers if owners[layer] == 1}
        return ImageUsage(
            image=image,
            size_bytes=sum(sizes[layer] for layer in layers),
            shared_bytes=sum(sizes[layer] for layer in layers - alone),
            reclaimable_bytes=sum(sizes[layer] for layer in alone.difference(in_use)),
        )

    return tuple(map(usage, images))
