# SPDX-License-Identifier: Apache-2.0
"""Images to an archive that others read: an OCI image layout that is a Docker archive as well.

    oci-layout                the mark of a layout
    blobs/sha256/<hex>        layers as plain tars (named by their diff ids), configs, manifests
    manifest.json             the images for what reads Docker archives, as `docker load` does
    index.json                the images for OCI's readers

Config, diff ids and so the image's id are those of the image that was pulled. Layers are made again
from their folders (recipes.py) and not compressed, so their digests are known beforehand and a tar
is written in one go. The manifest is a new one, and says so by its digest.
Source: OCI image-spec, image-layout.md; Docker, image/tarexport.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Final

import msgspec

from pycri.errors import Unsupported
from pycri.images.layers import LayerStore
from pycri.images.packer import write_archive
from pycri.images.recipes import read_archive_size
from pycri.images.sinks import INDEX, Sink
from pycri.model.ids import Digest
from pycri.model.image import Image

_INDEX_TYPE: Final = "application/vnd.oci.image.index.v1+json"
_MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
_CONFIG_TYPE: Final = "application/vnd.oci.image.config.v1+json"
_LAYER_TYPE: Final = "application/vnd.oci.image.layer.v1.tar"
_Json = dict[str, Any]


class ExportedImage(msgspec.Struct, frozen=True, kw_only=True):
    """An image to be exported, with the tags that it shall have there. config: as it came."""

    image: Image
    config: bytes


async def export_images(images: Sequence[ExportedImage], layers: LayerStore, sink: Sink) -> None:
    """Write images to `sink`. The layers must stay until this returns.

    Raises: Unsupported if a layer cannot be made again; CorruptImage if one is not what it was;
        OSError, SetupFailed, OutOfResources.
    """
    wanted = dict.fromkeys(layer for exported in images for layer in exported.image.layers)
    sizes = {diff_id: await _layer_size(layers, diff_id) for diff_id in wanted}
    await sink.write("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
    for diff_id, size in sizes.items():
        await _write_layer(layers, diff_id, size, sink)
    entries: list[_Json] = []
    for exported in images:
        manifest = msgspec.json.encode(_manifest(exported, sizes))
        await sink.write(_blob_name(exported.image.id), exported.config)
        await sink.write(_blob_name(_digest(manifest)), manifest)
        entries += _index_entries(exported, manifest)
    await sink.write("manifest.json", msgspec.json.encode([_docker_entry(e) for e in images]))
    index = {"schemaVersion": 2, "mediaType": _INDEX_TYPE, "manifests": entries}
    await sink.write(INDEX, msgspec.json.encode(index))


async def _layer_size(layers: LayerStore, diff_id: Digest) -> int:
    try:
        return await asyncio.to_thread(read_archive_size, str(layers.recipe(diff_id)))
    except FileNotFoundError:
        raise Unsupported(
            f"the layer {diff_id} cannot be exported: its archive replaced files of its own"
        ) from None


async def _write_layer(layers: LayerStore, diff_id: Digest, size: int, sink: Sink) -> None:
    def produce(fd: int) -> Awaitable[int]:
        return write_archive(layers.path(diff_id), layers.recipe(diff_id), diff_id, fd)

    await sink.produce(_blob_name(diff_id), size, produce)


def _manifest(exported: ExportedImage, sizes: Mapping[Digest, int]) -> _Json:
    layers = [_descriptor(_LAYER_TYPE, layer, sizes[layer]) for layer in exported.image.layers]
    config = _descriptor(_CONFIG_TYPE, exported.image.id, len(exported.config))
    manifest: _Json = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST_TYPE,
        "config": config,
        "layers": layers,
    }
    if exported.image.annotations:
        manifest["annotations"] = exported.image.annotations
    return manifest


def _index_entries(exported: ExportedImage, manifest: bytes) -> list[_Json]:
    """Return an entry for each name, or one without."""
    entry = _descriptor(_MANIFEST_TYPE, _digest(manifest), len(manifest))
    entry["platform"] = {"os": "linux", "architecture": exported.image.architecture}
    if not exported.image.tags:
        return [entry]
    return [entry | {"annotations": _name_annotations(tag)} for tag in exported.image.tags]


def _name_annotations(tag: str) -> dict[str, str]:
    return {
        "io.containerd.image.name": tag,
        "org.opencontainers.image.ref.name": tag.rpartition(":")[2],
    }


def _docker_entry(exported: ExportedImage) -> _Json:
    return {
        "Config": _blob_name(exported.image.id),
        "RepoTags": exported.image.tags,
        "Layers": [_blob_name(layer) for layer in exported.image.layers],
    }


def _descriptor(media_type: str, digest: str, size: int) -> _Json:
    return {"mediaType": media_type, "digest": digest, "size": size}


def _digest(body: bytes) -> Digest:
    return Digest("sha256:" + hashlib.sha256(body).hexdigest())


def _blob_name(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")
