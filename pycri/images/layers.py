# SPDX-License-Identifier: Apache-2.0
"""The layers on disk: one folder per diff id, whole or not there.

    layers/<hex of diff id>/      a layer, verified and synced; never changed
    layers/.partial-<random>/     being unpacked; of no worth after a crash
    layers/.trash-<random>/       being removed
    recipes/<hex of diff id>      how its archive is made again (recipes.py), of most layers
    recipes/.partial-<random>     being written

A layer is unpacked into a partial folder, synced, renamed, and then has a row; one without a row or
without a folder did not survive a crash and is removed when the store opens. So is one whose tree
is not what was synced; that is looked at after the machine has stopped with the store open, for
disks and file systems that do not do as they say. Removal goes the other way: renamed, then the
row, then the files, which may take long.

`_moves` is held while a name in `layers/` and its row change together.
"""

import asyncio
import errno
import os
import secrets
import sqlite3
from collections.abc import Collection, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from pycri.errors import CorruptImage, OutOfResources, PycriError
from pycri.images.content import ContentSource
from pycri.images.joining import JoinedTasks, finish
from pycri.images.manifest import Descriptor
from pycri.images.progress import Transfers
from pycri.images.unpacker import unpack_layer
from pycri.kernel.process import read_boot_id
from pycri.kernel.trees import measure_tree, remove_tree
from pycri.logs import Log
from pycri.model.ids import Digest
from pycri.model.image import LayerRow
from pycri.state.database import Database
from pycri.state.records import delete_layer, load_layers, load_meta, save_layer, save_meta

_log = Log("images")
_UNPACKS_AT_ONCE: Final = 8
_OPEN_IN: Final = "layers_open_in_boot"
"""The boot in which the store was opened, "" once it was closed."""


class LayerStore:
    """All layers of a node. `directory` is their folder. transfers: the fetches under way."""

    def __init__(self, directory: Path, database: Database) -> None:
        self._directory = directory
        self._recipes = directory.with_name("recipes")
        self._database = database
        self.transfers = Transfers()
        self._rows: dict[Digest, LayerRow] = {}
        self._fetches: JoinedTasks[Digest, None] = JoinedTasks()
        self._slots = asyncio.Semaphore(_UNPACKS_AT_ONCE)
        self._moves = asyncio.Lock()
        self._removals: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Load the rows; begin to remove what a crash, or a removal cut short, left half done."""
        rows = await self._database.transact(load_layers)
        if await self._was_cut_short():
            await asyncio.to_thread(self._set_damaged_aside, rows)
        known = {row.digest for row in rows}
        lost, garbage = await asyncio.to_thread(_compare, self._directory, known)
        for path in garbage:
            self._run_aside(asyncio.to_thread(_remove_tree, path))
        await asyncio.to_thread(_sweep_recipes, self._recipes, known - lost)
        self._rows = {row.digest: row for row in rows if row.digest not in lost}
        for digest in lost:
            await self._delete_row(digest)
        boot_id = read_boot_id()
        await self._database.transact(lambda c: save_meta(c, _OPEN_IN, boot_id), durable=True)

    async def close(self) -> None:
        """Stop the fetches, and wait for removals under way."""
        await self._fetches.close()
        await asyncio.gather(*self._removals)
        # Where this fails, the next start looks at the layers.
        with suppress(sqlite3.Error, PycriError):
            await self._database.transact(lambda c: save_meta(c, _OPEN_IN, ""), durable=True)

    async def _was_cut_short(self) -> bool:
        """Tell whether the machine has stopped, or lost power, while the store was open."""
        opened_in = await self._database.transact(lambda c: load_meta(c, _OPEN_IN))
        return bool(opened_in) and opened_in != read_boot_id()

    def _set_damaged_aside(self, rows: list[LayerRow]) -> None:
        for row in rows:
            path = self.path(row.digest)
            if row.fingerprint is not None and path.exists() and not _is_whole(path, row):
                _log.error("a layer is damaged and is removed", layer=row.digest)
                os.rename(path, _trash(self._directory))

    def __contains__(self, diff_id: object) -> bool:
        return diff_id in self._rows

    def digests(self) -> frozenset[Digest]:
        """Return the diff ids of all whole layers."""
        return frozenset(self._rows)

    def path(self, diff_id: Digest) -> Path:
        """Return the folder of a layer."""
        return self._directory / diff_id.removeprefix("sha256:")

    def recipe(self, diff_id: Digest) -> Path:
        """Return the file that says how a layer's archive is made again; there may be none."""
        return self._recipes / diff_id.removeprefix("sha256:")

    def size_bytes(self, diff_ids: Collection[Digest]) -> int:
        """Return what these layers take on disk."""
        return sum(self._rows[diff_id].size_bytes for diff_id in set(diff_ids))

    def sizes(self) -> dict[Digest, int]:
        """Return what each layer takes on disk."""
        return {row.digest: row.size_bytes for row in self._rows.values()}

    def totals(self) -> tuple[int, int]:
        """Return the bytes and the inodes of all layers."""
        rows = self._rows.values()
        return sum(row.size_bytes for row in rows), sum(row.inodes for row in rows)

    async def fetch(self, source: ContentSource, blob: Descriptor, diff_id: Digest) -> None:
        """Make a layer be there: at once, with another's fetch of it, or with our own.

        Raises: CorruptImage, OutOfResources, SetupFailed; what the source raises.
        """
        while diff_id not in self._rows:
            joining = self._fetches.is_running(diff_id)
            try:
                await self._fetches.run(diff_id, lambda: self._fetch(source, blob, diff_id))
            except PycriError:
                # Another image's registry or secret may fail where ours would not.
                if not joining:
                    raise

    async def _fetch(self, source: ContentSource, blob: Descriptor, diff_id: Digest) -> None:
        partial = self._directory / f".partial-{secrets.token_hex(8)}"
        async with self._slots:
            try:
                await finish(asyncio.to_thread(os.mkdir, partial, 0o755))
                with self.transfers.counting(source, diff_id) as counted:
                    row = await unpack_layer(
                        counted, blob, diff_id, partial, self._recipes / partial.name
                    )
                await finish(self._publish(partial, row))
            except CorruptImage:
                # Another host may have it right: `fetch` comes again until it is there.
                if not source.distrust(blob.digest):
                    raise
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise OutOfResources(f"no room for the layer: {error}") from error
                raise
            finally:
                # There is none after a success.
                await finish(asyncio.to_thread(_remove_tree, partial))
                (self._recipes / partial.name).unlink(missing_ok=True)

    async def _publish(self, partial: Path, row: LayerRow) -> None:
        async with self._moves:
            recipe = self._recipes / partial.name
            await asyncio.to_thread(_replace_synced, recipe, self.recipe(row.digest))
            await asyncio.to_thread(_rename_synced, partial, self.path(row.digest))
            try:
                await self._database.transact(lambda connection: save_layer(connection, row))
            except BaseException:
                await asyncio.to_thread(os.rename, self.path(row.digest), partial)
                raise
            self._rows[row.digest] = row

    async def remove(self, unused: Collection[Digest]) -> None:
        """Forget layers that nobody uses; their files are gone some time later."""
        doomed = [self._rows.pop(digest) for digest in unused if digest in self._rows]
        if doomed:
            await finish(self._remove(doomed))

    async def _remove(self, doomed: list[LayerRow]) -> None:
        async with self._moves:
            for row in doomed:
                trash = _trash(self._directory)
                # What is not there any more, somebody else has removed.
                with suppress(FileNotFoundError):
                    await asyncio.to_thread(os.rename, self.path(row.digest), trash)
                await asyncio.to_thread(self.recipe(row.digest).unlink, missing_ok=True)
                await self._delete_row(row.digest)
                self._run_aside(asyncio.to_thread(_remove_tree, trash))

    async def _delete_row(self, digest: Digest) -> None:
        await self._database.transact(lambda connection: delete_layer(connection, digest))

    def _run_aside(self, removal: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(removal)
        self._removals.add(task)
        task.add_done_callback(self._removals.discard)


def _is_whole(path: Path, row: LayerRow) -> bool:
    try:
        return measure_tree(str(path)).fingerprint == row.fingerprint
    except OSError:
        return False


def _replace_synced(source: Path, target: Path) -> None:
    """Rename a file over another; one that is missing is missing then, too."""
    target.unlink(missing_ok=True)
    if source.exists():
        _rename_synced(source, target)


def _rename_synced(source: Path, target: Path) -> None:
    os.rename(source, target)
    fd = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _remove_tree(path: Path) -> None:
    """Remove a folder; what cannot be removed now is swept at the next start."""
    parent_fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            remove_tree(parent_fd, path.name)
    finally:
        os.close(parent_fd)


def _sweep_recipes(directory: Path, known: set[Digest]) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in set(os.listdir(directory)) - {digest.removeprefix("sha256:") for digest in known}:
        (directory / name).unlink()


def _compare(directory: Path, known: set[Digest]) -> tuple[set[Digest], list[Path]]:
    """Return the layers that have no folder, and the folders that are no layer's.

    What has a layer's name and is none loses it at once: a fetch may want the name.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    wanted = {digest.removeprefix("sha256:"): digest for digest in known}
    found = set(os.listdir(directory))
    garbage = [directory / name for name in found - set(wanted)]
    for number, path in enumerate(garbage):
        if not path.name.startswith("."):
            garbage[number] = path.rename(_trash(directory))
    return {digest for name, digest in wanted.items() if name not in found}, garbage


def _trash(directory: Path) -> Path:
    return directory / f".trash-{secrets.token_hex(8)}"
