# SPDX-License-Identifier: Apache-2.0
"""The machine stops in the middle of a pull: what the disk has afterwards is whole or not listed.

The store lies on a file system of its own, which is shut down at a named step (FS_IOC_SHUTDOWN):
what was not synced is lost, as when the power goes; then it is mounted again, by another "boot".
"""

import asyncio
import itertools
import os
import random
import shutil
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from pycri.images import layers, store
from pycri.images.store import ImageStore
from pycri.model.ids import Digest
from tests.world.disks import JOURNAL_ONLY, POWER_LOSS, CrashingDisk
from tests.world.image_stores import FaultyRegistry, forget_the_boot, open_store, wait_for_layers
from tests.world.oci import Image, Layer, build_image


@pytest.fixture
def disk(tmp_path: Path) -> CrashingDisk:
    return CrashingDisk(tmp_path / "disk.img", tmp_path / "disk")


def many_files() -> Image:
    archives = []
    for number in range(3):
        layer = Layer().directory(f"d{number}")
        for name in range(200):
            layer.file(f"d{number}/{name}", os.urandom(20_000))
        archives.append(layer.tar())
    return build_image(archives, {})


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


def crash_in(disk: CrashingDisk, work: Work) -> bool:
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


def crashing(
    disk: CrashingDisk, kind: int, original: Callable[..., Any], last: int, after: bool
) -> Callable[..., Any]:
    """Return what does as `original`, and in its call number `last` crashes the disk."""
    numbers = itertools.count(1)

    def call(*arguments: Any) -> Any:
        is_last = next(numbers) == last
        if is_last and not after:
            disk.crash(kind)
        result = original(*arguments)
        if is_last and after:
            disk.crash(kind)
        return result

    return call


@KINDS
@pytest.mark.parametrize("step", list(STEPS))
def test_a_crash_at_a_step_leaves_whole_images_only(
    step: str, kind: int, disk: CrashingDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, name, after = STEPS[step]
    # Of three layers, one is whole by then.
    last = {"_save_images": 1, "_replace_synced": 3}.get(name, 2)
    monkeypatch.setattr(module, name, crashing(disk, kind, getattr(module, name), last, after))
    assert not crash_in(disk, pull)


SETTLING: dict[str, tuple[str, int, bool]] = {
    "before it is settled": ("settle_layer", 1, False),
    "settled and synced": ("_replace_synced", 5, False),
    "the settlement has its name": ("_rename_synced", 6, True),
    "the settlement has its row": ("save_layer", 3, True),
}
"""The function that is a step, how often it has been called by then, and when the crash comes."""


@KINDS
@pytest.mark.parametrize("step", list(SETTLING))
def test_a_crash_while_claims_are_settled_leaves_whole_images_only(
    step: str, kind: int, disk: CrashingDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, last, after = SETTLING[step]
    monkeypatch.setattr(layers, name, crashing(disk, kind, getattr(layers, name), last, after))
    lower = Layer().directory("d", mode=0o750).file("d/file", os.urandom(20_000))
    image = build_image([lower.tar(), Layer().hardlink("d/new", "d/file").tar()], {})

    async def main() -> None:
        async with FaultyRegistry.start(image) as registry:
            with disk.mounted():
                with suppress(Exception):
                    async with open_store(disk.folder) as opened:
                        await pull(registry, opened)
                assert disk.crashed
            with disk.mounted():
                forget_the_boot(disk.folder)
                async with open_store(disk.folder) as opened:
                    assert opened.find(registry.reference) is None
                    pulled = await opened.pull(registry.reference, None)
                    settled = Path(opened.layer_paths(pulled)[0])
                    assert (settled / "d/new").stat().st_nlink == 2
                    assert (settled / "d").stat().st_mode & 0o777 == 0o750
                    assert [found.problems async for found in opened.check()] == [()]
                    await wait_for_layers(disk.folder, 3)
                    assert len(os.listdir(disk.folder / "images/recipes")) == 3

    asyncio.run(main())


@KINDS
def test_a_crash_while_layers_are_unpacked_leaves_nothing_of_them(
    kind: int, disk: CrashingDisk
) -> None:
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
def test_what_a_pull_has_returned_survives_a_crash(kind: int, disk: CrashingDisk) -> None:
    async def work(registry: FaultyRegistry, opened: ImageStore) -> None:
        await pull(registry, opened)
        disk.crash(kind)

    assert crash_in(disk, work)


@pytest.mark.parametrize("seed", range(6))
def test_a_crash_at_any_time_leaves_whole_images_only(seed: int, disk: CrashingDisk) -> None:
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


@pytest.mark.parametrize("damaged", ["the settlement", "the layer beneath", "its claims"])
def test_what_is_damaged_of_a_settled_image_is_made_again_alone(
    damaged: str, tmp_path: Path
) -> None:
    lower = Layer().directory("d", mode=0o750).file("d/file", os.urandom(20_000)).tar()
    image = build_image([lower, Layer().hardlink("d/new", "d/file").tar()], {})

    async def main() -> None:
        async with FaultyRegistry.start(image) as registry:
            async with open_store(tmp_path) as opened:
                pulled = await opened.pull(registry.reference, None)
                folders = [Path(folder) for folder in opened.layer_paths(pulled)]
                claims = opened._layers.claims(pulled.layers[1])
            match damaged:
                case "the settlement":
                    (folders[0] / "d/new").unlink()
                case "the layer beneath":
                    os.truncate(folders[2] / "d/file", 0)
                case "its claims":
                    (folders[0] / "d/new").unlink()
                    os.truncate(claims, 0)
            forget_the_boot(tmp_path)
            async with open_store(tmp_path) as opened:
                assert opened.find(registry.reference) is None
                pulled = await opened.pull(registry.reference, None)
                file = os.stat(opened.layer_paths(pulled)[0] + "/d/new")
                assert (file.st_nlink, file.st_size) == (2, 20_000)
            asked = [registry.asked(layer) for layer in image.layers]
            again = {"the layer beneath": [2, 1], "its claims": [1, 2]}
            assert asked == again.get(damaged, [1, 1])

    asyncio.run(main())


def spoil(layer: Path, damage: str) -> None:
    match damage:
        case "truncated":
            os.truncate(layer / "d1/7", 0)
        case "removed":
            os.unlink(layer / "d1/7")
        case "folder":
            shutil.rmtree(layer)
