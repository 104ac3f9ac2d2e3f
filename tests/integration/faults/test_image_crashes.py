# SPDX-License-Identifier: Apache-2.0
"""The machine stops in the middle of a pull: what the disk has afterwards is whole or not listed.

The store lies on a file system of its own, which is shut down at a named step (FS_IOC_SHUTDOWN):
what was not synced is lost, as when the power goes; then it is mounted again, by another "boot".
"""

import asyncio
import fcntl
import os
import random
import shutil
import sqlite3
import struct
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from pycri.images import layers, store
from pycri.images.store import ImageStore
from pycri.model.ids import Digest
from tests.world.image_stores import FaultyRegistry, open_store, wait_for_layers
from tests.world.oci import Image, Layer, build_image

_SHUTDOWN = 0x8004587D
"""FS_IOC_SHUTDOWN of ext4 and xfs."""
POWER_LOSS = 2
"""Nothing of what is in memory reaches the disk."""
JOURNAL_ONLY = 1
"""The journal does, the data of files do not: the way to files of zeros or without content."""


class Disk:
    """A file system in a file, mounted at `folder`. crashed: it takes nothing any more."""

    def __init__(self, file: Path, folder: Path) -> None:
        self.folder = folder
        self._file = file
        self.crashed = False
        with open(file, "wb") as image:
            image.truncate(256 << 20)
        subprocess.run(["mkfs.ext4", "-q", file], check=True)
        folder.mkdir()

    @contextmanager
    def mounted(self) -> Iterator[None]:
        subprocess.run(["mount", "-o", "loop", self._file, self.folder], check=True)
        try:
            yield
        finally:
            subprocess.run(["umount", self.folder], check=True)

    def crash(self, kind: int) -> None:
        fd = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", kind))
            self.crashed = True
        finally:
            os.close(fd)


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path / "disk.img", tmp_path / "disk")


def many_files() -> Image:
    archives = []
    for number in range(3):
        layer = Layer().directory(f"d{number}")
        for name in range(200):
            layer.file(f"d{number}/{name}", os.urandom(20_000))
        archives.append(layer.tar())
    return build_image(archives, {})


def forget_the_boot(folder: Path) -> None:
    """Let the store believe that the machine was started again."""
    with sqlite3.connect(folder / "pycri.db") as database:
        database.execute("UPDATE meta SET value = 'former' WHERE key = 'layers_open_in_boot'")
    database.close()


def content_of(folder: Path, layer: Digest) -> dict[str, bytes]:
    root = folder / "images/layers" / layer.removeprefix("sha256:")
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


async def check_after_a_crash(folder: Path, registry: FaultyRegistry, image: Image) -> bool:
    """Open the store again, pull what is missing, and check every byte; tell what was listed."""
    async with open_store(folder) as opened:
        listed = opened.find(registry.reference) is not None
        kept = set(opened._layers.digests())
        before = len(registry.requests)
        pulled = await opened.pull(registry.reference, None)
        asked = registry.requests[before:]
        for blob, diff_id in zip(image.layers, pulled.layers, strict=True):
            assert any(request.endswith(blob) for request in asked) == (diff_id not in kept)
            assert len(content_of(folder, diff_id)) == 200
            assert all(len(data) == 20_000 for data in content_of(folder, diff_id).values())
        checked = [found async for found in opened.check()]
        assert [found.problems for found in checked] == [()]
        await wait_for_layers(folder, len(image.layers))
        assert len(os.listdir(folder / "images/recipes")) == len(image.layers)
    return listed


Work = Callable[[FaultyRegistry, ImageStore], Awaitable[None]]


def crash_in(disk: Disk, work: Work) -> bool:
    """Do what ends with a crash of the disk; return whether the image was listed afterwards."""
    image = many_files()

    async def main() -> bool:
        async with FaultyRegistry.start(image) as registry:
            with disk.mounted():
                # All fails once the disk is gone, whatever the layer above makes of it.
                with suppress(Exception):
                    async with open_store(disk.folder) as opened:
                        await work(registry, opened)
                assert disk.crashed
            registry.faults.clear()
            with disk.mounted():
                with suppress(sqlite3.OperationalError):  # not even the tables may be there
                    forget_the_boot(disk.folder)
                return await check_after_a_crash(disk.folder, registry, image)

    return asyncio.run(main())


async def pull(registry: FaultyRegistry, opened: ImageStore) -> None:
    await opened.pull(registry.reference, None)


STEPS: dict[str, tuple[Any, str, bool]] = {
    "unpacked and synced": (layers, "_replace_synced", False),
    "the recipe has its name": (layers, "_replace_synced", True),
    "the folder has its name": (layers, "_rename_synced", True),
    "the layer has its row": (layers, "save_layer", True),
    "before the image has its row": (store, "_save_images", False),
    "the image's row is not committed": (store, "_save_images", True),
}
"""The function that is a step, and whether the crash comes after it."""
KINDS = pytest.mark.parametrize(
    "kind", [POWER_LOSS, JOURNAL_ONLY], ids=["power loss", "journal only"]
)


@KINDS
@pytest.mark.parametrize("step", list(STEPS))
def test_a_crash_at_a_step_leaves_whole_images_only(
    step: str, kind: int, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, name, after = STEPS[step]
    original = getattr(module, name)
    calls = 0

    def crashing(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        last = 1 if module is store else 2  # of three layers, one is whole by then
        if calls == last and not after:
            disk.crash(kind)
        result = original(*arguments)
        if calls == last and after:
            disk.crash(kind)
        return result

    monkeypatch.setattr(module, name, crashing)
    assert not crash_in(disk, pull)


@KINDS
def test_a_crash_while_layers_are_unpacked_leaves_nothing_of_them(kind: int, disk: Disk) -> None:
    async def work(registry: FaultyRegistry, opened: ImageStore) -> None:
        arrived = asyncio.Event()

        async def stalls(request: web.Request) -> web.StreamResponse:
            blob = registry.image.blobs[registry.image.layers[1]]
            response = web.StreamResponse(headers={"Content-Length": str(len(blob))})
            await response.prepare(request)
            await response.write(blob[:-1000])
            arrived.set()
            await asyncio.Event().wait()
            return response

        registry.faults[registry.image.layers[1]] = stalls
        pulling = asyncio.create_task(pull(registry, opened))
        await arrived.wait()
        disk.crash(kind)
        pulling.cancel()
        await asyncio.wait([pulling])

    assert not crash_in(disk, work)


@KINDS
def test_what_a_pull_has_returned_survives_a_crash(kind: int, disk: Disk) -> None:
    async def work(registry: FaultyRegistry, opened: ImageStore) -> None:
        await pull(registry, opened)
        disk.crash(kind)

    assert crash_in(disk, work)


@pytest.mark.parametrize("seed", range(6))
def test_a_crash_at_any_time_leaves_whole_images_only(seed: int, disk: Disk) -> None:
    chance = random.Random(seed)

    async def work(registry: FaultyRegistry, opened: ImageStore) -> None:
        pulling = asyncio.create_task(pull(registry, opened))
        await asyncio.wait([pulling], timeout=chance.uniform(0, 0.6))
        disk.crash(chance.choice([POWER_LOSS, JOURNAL_ONLY]))
        await asyncio.wait([pulling])

    crash_in(disk, work)


@pytest.mark.parametrize("damage", ["truncated", "removed", "folder"])
def test_a_layer_that_is_damaged_after_a_crash_is_fetched_again_alone(
    damage: str, tmp_path: Path
) -> None:
    image = many_files()

    async def main() -> None:
        async with FaultyRegistry.start(image) as registry:
            async with open_store(tmp_path) as opened:
                pulled = await opened.pull(registry.reference, None)
            name = pulled.layers[1].removeprefix("sha256:")
            spoil(tmp_path / "images/layers" / name, damage)
            forget_the_boot(tmp_path)
            before = len(registry.requests)
            assert not await check_after_a_crash(tmp_path, registry, image)
            assert [name for name in registry.requests[before:] if "/blobs/" in name] == [
                f"GET /v2/tests/image/blobs/{digest}" for digest in (image.config, image.layers[1])
            ]

    asyncio.run(main())


def spoil(layer: Path, damage: str) -> None:
    match damage:
        case "truncated":
            os.truncate(layer / "d1/7", 0)
        case "removed":
            os.unlink(layer / "d1/7")
        case "folder":
            shutil.rmtree(layer)
