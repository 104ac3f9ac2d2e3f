# SPDX-License-Identifier: Apache-2.0
"""From what an image's name stands for to the image of this node: manifest and config, verified."""

import hashlib
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Final

import msgspec

from pycri.errors import CorruptImage, Unsupported
from pycri.images.content import ContentSource, Document
from pycri.images.manifest import (
    ConfigFile,
    Descriptor,
    Manifest,
    Platform,
    choose_platform,
    parse_config,
    parse_document,
    suits,
)
from pycri.model.ids import Digest

_DEEPEST_INDEX: Final = 4
_LONGEST_CONFIG: Final = 8 * 1024 * 1024


class ResolvedImage(msgspec.Struct, frozen=True, kw_only=True):
    """An image for this node. config_body: as it came; its digest is the image's id."""

    manifest: Manifest
    config: ConfigFile
    config_body: bytes

    def layers(self) -> Iterator[tuple[Descriptor, Digest]]:
        """Yield the blobs with the diff ids of their layers, bottom first."""
        return zip(self.manifest.layers, self.config.diff_ids, strict=True)


async def resolve_image(
    source: ContentSource, root: Document, platform: Platform, name: str
) -> ResolvedImage:
    """Read manifest and config of what suits `platform`. root: manifest or index; name: for errors.

    Raises: NotFound, Unsupported, CorruptImage; what the source raises.
    """
    manifest = await _choose_manifest(source, root, platform, name)
    body = await _read_config(source, manifest.config)
    config = parse_config(body, manifest.config.digest, len(manifest.layers))
    if not suits(config.platform, platform):
        raise Unsupported(f"{name} is for {config.platform}, the node is {platform}")
    return ResolvedImage(manifest=manifest, config=config, config_body=body)


async def _choose_manifest(
    source: ContentSource, document: Document, platform: Platform, name: str
) -> Manifest:
    for _ in range(_DEEPEST_INDEX):
        parsed = parse_document(document.body, document.media_type)
        if isinstance(parsed, Manifest):
            return parsed
        chosen = choose_platform(parsed, platform, name)
        document = await source.manifest(chosen.digest)
    raise CorruptImage(f"{name} is an index of indexes, too deep")


async def _read_config(source: ContentSource, descriptor: Descriptor) -> bytes:
    while True:
        body = await _read_blob(source, descriptor, _LONGEST_CONFIG)
        digest = "sha256:" + hashlib.sha256(body).hexdigest()
        if digest == descriptor.digest:
            return body
        if not source.distrust(descriptor.digest):
            raise CorruptImage(f"the config {descriptor.digest} has the digest {digest}")


async def _read_blob(source: ContentSource, descriptor: Descriptor, limit: int) -> bytes:
    body = bytearray()
    pieces: AsyncIterator[bytes] = source.blob(descriptor)
    async with aclosing(pieces):  # type: ignore[type-var]
        async for piece in pieces:
            body += piece
            if len(body) > limit:
                raise CorruptImage(f"{descriptor.digest} is longer than {limit} bytes")
    return bytes(body)
