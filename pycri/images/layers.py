# SPDX-License-Identifier: Apache-2.0
"""The layers on disk: one folder per diff id, whole or not there.

    layers/<hex of diff id>/            a layer, verified and synced; never changed
    layers/<hex of ChainID>/            its settlement: what it claims of those beneath (settle.py)
    layers/.partial-<random>/           being made; of no worth after a crash
    layers/.trash-<random>/             being removed
    recipes/<hex of diff id>            how its archive is made again (recipes.py), of most layers
    recipes/<hex of diff id>.claims     what it claims (claims.py), of few layers
    recipes/.partial-<random>[.claims]  being written

A settlement is mounted above its layer, and is there only as long as all layers that it is for.

A layer is unpacked into a partial folder, synced, renamed, and then has a row; one without a row or
without a folder did not survive a crash and is removed when the store opens. So is one whose tree
is not what was synced; that is looked at after the machine has stopped with the store open, for
disks and file systems that do not do as they say. Removal goes the other way: renamed, then the
row, then the files, which may take long.

`_moves` is held while a name in `layers/` and its row change together.
"""

import asyncio
import errno
import functools
import os
import secrets
import sqlite3
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from pycri.errors import CorruptImage, OutOfResources, PycriError, Unsupported
from pycri.images.claims import LINKS, claims_path, read_claims
from pycri.images.content import ContentSource
from pycri.images.joining import JoinedTasks, finish
from pycri.images.manifest import MOST_LAYERS, Descriptor
from pycri.images.progress import Transfers
from pycri.images.settler import settle_layer
from pycri.images.slots import Slot, Slots
from pycri.images.unpacker import unpack_layer
from pycri.kernel.priority import at_leisure
from pycri.kernel.process import read_boot_id
from pycri.kernel.trees import measure_tree, remove_tree
from pycri.logs import Log
from pycri.model.ids import Digest
from pycri.model.image import LayerRow, chain_ids, layer_keys, stack_keys
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
        self._slots = Slots(_UNPACKS_AT_ONCE)
        self._moves = asyncio.Lock()
        self._removals: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Load the rows; begin to remove what a crash, or a removal cut short, left half done."""
        rows = await self._database.transact(load_layers)
        if await self._was_cut_short():
            await asyncio.to_thread(self._set_damaged_aside, rows)
        known = {row.digest for row in rows}
        lost, garbage = await asyncio.to_thread(_compare, self._directory, rows)
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
            if path.exists() and not (is_whole(path, row) and self._are_claims_whole(row)):
                _log.error("a layer is damaged and is removed", layer=row.digest)
                os.rename(path, _trash(self._directory))

    def _are_claims_whole(self, row: LayerRow) -> bool:
        try:
            return not row.claims or bool(read_claims(str(self.claims(row.digest))))
        except CorruptImage:
            return False

    def __contains__(self, diff_id: object) -> bool:
        return diff_id in self._rows

    def digests(self) -> frozenset[Digest]:
        """Return the diff ids of all whole layers, and the ChainIDs of settlements."""
        return frozenset(self._rows)

    def row(self, key: Digest) -> LayerRow | None:
        """Return what is recorded of a layer or a settlement."""
        return self._rows.get(key)

    def is_whole(self, layers: tuple[Digest, ...]) -> bool:
        """Tell whether all layers of a stack, bottom first, are there and settled."""
        return self._rows.keys() >= set(layers) and not any(self._unsettled(layers))

    def _unsettled(self, layers: tuple[Digest, ...]) -> Iterator[tuple[Digest, ...]]:
        """Yield the stacks, lower ones first, whose last layer has claims that are not settled."""
        for count, (layer, chain) in enumerate(zip(layers, chain_ids(layers), strict=True), 1):
            claims = self._rows[layer].claims
            # Beneath the bottom layer is nothing: its folders are as they are, and no link leads
            # anywhere. Its ChainID is its diff id.
            if claims == LINKS if count == 1 else claims and chain not in self._rows:
                yield layers[:count]

    def path(self, diff_id: Digest) -> Path:
        """Return the folder of a layer, or of the settlement with this ChainID."""
        return self._directory / diff_id.removeprefix("sha256:")

    def folders(self, layers: tuple[Digest, ...]) -> tuple[str, ...]:
        """Return the folders to be mounted, topmost first, of a stack, given bottom first."""
        return tuple(str(self.path(key)) for key in stack_keys(layers, self._rows))

    def recipe(self, diff_id: Digest) -> Path:
        """Return the file that says how a layer's archive is made again; there may be none."""
        return self._recipes / diff_id.removeprefix("sha256:")

    def claims(self, diff_id: Digest) -> Path:
        """Return the file with what a layer claims of those beneath; there may be none."""
        return Path(claims_path(str(self.recipe(diff_id))))

    def size_bytes(self, layers: tuple[Digest, ...]) -> int:
        """Return what a stack of layers takes on disk."""
        return sum(self._rows[key].size_bytes for key in layer_keys(layers) & self._rows.keys())

    def sizes(self) -> dict[Digest, int]:
        """Return what each layer and each settlement takes on disk."""
        return {row.digest: row.size_bytes for row in self._rows.values()}

    def totals(self) -> tuple[int, int]:
        """Return the bytes and the inodes of all layers."""
        rows = self._rows.values()
        return sum(row.size_bytes for row in rows), sum(row.inodes for row in rows)

    async def fetch(self, source: ContentSource, blob: Descriptor, diff_id: Digest) -> None:
        """Make a layer be there: at once, with another's fetch of it, or with our own.

        Raises: CorruptImage, OutOfResources, SetupFailed; what the source raises.
        """
        await self._ensure(diff_id, lambda: self._fetch(source, blob, diff_id))

    async def settle(self, layers: tuple[Digest, ...]) -> None:
        """Do what layers, bottom first, claim of those beneath. All are there, and held.

        Raises: CorruptImage, Unsupported, OutOfResources, SetupFailed.
        """
        for stack in self._unsettled(layers):
            if len(stack) == 1:
                await self._settle(stack)  # which tells what is wrong with it
            await self._ensure(chain_ids(stack)[-1], functools.partial(self._settle, stack))
        if len(stack_keys(layers, self._rows)) > MOST_LAYERS:
            raise Unsupported(f"with its settlements the image has over {MOST_LAYERS} layers")

    async def _ensure(self, key: Digest, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while key not in self._rows:
            joining = self._fetches.is_running(key)
            try:
                await self._fetches.run(key, work)
            except PycriError:
                # Another image's registry or secret may fail where ours would not.
                if not joining:
                    raise

    async def _fetch(self, source: ContentSource, blob: Descriptor, diff_id: Digest) -> None:
        async def unpack(partial: Path, slot: Slot) -> LayerRow:
            with self.transfers.counting(source, diff_id) as counted:
                patient = slot.lent_while_waiting(counted)
                recipe, _ = self._beside(partial.name)
                return await unpack_layer(patient, blob, diff_id, partial, recipe)

        try:
            await self._make(unpack)
        except CorruptImage:
            # Another host may have it right: `fetch` comes again until it is there.
            if not source.distrust(blob.digest):
                raise

    async def _settle(self, stack: tuple[Digest, ...]) -> None:
        layers = (str(self.path(stack[-1])), *self.folders(stack[:-1]))
        claims = self.claims(stack[-1])
        try:
            await self._make(lambda partial, _: settle_layer(stack, partial, claims, layers))
        except CorruptImage as error:
            raise CorruptImage(f"layer {stack[-1]}: {error}") from error

    async def _make(self, work: Callable[[Path, Slot], Coroutine[Any, Any, LayerRow]]) -> None:
        """Make a folder, fill it with `work`, and publish what has come of it."""
        partial = self._directory / f".partial-{secrets.token_hex(8)}"
        async with self._slots.taken() as slot:
            try:
                await finish(asyncio.to_thread(os.mkdir, partial, 0o755))
                await finish(self._publish(partial, await work(partial, slot)))
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise OutOfResources(f"no room for the layer: {error}") from error
                raise
            finally:
                # There is none after a success.
                await finish(asyncio.to_thread(_remove_tree, partial))
                for path in self._beside(partial.name):
                    path.unlink(missing_ok=True)

    def _beside(self, name: str) -> tuple[Path, Path]:
        """Return where recipe and claims of the folder `name` are."""
        recipe = self._recipes / name
        return recipe, Path(claims_path(str(recipe)))

    async def _publish(self, partial: Path, row: LayerRow) -> None:
        target = self.path(row.digest)
        async with self._moves:
            beside = zip(self._beside(partial.name), self._beside(target.name), strict=True)
            for source, path in beside:
                await asyncio.to_thread(_replace_synced, source, path)
            await asyncio.to_thread(_rename_synced, partial, target)
            try:
                await self._database.transact(lambda connection: save_layer(connection, row))
            except BaseException:
                await asyncio.to_thread(os.rename, target, partial)
                raise
            self._rows[row.digest] = row

    async def remove(self, unused: Collection[Digest]) -> None:
        """Forget layers that nobody uses; their files are gone some time later.

        With a layer goes all that was settled with it.
        """
        gone = _with_dependents(self._rows.values(), unused)
        doomed = [self._rows.pop(digest) for digest in gone if digest in self._rows]
        if doomed:
            await finish(self._remove(doomed))

    async def _remove(self, doomed: list[LayerRow]) -> None:
        async with self._moves:
            for row in doomed:
                trash = _trash(self._directory)
                # What is not there any more, somebody else has removed.
                with suppress(FileNotFoundError):
                    await asyncio.to_thread(os.rename, self.path(row.digest), trash)
                for path in self._beside(self.path(row.digest).name):
                    await asyncio.to_thread(path.unlink, missing_ok=True)
                await self._delete_row(row.digest)
                self._run_aside(asyncio.to_thread(_remove_tree, trash))

    async def _delete_row(self, digest: Digest) -> None:
        await self._database.transact(lambda connection: delete_layer(connection, digest))

    def _run_aside(self, removal: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(removal)
        self._removals.add(task)
        task.add_done_callback(self._removals.discard)


@at_leisure()
def is_whole(path: Path, row: LayerRow) -> bool:
    """Tell whether a folder is as it was synced, but for the contents of files."""
    if row.fingerprint is None:
        return True
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


@at_leisure()
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
    recipes = {digest.removeprefix("sha256:") for digest in known}
    for name in set(os.listdir(directory)) - recipes - set(map(claims_path, recipes)):
        (directory / name).unlink()


def _compare(directory: Path, rows: list[LayerRow]) -> tuple[set[Digest], list[Path]]:
    """Return the layers that have no folder, and the folders that are no layer's.

    What has a layer's name and is none loses it at once: a fetch may want the name.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    wanted = {row.digest.removeprefix("sha256:"): row.digest for row in rows}
    found = set(os.listdir(directory))
    missing = {digest for name, digest in wanted.items() if name not in found}
    lost = _with_dependents(rows, missing)
    garbage = [directory / name for name in found if wanted.get(name, "") in lost | {""}]
    for number, path in enumerate(garbage):
        if not path.name.startswith("."):
            garbage[number] = path.rename(_trash(directory))
    return lost, garbage


def _with_dependents(rows: Iterable[LayerRow], gone: Collection[Digest]) -> set[Digest]:
    """Return `gone` with the settlements that are nothing without it."""
    return {*gone, *(row.digest for row in rows if not set(gone).isdisjoint(row.stack))}


def _trash(directory: Path) -> Path:
    return directory / f".trash-{secrets.token_hex(8)}"
