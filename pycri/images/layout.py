# SPDX-License-Identifier: Apache-2.0
"""The images of an archive: an OCI image layout, or what `docker save` writes.

    oci-layout, index.json          OCI: manifests or indexes, each perhaps with a name
    blobs/sha256/<hex>              everything else

    manifest.json                   Docker: a list of images, with names, config and layers
    <anything>                      configs and layers, by the paths that manifest.json has

An archive that is both, as newer `docker save` and `ctr images export` write it, is read as OCI:
only there an image keeps its digest. For one of Docker's a manifest is made up.
Source: OCI image-spec, image-layout.md; Docker, image/tarexport.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Final

import msgspec

from pycri.errors import CorruptImage, InvalidRequest
from pycri.images.archive import Archive, Span, open_span, read_pieces
from pycri.images.blobs import BlobInput, is_compressed
from pycri.images.content import Document
from pycri.images.manifest import (
    Descriptor,
    Index,
    Platform,
    Rank,
    parse_config,
    parse_document,
    rank_platform,
    suits,
)
from pycri.images.reference import NameDefaults, Reference, parse_reference
from pycri.kernel.priority import at_leisure
from pycri.model.ids import Digest

_FULL_NAME: Final = "io.containerd.image.name"
_NAME: Final = "org.opencontainers.image.ref.name"
_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
_READ: Final = 1024 * 1024


class ArchiveSource:
    """One image of an archive: a ContentSource.

    root: its manifest or index, or where that is. places: of blobs without a name of their own.
    """

    def __init__(
        self, archive: Archive, root: Document | Descriptor, places: dict[Digest, Span]
    ) -> None:
        self._archive = archive
        self._root = root
        self._places = places

    async def root(self) -> Document:
        """Return the manifest or index of the image, verified. Raises: CorruptImage."""
        if isinstance(self._root, Document):
            return self._root
        return await _read_manifest(self._archive, self._root)

    async def manifest(self, target: str) -> Document:
        """Return the manifest or index with this digest, verified. Raises: CorruptImage."""
        return await _read_manifest(self._archive, Descriptor(digest=Digest(target), size=0))

    async def blob(self, descriptor: Descriptor) -> AsyncIterator[bytes]:
        """Yield the pieces of a blob, not verified. Raises: CorruptImage if it is missing."""
        digest = descriptor.digest
        span = self._places.get(digest) or self._archive.need(_blob_name(digest))
        async for piece in read_pieces(span):
            yield piece

    def distrust(self, digest: Digest) -> bool:
        """Tell that a blob proved wrong; there is no other."""
        return False


class ArchivedImage(msgspec.Struct, frozen=True, kw_only=True):
    """One image of an archive. names: as it says itself.

    digest: the image's own; None where the archive has none.
    """

    names: tuple[str, ...]
    platform: Platform | None
    source: ArchiveSource
    digest: Digest | None


class _DockerImage(msgspec.Struct, frozen=True, rename="pascal"):
    config: str
    layers: tuple[str, ...]
    repo_tags: tuple[str, ...] | None = None


async def list_images(archive: Archive) -> list[ArchivedImage]:
    """Return the images of an archive, in its order. Raises: CorruptImage, Unsupported."""
    if archive.find("index.json"):
        index = parse_document(await archive.read("index.json"), "")
        if not isinstance(index, Index):
            raise CorruptImage(f"index.json of {archive.name} is not an index")
        return [_oci_image(archive, entry) for entry in index.manifests]
    if archive.find("manifest.json"):
        try:
            body = await archive.read("manifest.json")
            images = msgspec.json.decode(body, type=list[_DockerImage])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise CorruptImage(f"manifest.json of {archive.name}: {error}") from error
        return [await _docker_image(archive, image) for image in images]
    raise CorruptImage(f"{archive.name} holds neither an OCI layout nor a Docker archive")


def choose_named(
    images: list[ArchivedImage], wanted: Reference, host: Platform, archive: str
) -> ArchivedImage:
    """Return the image to be stored as `wanted`: the one named so, or the only one for `host`.

    Raises: InvalidRequest if that is not one image.
    """
    named = [image for image in images if set(image.names) & {str(wanted), wanted.tag}]
    for group in (_fitting(named, host), _fitting(images, host)):
        # Several of one name differ in their platform.
        if len(group) == 1 or len({image.names or id(image) for image in group}) == 1:
            return group[0]
    raise InvalidRequest(
        "image", f"{archive} has {len(images)} images, and not one named {wanted} for {host}"
    )


def choose_all(
    images: list[ArchivedImage], defaults: NameDefaults, host: Platform, archive: str
) -> list[tuple[ArchivedImage, tuple[Reference, ...]]]:
    """Return the images for `host` that have names, with these. Raises: InvalidRequest if none."""
    chosen, taken = [], set[Reference]()
    for image in _fitting(images, host):
        # A tag alone is a name within a repository that the archive does not tell.
        full = [name for name in image.names if "/" in name or ":" in name]
        parsed = dict.fromkeys(parse_reference(name, defaults) for name in full)
        if tagged := tuple(name for name in parsed if name.tag and name not in taken):
            taken.update(tagged)
            chosen.append((image, tagged))
    if not chosen:
        raise InvalidRequest(
            "name", f"is needed: none of the {len(images)} images of {archive} has a full one"
        )
    return chosen


def _fitting(images: list[ArchivedImage], host: Platform) -> list[ArchivedImage]:
    """Return the images that run on `host`, those that suit it best first."""
    fitting = [image for image in images if image.platform is None or suits(image.platform, host)]
    return sorted(fitting, key=lambda image: _rank(image.platform, host))


def _rank(platform: Platform | None, host: Platform) -> Rank:
    rank = rank_platform(platform if platform and platform.architecture else None, host)
    assert rank is not None
    return rank


def _oci_image(archive: Archive, entry: Descriptor) -> ArchivedImage:
    annotations = entry.annotations or {}
    names = (annotations.get(_FULL_NAME), annotations.get(_NAME))
    return ArchivedImage(
        names=tuple(name for name in names if name),
        platform=entry.platform,
        source=ArchiveSource(archive, entry, {}),
        digest=entry.digest,
    )


async def _read_manifest(archive: Archive, descriptor: Descriptor) -> Document:
    body = await archive.read(_blob_name(descriptor.digest))
    digest = _digest(body)
    if digest != descriptor.digest:
        raise CorruptImage(f"the manifest {descriptor.digest} has the digest {digest}")
    return Document(body=body, media_type=descriptor.media_type, digest=digest)


async def _docker_image(archive: Archive, image: _DockerImage) -> ArchivedImage:
    config = await archive.read(image.config)
    digest = _digest(config)
    parsed = parse_config(config, digest, len(image.layers))
    places = {digest: archive.need(image.config)}
    layers = []
    for path, diff_id in zip(image.layers, parsed.diff_ids, strict=True):
        span = archive.need(path)
        blob = await asyncio.to_thread(_blob_digest, span, diff_id)
        places[blob] = span
        layers.append({"mediaType": _LAYER, "digest": blob, "size": span.size})
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": {"mediaType": _CONFIG, "digest": digest, "size": len(config)},
        "layers": layers,
    }
    body = msgspec.json.encode(manifest)
    document = Document(body=body, media_type=_MANIFEST, digest=_digest(body))
    return ArchivedImage(
        names=image.repo_tags or (),
        platform=parsed.platform,
        source=ArchiveSource(archive, document, places),
        digest=None,
    )


@at_leisure()
def _blob_digest(span: Span, diff_id: Digest) -> Digest:
    """Return the digest of a layer as it lies there: its diff id, if it is not compressed."""
    with open_span(span) as file:
        if not is_compressed(BlobInput(file.fileno())):
            return diff_id
    hashed, left = hashlib.sha256(), span.size
    with open_span(span) as file:
        while left and (piece := file.read(min(left, _READ))):
            left -= len(piece)
            hashed.update(piece)
    return Digest("sha256:" + hashed.hexdigest())


def _digest(body: bytes) -> Digest:
    return Digest("sha256:" + hashlib.sha256(body).hexdigest())


def _blob_name(digest: Digest) -> str:
    return "blobs/" + digest.replace(":", "/")
