# SPDX-License-Identifier: Apache-2.0
"""An OCI image layout as a source of content: a folder, or an uncompressed tar of one.

    oci-layout                   the mark of a layout
    index.json                   manifests or indexes, each perhaps with a name
    blobs/sha256/<hex>           everything else

A tar is read in place: its members are listed once, blobs are then read where they lie.
Source: OCI image-spec, image-layout.md.
"""

import asyncio
import hashlib
import os
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from pycri.errors import CorruptImage, InvalidRequest
from pycri.images.content import Document
from pycri.images.manifest import Descriptor, Index, Platform, parse_document, suits
from pycri.images.reference import Reference
from pycri.model.ids import Digest

_READ: Final = 1024 * 1024
_LONGEST_DOCUMENT: Final = 8 * 1024 * 1024
_NAMES: Final = ("io.containerd.image.name", "org.opencontainers.image.ref.name")


class _Span(msgspec.Struct, frozen=True):
    """Where a file of the layout lies."""

    path: Path
    offset: int
    size: int


class LayoutSource:
    """One image of a layout: a ContentSource."""

    def __init__(self, path: Path, reference: Reference, host: Platform) -> None:
        self._path = path
        self._reference = reference
        self._host = host
        self._members: dict[str, _Span] = {}

    async def root(self) -> Document:
        """Return the manifest or index that the layout has, by its name if there are several.

        Raises: InvalidRequest, CorruptImage.
        """
        if not self._path.is_dir():
            self._members = await asyncio.to_thread(_list_members, self._path)
        body = await self._read("index.json")
        index = parse_document(body, "")
        if not isinstance(index, Index):
            raise CorruptImage("index.json of the layout is not an index")
        return await self._document(self._choose(index))

    async def manifest(self, target: str) -> Document:
        """Return the manifest or index with this digest, verified."""
        return await self._document(Descriptor(digest=Digest(target), size=0))

    async def blob(self, descriptor: Descriptor) -> AsyncIterator[bytes]:
        """Yield the pieces of a blob, not verified."""
        span = self._find(_blob_name(descriptor.digest))
        with await asyncio.to_thread(_open_at, span) as file:
            left = span.size
            while left and (piece := await asyncio.to_thread(file.read, min(left, _READ))):
                left -= len(piece)
                yield piece

    def _choose(self, index: Index) -> Descriptor:
        entries = index.manifests
        named = [entry for entry in entries if self._is_named(entry)]
        fitting = [e for e in entries if e.platform is None or suits(e.platform, self._host)]
        for group in (named, fitting):
            if len(group) == 1:
                return group[0]
        raise InvalidRequest(
            "image", f"the layout has {len(entries)} images, and not one named {self._reference}"
        )

    def _is_named(self, entry: Descriptor) -> bool:
        names = {(entry.annotations or {}).get(key) for key in _NAMES}
        return bool(names & {str(self._reference), self._reference.tag} - {"", None})

    async def _document(self, descriptor: Descriptor) -> Document:
        body = await self._read(_blob_name(descriptor.digest))
        digest = Digest("sha256:" + hashlib.sha256(body).hexdigest())
        if digest != descriptor.digest:
            raise CorruptImage(f"the manifest {descriptor.digest} has the digest {digest}")
        return Document(body=body, media_type=descriptor.media_type, digest=digest)

    async def _read(self, name: str) -> bytes:
        span = self._find(name)
        if span.size > _LONGEST_DOCUMENT:
            raise CorruptImage(f"{name} of the layout is longer than {_LONGEST_DOCUMENT} bytes")
        return await asyncio.to_thread(_read_span, span)

    def _find(self, name: str) -> _Span:
        if self._members:
            span = self._members.get(name)
        else:
            path = self._path / name
            span = _Span(path, 0, path.stat().st_size) if path.is_file() else None
        if span is None:
            raise CorruptImage(f"{self._path} is not a whole OCI layout: {name} is missing")
        return span


def _blob_name(digest: Digest) -> str:
    return "blobs/" + digest.replace(":", "/")


def _list_members(path: Path) -> dict[str, _Span]:
    try:
        with tarfile.open(path, "r:") as archive:
            return {
                os.path.normpath(member.name): _Span(path, member.offset_data, member.size)
                for member in archive
                if member.isreg()
            }
    except tarfile.TarError as error:
        raise CorruptImage(
            f"{path} is neither a folder nor an uncompressed tar: {error}"
        ) from error
    except OSError as error:
        raise InvalidRequest("path", str(error)) from error


def _open_at(span: _Span) -> BinaryIO:
    file = span.path.open("rb")
    file.seek(span.offset)
    return file


def _read_span(span: _Span) -> bytes:
    with _open_at(span) as file:
        return file.read(span.size)
