# SPDX-License-Identifier: Apache-2.0
"""Images whose layers claim something of those beneath: pulled, run, shared, kept and removed.

What a claim comes to is in `tests/integration/kernel/test_claims.py`.
"""

import asyncio
import os
import subprocess
from collections.abc import Callable, Coroutine
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pycri.errors import CorruptImage
from pycri.images import layers, settler
from pycri.images.reference import FIELD_DEFAULTS
from pycri.images.store import ImageStore
from pycri.images.stored import StoredImages
from pycri.model.ids import Digest
from pycri.model.image import chain_ids
from tests.world.daemon import Node
from tests.world.image_stores import (
    REPOSITORY,
    FaultyRegistry,
    list_layers,
    open_store,
    wait_for_layers,
)
from tests.world.images import Images, busybox_layer
from tests.world.oci import Image, Layer, build_image, digest_of, write_layout
from tests.world.registry import Registry


@cache
def below(content: str) -> bytes:
    layer = Layer().directory("data", mode=0o2750, uid=7, gid=8)
    return layer.file("data/file", content, mode=0o640, uid=5).tar()


@cache
def claiming() -> bytes:
    """Return a layer with a file in a folder, and a link to a file, of a layer beneath."""
    return Layer().file("data/own", "own").hardlink("data/new", "data/file").tar()


def image_of(*layers: bytes) -> Image:
    return build_image(list(layers), {"Cmd": ["/none"]})


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def look(store: ImageStore, name: str, folder: Path) -> tuple[str, int, int, bool]:
    """Return what a container would see: the link's content, mode and owner of its folder, and
    whether the link is the file that it was made from."""
    found = store.find(name)
    assert found is not None
    target = folder / "root"
    target.mkdir(exist_ok=True)
    lower = ":".join(store.layer_paths(found))
    command = ["mount", "-t", "overlay", "overlay", "-o", f"lowerdir={lower}", str(target)]
    subprocess.run(command, check=True)
    try:
        status = (target / "data").stat()
        same = (target / "data/new").samefile(target / "data/file")
        return (target / "data/new").read_text(), status.st_mode & 0o7777, status.st_uid, same
    finally:
        subprocess.run(["umount", target], check=True)


def settlement(*layers: bytes) -> str:
    """Return the name of the folder for the last of these layers."""
    return chain_ids(tuple(Digest(digest_of(layer)) for layer in layers))[-1][len("sha256:") :]


@pytest.fixture(scope="module")
def linking(registry: Registry) -> str:
    """An image whose second layer has another name for the shell of the first, and a file in a
    folder that only the first one describes."""
    layer = Layer().hardlink("bin/busybox-too", "bin/busybox").file("root/own", "own\n")
    registry.push(build_image([busybox_layer(), layer.tar()], {}), "tests/linking")
    return registry.reference("tests/linking")


def test_a_container_sees_the_merged_tree(node: Node, linking: str) -> None:
    node.pull(linking)
    pod = node.run_pod("merged")
    script = (
        "stat -c '%a %U' /root; stat -c '%i %h' /bin/busybox-too /bin/busybox | uniq; cat /root/own"
    )
    output = node.run_to_end(pod, linking, command=["/bin/busybox-too", "sh", "-c", script])
    folder, links, own = output.splitlines()
    assert (folder, own) == ("700 root", "own") and links.endswith(" 2")


def test_a_container_writes_to_its_own_copy(node: Node, linking: str) -> None:
    node.pull(linking)
    pod = node.run_pod("copies")
    script = (
        "echo >> /bin/busybox-too; chmod 711 /root; stat -c %a /root; cmp -s /bin/busyb* || echo no"
    )
    for name in ("first", "second"):
        output = node.run_to_end(pod, linking, name=name, command=["/bin/sh", "-c", script])
        assert output == "711\nno\n"


def test_an_image_volume_shows_the_merged_tree(node: Node, images: Images, linking: str) -> None:
    node.pull(linking)
    pod = node.run_pod("volume")
    mount = {"container_path": "/volume", "image": {"image": linking}, "readonly": True}
    command = ["stat", "-c", "%a", "/volume/root", "/volume/bin/busybox-too"]
    assert node.run_to_end(pod, images["busybox"], command=command, mounts=[mount]) == "700\n755\n"


def test_what_skopeo_and_another_node_make_of_the_export_is_the_same_image(
    registry: Registry, linking: str, tmp_path: Path
) -> None:
    async def export() -> str:
        async with open_store(tmp_path / "one") as store:
            image = await store.pull(linking, None)
            await store.export(tmp_path / "out.tar", [linking], folder=False)
            return image.id

    async def take() -> tuple[str, str]:
        async with open_store(tmp_path / "two") as store:
            (image,) = await store.import_archive(tmp_path / "out.tar", "")
            return image.id, store.layer_paths(image)[0]

    image_id = asyncio.run(export())
    command = ["skopeo", "inspect", "--config", "--raw", f"docker-archive:{tmp_path}/out.tar"]
    assert digest_of(subprocess.run(command, capture_output=True, check=True).stdout) == image_id
    again, settled = asyncio.run(take())
    assert again == image_id and Path(settled, "bin/busybox-too").stat().st_nlink == 2


@pytest.mark.parametrize("form", ["layout", "docker"])
def test_an_archive_is_settled_as_a_pull_is(form: str, tmp_path: Path) -> None:
    write_layout(tmp_path / "layout", image_of(below("one"), claiming()), "tests/local:1")
    path = tmp_path / "layout"
    if form == "docker":
        path = tmp_path / "docker.tar"
        command = ["skopeo", "copy", "--quiet", f"oci:{tmp_path}/layout:tests/local:1"]
        subprocess.run([*command, f"docker-archive:{path}:tests/local:1"], check=True)

    async def main() -> None:
        async with open_store(tmp_path) as store:
            await store.import_archive(path, "tests/local:1")
            assert look(store, "tests/local:1", tmp_path) == ("one", 0o2750, 7, True)

    run(main())


class Shelf:
    """A registry of several images: each at REPOSITORY-NAME."""

    def __init__(self, registry: FaultyRegistry, **images: Image) -> None:
        self._address = registry.address
        for image in images.values():
            registry.image.blobs.update(image.blobs)
            registry.image.manifests.update(image.manifests)
        self._roots = {name: image.root.digest for name, image in images.items()}

    def __getitem__(self, name: str) -> str:
        return f"{self._address}/{REPOSITORY}@{self._roots[name]}"


def test_a_layer_is_fetched_once_and_settled_for_each_stack_it_is_in(tmp_path: Path) -> None:
    one, two = image_of(below("one"), claiming()), image_of(below("two"), claiming())
    shared = one.layers[1]

    async def main() -> None:
        async with FaultyRegistry.start(one) as registry, open_store(tmp_path) as store:
            shelf = Shelf(registry, one=one, two=two)
            pulled = await asyncio.gather(
                store.pull(shelf["one"], None), store.pull(shelf["two"], None)
            )
            assert registry.asked(shared) == 1
            assert look(store, shelf["one"], tmp_path) == ("one", 0o2750, 7, True)
            assert look(store, shelf["two"], tmp_path) == ("two", 0o2750, 7, True)
            names = {settlement(below(each), claiming()) for each in ("one", "two")}
            assert names < set(list_layers(tmp_path)) and len(list_layers(tmp_path)) == 5
            await store.remove(pulled[0].id)
            await wait_for_layers(tmp_path, 3)
            assert settlement(below("two"), claiming()) in list_layers(tmp_path)
            assert look(store, shelf["two"], tmp_path) == ("two", 0o2750, 7, True)
            await store.remove(pulled[1].id)
            await wait_for_layers(tmp_path, 0)
            assert os.listdir(tmp_path / "images/recipes") == []

    run(main())


def test_pulls_at_the_same_time_settle_a_stack_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, settled = settler.settle_layer, []

    async def counting(stack: Any, *arguments: Any) -> Any:
        settled.append(stack)
        return await original(stack, *arguments)

    monkeypatch.setattr(layers, "settle_layer", counting)
    one = image_of(below("one"), claiming())
    # Another image with the same layers.
    two = build_image([below("one"), claiming()], {"Cmd": ["/other"]})

    async def main() -> None:
        async with FaultyRegistry.start(one) as registry, open_store(tmp_path) as store:
            shelf = Shelf(registry, one=one, two=two)
            await asyncio.gather(*(store.pull(shelf[name], None) for name in ("one", "two")))
            assert len(settled) == 1
            await store.remove(one.config)
            assert look(store, shelf["two"], tmp_path)[0] == "one"

    run(main())


def test_a_claim_that_no_layer_meets_fails_the_pull_by_its_names(tmp_path: Path) -> None:
    image = image_of(Layer().file("other").tar(), claiming())

    async def main() -> None:
        async with FaultyRegistry.start(image) as registry, open_store(tmp_path) as store:
            with pytest.raises(CorruptImage) as raised:
                await store.pull(registry.reference, None)
            message = str(raised.value)
            assert registry.reference in message and digest_of(claiming()) in message
            assert "'data/new' is a hard link to 'data/file'" in message
            await wait_for_layers(tmp_path, 0)
            assert os.listdir(tmp_path / "images/recipes") == []

    run(main())


def test_a_lowest_layer_that_claims_a_link_is_refused(tmp_path: Path) -> None:
    image = image_of(claiming())

    async def main() -> None:
        async with FaultyRegistry.start(image) as registry, open_store(tmp_path) as store:
            with pytest.raises(CorruptImage, match="no layer beneath has it"):
                await store.pull(registry.reference, None)
            await wait_for_layers(tmp_path, 0)

    run(main())


def test_a_lowest_layer_needs_no_settlement_for_its_folders(tmp_path: Path) -> None:
    image = image_of(Layer().file("a/b/c").tar(), Layer().file("d", "x").tar())

    async def main() -> None:
        async with FaultyRegistry.start(image) as registry:
            async with open_store(tmp_path) as store:
                await store.pull(registry.reference, None)
            async with open_store(tmp_path) as store:
                assert store.find(registry.reference) and len(list_layers(tmp_path)) == 2

    run(main())


def test_a_container_keeps_the_settlement_of_an_image_that_is_removed(tmp_path: Path) -> None:
    one = image_of(below("one"), claiming())
    used: set[Digest] = set()

    async def main() -> None:
        async with FaultyRegistry.start(one) as registry:
            async with open_store(tmp_path, in_use=lambda: frozenset(used)) as store:
                image = await store.pull(registry.reference, None)
                folders = store.layer_paths(image)
                used.update(Digest(f"sha256:{Path(folder).name}") for folder in folders)
                await store.remove(image.id)
                assert all(map(os.path.isdir, folders))
            async with open_store(tmp_path, in_use=lambda: frozenset(used)) as store:
                assert store.layer_folders(image.layers) == folders
                assert all(map(os.path.isdir, folders))
                used.clear()
                await store.collect_garbage()
                await wait_for_layers(tmp_path, 0)

    run(main())


def test_disk_use_counts_a_settlement_once_and_no_file_twice(tmp_path: Path) -> None:
    one = image_of(below("one" * 100_000), claiming())

    async def main() -> None:
        async with FaultyRegistry.start(one) as registry, open_store(tmp_path) as store:
            image = await store.pull(registry.reference, None)
            (usage,) = store.usages()
            assert usage.size_bytes == usage.reclaimable_bytes == store.usage().used_bytes
            assert 300_000 < usage.size_bytes < 400_000
            assert image.size_bytes - usage.size_bytes == len(one.blobs[one.config])

    run(main())


def damage_settlement(folder: Path) -> None:
    os.chmod(folder / settlement(below("one"), claiming()) / "data", 0o700)


def remove_link(folder: Path) -> None:
    os.unlink(folder / settlement(below("one"), claiming()) / "data/new")


@pytest.mark.parametrize("damage", [damage_settlement, remove_link])
def test_a_damaged_settlement_is_found_and_made_again_without_a_fetch(
    damage: Callable[[Path], None], tmp_path: Path
) -> None:
    one = image_of(below("one"), claiming())

    async def main() -> None:
        async with FaultyRegistry.start(one) as registry, open_store(tmp_path) as store:
            await store.pull(registry.reference, None)
            damage(tmp_path / "images/layers")
            found = [checked async for checked in store.check()]
            assert "settlement" in found[0].problems[0]
            assert await store.repair(found)
            await store.pull(registry.reference, None)
            assert [registry.asked(layer) for layer in one.layers] == [1, 1]
            assert look(store, registry.reference, tmp_path) == ("one", 0o2750, 7, True)
            assert [checked.problems async for checked in store.check()] == [()]

    run(main())


def test_a_layer_beneath_that_is_damaged_takes_the_settlement_with_it(tmp_path: Path) -> None:
    """The settlement has names of the damaged file itself."""
    one = image_of(below("one"), claiming())

    async def main() -> None:
        async with FaultyRegistry.start(one) as registry, open_store(tmp_path) as store:
            await store.pull(registry.reference, None)
            lower = tmp_path / "images/layers" / settlement(below("one"))
            os.truncate(lower / "data/file", 0)
            await store.repair([checked async for checked in store.check()])
            assert settlement(below("one"), claiming()) not in list_layers(tmp_path)
            await store.pull(registry.reference, None)
            assert [registry.asked(layer) for layer in one.layers] == [2, 1]
            assert look(store, registry.reference, tmp_path) == ("one", 0o2750, 7, True)

    run(main())


def test_what_is_planned_without_a_daemon_has_settlements_too(own_node: Node, linking: str) -> None:
    node = own_node
    node.pull(linking)
    rows = node.state_dir / "pycri.db"
    stored = StoredImages.read(node.state_dir / "images", rows, FIELD_DEFAULTS)
    image = stored.find(linking)
    assert image is not None
    folders = stored.layer_folders(image.layers)
    assert len(folders) == 3 and (Path(folders[0]) / "bin/busybox-too").exists()
