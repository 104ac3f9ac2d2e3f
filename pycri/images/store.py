# SPDX-License-Identifier: Apache-2.0
"""The images of a node: pull, import, find, remove, collect garbage.

An image is listed when all its layers are whole on disk and its row is; never before. Reads are of
memory only. Names move: a tag that a pull gives to another image leaves the old one listed without
it, by its digests and its id. Removal by any name removes the image with all its names; layers that
no image has, no container uses and no pull is about to use are then removed aside.

`_changes` is held from reading an image's names to the end of the transaction that changes them.
"""

import asyncio
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from pycri.errors import CorruptImage, InvalidRequest, Unsupported
from pycri.images.admission import Admission
from pycri.images.archive import Archive
from pycri.images.checking import CheckedImage, check_images
from pycri.images.content import ContentSource, Document
from pycri.images.export import ExportedImage, export_images
from pycri.images.joining import JoinedTasks
from pycri.images.layers import LayerStore
from pycri.images.layout import ArchivedImage, choose_all, choose_named, list_images
from pycri.images.manifest import Descriptor, Platform
from pycri.images.names import ImageNames
from pycri.images.progress import LayerProgress, PullProgress, Transfers
from pycri.images.reference import FIELD_DEFAULTS, NameDefaults, Reference, parse_reference
from pycri.images.registry import RegistryClient
from pycri.images.resolving import ResolvedImage, resolve_image
from pycri.images.sinks import open_folder, open_tar
from pycri.images.usage import ImageUsage, image_usages
from pycri.model.ids import Digest, ImageId
from pycri.model.image import FilesystemUsage, Image, RegistryAuth, layer_keys
from pycri.state.database import Database
from pycri.state.records import (
    delete_image,
    load_image_config,
    load_images,
    save_image,
    save_image_config,
)

_LAYERS_AT_ONCE: Final = 3
_PullKey = tuple[str, RegistryAuth | None]


class ImageRules(msgspec.Struct, frozen=True, kw_only=True):
    """What the node's settings say. pinned: patterns of full names."""

    admission: Admission
    defaults: NameDefaults = FIELD_DEFAULTS
    pinned: tuple[str, ...] = ()


class ImageStore:
    """All images of a node.

    directory: `layers/` is made in it. layers_in_use: diff ids that containers are mounted on.
    """

    def __init__(
        self,
        directory: Path,
        database: Database,
        *,
        platform: Platform,
        registry: RegistryClient,
        rules: ImageRules,
        layers_in_use: Callable[[], frozenset[Digest]],
    ) -> None:
        self._directory = directory
        self._database = database
        self._platform = platform
        self._registry = registry
        self._layers_in_use = layers_in_use
        self._layers = LayerStore(directory / "layers", database)
        self._rules = rules
        self._names = ImageNames(rules.defaults, rules.pinned)
        self._pulls: JoinedTasks[_PullKey, Image] = JoinedTasks()
        self._progress: dict[_PullKey, PullProgress] = {}
        self._held: Counter[Digest] = Counter()
        # What is left of broken images is kept for a pull that makes them whole, or the next start.
        self._remains: dict[ImageId, frozenset[Digest]] = {}
        self._changes = asyncio.Lock()

    async def open(self) -> None:
        """Load what is stored; remove what a crash left half done, or took a part of.

        `layers_in_use` must know the containers by now: layers without an image are collected.
        """
        await self._layers.open()
        for image in await self._database.transact(load_images):
            if self._layers.is_whole(image.layers):
                self._names.put(image)
            else:
                self._remains[image.id] = layer_keys(image.layers)
                await self._delete_row(image)
        await self.collect_garbage()

    async def close(self) -> None:
        """Cancel pulls, wait for removals. The registry client is the caller's to close."""
        await self._pulls.close()
        await self._layers.close()

    def images(self) -> tuple[Image, ...]:
        """Return all images, oldest first."""
        return self._names.images()

    def find(self, name: str) -> Image | None:
        """Return the image a user means: by tag, digest, id, or the beginning of an id."""
        return self._names.find(name)

    def layer_paths(self, image: Image) -> tuple[str, ...]:
        """Return the folders of an image's layers for an overlay mount, topmost first."""
        return self.layer_folders(image.layers)

    def layer_folders(self, layers: tuple[Digest, ...]) -> tuple[str, ...]:
        """Return the folders of layers, given bottom first, for an overlay mount, topmost first."""
        return self._layers.folders(layers)

    @property
    def transfers(self) -> Transfers:
        """The layers being fetched."""
        return self._layers.transfers

    def usage(self) -> FilesystemUsage:
        """Return what the images take on disk, from memory."""
        used_bytes, inodes = self._layers.totals()
        return FilesystemUsage(
            timestamp_ns=time.time_ns(),
            mountpoint=str(self._directory),
            used_bytes=used_bytes,
            inodes_used=inodes,
        )

    def usages(self) -> tuple[ImageUsage, ...]:
        """Return what each image takes on disk, alone and with others, from memory."""
        return image_usages(self.images(), self._layers.sizes(), self._layers_in_use())

    async def pull(self, name: str, auth: RegistryAuth | None) -> Image:
        """Fetch an image from its registry, or join the pull of it under way with this `auth`.

        A caller that is cancelled leaves; the last one to leave cancels the pull. After a failure
        nothing is left of it.
        Raises: InvalidRequest, NotFound, Denied, RegistryUnavailable, TimedOut, CorruptImage,
            Unsupported, OutOfResources, SetupFailed, SignatureRejected.
        """
        reference = parse_reference(name, self._rules.defaults)
        self._rules.admission.check_name(reference)
        key = str(reference), auth
        return await self._pulls.run(key, lambda: self._pull(key, reference))

    def pull_progress(self, name: str, auth: RegistryAuth | None) -> tuple[LayerProgress, ...]:
        """Return how far the layers of a pull under way are; () until its manifest is known."""
        progress = self._progress.get((str(parse_reference(name, self._rules.defaults)), auth))
        return progress.layers() if progress else ()

    async def _pull(self, key: _PullKey, reference: Reference) -> Image:
        progress = self._progress[key] = PullProgress(self._layers.transfers, self._layers)
        try:
            source = self._registry.source(reference, key[1])
            root = await source.root()
            await self._rules.admission.check_content(reference, root)
            names = _Names(references=(reference,), digest=root.digest)
            return await self._fetch(source, root, names, progress)
        finally:
            if self._progress.get(key) is progress:
                del self._progress[key]

    async def import_archive(self, path: Path, name: str) -> tuple[Image, ...]:
        """Store the images of an archive, a folder or a tar, and return them.

        name: what the one that is meant shall be called; "" for all that have names in there.
        Raises: InvalidRequest, CorruptImage, Unsupported, NotFound, OutOfResources, SetupFailed.
        """
        archive = await Archive.open(path, self._directory)
        try:
            found = await list_images(archive)
            defaults = self._rules.defaults
            if not name:
                chosen = choose_all(found, defaults, self._platform, str(path))
                return tuple([await self._import(image, names) for image, names in chosen])
            reference = parse_reference(name, defaults)
            if reference.digest:
                raise InvalidRequest("image", "an import needs a tag; its digest is what it is")
            image = choose_named(found, reference, self._platform, str(path))
            return (await self._import(image, (reference,)),)
        finally:
            archive.close()

    async def _import(self, image: ArchivedImage, references: tuple[Reference, ...]) -> Image:
        names = _Names(references=references, digest=image.digest)
        progress = PullProgress(self._layers.transfers, self._layers)
        return await self._fetch(image.source, await image.source.root(), names, progress)

    async def export(self, path: Path, names: Sequence[str], *, folder: bool) -> None:
        """Write images to an archive at `path`: a tar, or a layout in a folder.

        An image that is named by a tag gets this one there, else all that it has.
        Raises: InvalidRequest, NotFound, AlreadyExists, Unsupported, CorruptImage, OutOfResources.
        """
        images = self._names.find_all(names)
        with self.holding(*(image.layers for image in images)):
            exported = [await self._exported(image) for image in images]
            async with open_folder(path) if folder else open_tar(path) as sink:
                await export_images(exported, self._layers, sink)

    async def _exported(self, image: Image) -> ExportedImage:
        config = await self._read_config(image.id)
        if config is None:
            raise Unsupported(f"{image.id} lacks its config; pull it again")
        return ExportedImage(image=image, config=config)

    async def _read_config(self, image_id: ImageId) -> bytes | None:
        return await self._database.transact(lambda c: load_image_config(c, image_id))

    async def check(self) -> AsyncIterator[CheckedImage]:
        """Compare every image with what was verified when it came, and yield what was found."""
        images = self.images()
        with self.holding(*(image.layers for image in images)):
            async for checked in check_images(images, self._layers, self._read_config):
                # One that was removed meanwhile lacks what it had.
                if self.find(checked.image.id) is not None:
                    yield checked

    async def repair(self, found: Sequence[CheckedImage]) -> tuple[Image, ...]:
        """Unlist broken images and remove their broken layers, so that a pull fetches these again.

        Those whose broken layers a container uses stay. Returns the images that are no more listed.
        """
        broken = frozenset[Digest]().union(*(checked.broken for checked in found))
        removable = broken - self._layers_in_use()
        unlisted = []
        async with self._changes:
            for checked in found:
                if checked.problems and checked.broken <= removable:
                    await self._unlist(checked.image)
                    unlisted.append(checked.image)
                    self._remains[checked.image.id] = layer_keys(checked.image.layers) - broken
        await self._layers.remove(removable - self._needed())
        await self.collect_garbage()
        return tuple(unlisted)

    async def remove(self, name: str) -> None:
        """Remove the image with all its names; one that is not there is fine."""
        async with self._changes:
            image = self.find(name)
            if image is None:
                return
            await self._unlist(image)
        await self.collect_garbage()

    async def _unlist(self, image: Image) -> None:
        await self._delete_row(image)
        self._names.discard(image.id)

    async def _delete_row(self, image: Image) -> None:
        await self._database.transact(lambda c: delete_image(c, image.id), durable=True)

    async def collect_garbage(self) -> None:
        """Remove the layers that no image, container or pull needs."""
        await self._layers.remove(self._layers.digests() - self._needed() - self._layers_in_use())

    def _needed(self) -> set[Digest]:
        """Return the layers that images and pulls need, or that wait for a pull."""
        kept = (*(layer_keys(image.layers) for image in self.images()), *self._remains.values())
        return self._held.keys() | set[Digest]().union(*kept)

    async def _fetch(
        self, source: ContentSource, root: Document, names: "_Names", progress: PullProgress
    ) -> Image:
        resolved = await resolve_image(source, root, self._platform, str(names))
        progress.begin(resolved.layers())
        try:
            with self.holding(resolved.config.diff_ids):
                await self._fetch_layers(source, resolved)
                await self._settle(names, resolved.config.diff_ids)
                return await self._record(names, resolved)
        except BaseException:
            await self.collect_garbage()
            raise

    async def _settle(self, names: "_Names", layers: tuple[Digest, ...]) -> None:
        try:
            await self._layers.settle(layers)
        except CorruptImage as error:
            raise CorruptImage(f"{names}: {error}") from error

    async def _fetch_layers(self, source: ContentSource, resolved: ResolvedImage) -> None:
        slots = asyncio.Semaphore(_LAYERS_AT_ONCE)

        async def fetch(blob: Descriptor, diff_id: Digest) -> None:
            async with slots:
                await self._layers.fetch(source, blob, diff_id)

        try:
            async with asyncio.TaskGroup() as group:
                for blob, diff_id in resolved.layers():
                    group.create_task(fetch(blob, diff_id))
        except BaseExceptionGroup as failures:
            # The first failure cancelled the other layers: it is the one to tell.
            raise failures.exceptions[0] from None

    async def _record(self, names: "_Names", resolved: ResolvedImage) -> Image:
        """Make the image known, on disk and then in memory, and take its tags from any other."""
        config, body = resolved.config, resolved.config_body
        async with self._changes:
            changed = self._names.with_pulled(
                Image(
                    id=config.id,
                    tags=names.tags(),
                    digests=names.digests(),
                    layers=config.diff_ids,
                    size_bytes=self._layers.size_bytes(config.diff_ids) + len(body),
                    config=config.config,
                    architecture=config.platform.architecture,
                    created=config.created,
                    annotations=resolved.manifest.annotations,
                )
            )
            await self._database.transact(lambda c: _save_images(c, changed, body), durable=True)
            self._remains.pop(config.id, None)
            for image in changed:
                self._names.put(image)
            return self._names.by_id(config.id)

    @contextmanager
    def holding(self, *stacks: tuple[Digest, ...]) -> Iterator[None]:
        """Keep layers from being collected: they belong to no image or container yet."""
        keys = [key for stack in stacks for key in layer_keys(stack)]
        self._held.update(keys)
        try:
            yield
        finally:
            self._held.subtract(keys)
            self._held += Counter()  # drops those at zero


class _Names(msgspec.Struct, frozen=True, kw_only=True):
    """What an image is stored under. digest: of what they were resolved to; None for nothing."""

    references: tuple[Reference, ...]
    digest: Digest | None

    def tags(self) -> tuple[str, ...]:
        return tuple(str(reference) for reference in self.references if reference.tag)

    def digests(self) -> tuple[str, ...]:
        if self.digest is None:
            return ()
        return tuple(dict.fromkeys(r.with_digest(self.digest) for r in self.references))

    def __str__(self) -> str:
        return ", ".join(map(str, self.references))


def _save_images(connection: sqlite3.Connection, images: tuple[Image, ...], config: bytes) -> None:
    """Save what has changed by the coming of the first image, whose config's bytes are given."""
    save_image_config(connection, images[0].id, config)
    for image in images:
        save_image(connection, image)
