# SPDX-License-Identifier: Apache-2.0
"""Are the images what was verified when they came? Every layer and config read again.

A layer is compared with its archive (packer.py), or, where that cannot be made again, with the
digest of its folder; a settlement, whose files are those of layers, with its fingerprint. What
several images have is read once.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import msgspec

from pycri.errors import CorruptImage
from pycri.images.layers import LayerStore, is_whole
from pycri.images.packer import check_layer, read_tree_digest
from pycri.model.ids import Digest, ImageId
from pycri.model.image import Image, chain_ids

ConfigReader = Callable[[ImageId], Awaitable[bytes | None]]


class CheckedImage(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the check of one image.

    problems: of its config and layers, in words. broken: the layers and settlements among them.
    not_compared: how many layers there is nothing to compare with.
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
        keys = (*image.layers, *(key for key in chain_ids(image.layers)[1:] if key in layers))
        for key in keys:
            if key not in known:
                known[key] = await _check_layer(layers, key)
        broken = {key: known[key] for key in keys if known[key]}
        problems = [f"layer {key}: {problem}" for key, problem in broken.items()]
        yield CheckedImage(
            image=image,
            problems=(*_config_problems(image, await read_config(image.id)), *problems),
            broken=frozenset(broken),
            not_compared=sum(not _is_comparable(layers, diff_id) for diff_id in image.layers),
        )


def _is_comparable(layers: LayerStore, diff_id: Digest) -> bool:
    row = layers.row(diff_id)
    return layers.recipe(diff_id).exists() or (row is not None and bool(row.tree))


async def _check_layer(layers: LayerStore, key: Digest) -> str:
    """Return what is wrong with a layer or a settlement, "" for nothing."""
    row, folder, recipe = layers.row(key), layers.path(key), layers.recipe(key)
    if row is None:
        return "is not on this node"
    if not await asyncio.to_thread(folder.is_dir):
        return "its folder is missing"
    if recipe.exists():
        try:
            await check_layer(folder, recipe, key)
        except CorruptImage as error:
            return str(error)
    elif row.tree:
        if await read_tree_digest(folder) != row.tree:
            return "its files are not what they were"
    elif not await asyncio.to_thread(is_whole, folder, row):
        return "is a settlement that is not what it was" if row.stack else "has lost files"
    return ""


def _config_problems(image: Image, config: bytes | None) -> list[str]:
    if config is None:
        return ["its config is not on this node"]
    if "sha256:" + hashlib.sha256(config).hexdigest() != image.id:
        return ["its config is not what it was"]
    return []
