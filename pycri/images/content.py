# SPDX-License-Identifier: Apache-2.0
"""Where an image's content comes from: a registry, or an OCI layout on disk."""

from collections.abc import AsyncIterator
from typing import Protocol

import msgspec

from pycri.images.manifest import Descriptor
from pycri.model.ids import Digest


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """A manifest or index. digest: of `body`; media_type: as the source says, or ""."""

    body: bytes
    media_type: str
    digest: Digest


class ContentSource(Protocol):
    """One image, as someone else has it."""

    async def root(self) -> Document:
        """Return the manifest or index that the image's name stands for."""
        ...

    async def manifest(self, target: str) -> Document:
        """Return the manifest or index with this digest, verified."""
        ...

    def blob(self, descriptor: Descriptor) -> AsyncIterator[bytes]:
        """Yield the pieces of a blob, not verified."""
        ...

    def distrust(self, digest: Digest) -> bool:
        """Tell that a blob proved wrong; return whether asking again may bring the right one."""
        ...
