# SPDX-License-Identifier: Apache-2.0
"""Are the images what was verified when they came? Every layer and config read again.

A layer is compared with its archive (packer.py); one without a recipe only has to be there. A layer
that several images have is read once.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import msgspec

from pycri.errors import CorruptImage
from pycri.images.layers import LayerStore
from pycri.images.packer import check_layer
from pycri.model.ids import Digest, ImageId
from pycri.model.image import Image

ConfigReader = Callable[[ImageId], Awaitable[bytes | None]]


class CheckedImage(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the check of one image.

    problems: of its config and layers, in words. broken: the layers among them. not_compared: how
    many layers have no recipe.
    """

    image: Image
    problems: tuple[str, ...]
    broken: frozenset[Digest]
    not_compared: int


async def check_images(
    images: Sequence[Image], layers: LayerStore, read_config: ConfigReader
) -> AsyncIterator[CheckedImage]:
    """Yield the images as they have been checked. Layers must stay until the end."""
    known: dict[Digest, str] = {}
    for image in images:
        for diff_id in image.layers:
            if diff_id not in known:
                known[diff_id] = await _check_layer(layers, diff_id)
        broken = {diff_id: known[diff_id] for diff_id in image.layers if known[diff_id]}
        problems = [f"layer {diff_id}: {problem}" for diff_id, problem in broken.items()]
        yield CheckedImage(
            image=image,
            problems=(*_config_problems(image, await read_config(image.id)), *problems),
            broken=frozenset(broken),
            not_compared=sum(not layers.recipe(diff_id).exists() for diff_id in image.layers),
        )


async def _check_layer(layers: LayerStore, diff_id: Digest) -> str:
    """Return what is wrong with a layer, "" for nothing."""
    if diff_id not in layers:
        return "is not on this node"
    folder, recipe = layers.path(diff_id), layers.recipe(diff_id)
    if not await asyncio.to_thread(folder.is_dir):
        return "its folder is missing"
    if not recipe.exists():
        return ""
    try:
        await check_layer(folder, recipe, diff_id)
    except CorruptImage as error:
        return str(error)
    return ""


def _config_problems(image: Image, config: bytes | None) -> list[str]:
    if config is None:
        return ["its config is not on this node"]
    if "sha256:" + hashlib.sha256(config).hexdigest() != image.id:
        return ["its config is not what it was"]
    return []
