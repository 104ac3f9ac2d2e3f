# SPDX-License-Identifier: Apache-2.0
"""Images from a real registry, or from a layout, to folders that overlay mounts."""

import asyncio
import contextlib
import os
import shutil
import subprocess
import tarfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from pycri import errors
from pycri.images.store import ImageStore
from pycri.model.ids import Digest
from pycri.model.image import Image
from tests.world.image_stores import list_layers, open_store, read_tree, wait_for_layers
from tests.world.images import Images, build_layered, layered_layers
from tests.world.oci import Layer, build_image, build_index, digest_of, write_layout
from tests.world.registry import Registry


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def file_of(store: ImageStore, image: Image, path: str) -> Path:
    """Return a file of the topmost layer."""
    return Path(store.layer_paths(image)[0], path)


@contextlib.contextmanager
def mounted(store: ImageStore, image: Image, folder: Path) -> Any:
    """Mount the image as a container's root is: overlay, read-only."""
    target = folder / "root"
    target.mkdir()
    layers = ":".join(store.layer_paths(image))
    # One layer alone is no overlay.
    options = f"lowerdir={layers}:{folder}/images" if ":" not in layers else f"lowerdir={layers}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, target], check=True)
    try:
        yield target
    finally:
        subprocess.run(["umount", target], check=True)


@pytest.mark.parametrize("key", ["layered", "layered:zstd", "layered:docker"])
def test_layers_stack_as_their_builder_meant(key: str, images: Images, tmp_path: Path) -> None:
    async def main() -> None:
        async with open_store(tmp_path) as store:
            image = await store.pull(images[key], None)
            with mounted(store, image, tmp_path) as root:
                check_layered(root)

    run(main())


def check_layered(root: Path) -> None:
    assert (root / "data/kept").read_text() == "kept\n"
    assert (root / "data/replaced").read_text() == "second\n"
    assert not (root / "data/removed").exists() and not (root / "gone").exists()
    assert os.listdir(root / "fresh") == ["only"]
    assert (root / "as-file").read_text() == "is a file\n"
    assert (root / "as-directory/inside").read_text() == "inside\n"
    assert os.readlink(root / "through") == "data"
    kept, setuid = (root / "data/kept").stat(), (root / "setuid").stat()
    assert (kept.st_uid, kept.st_gid, kept.st_mode & 0o7777) == (1000, 1000, 0o640)
    assert (setuid.st_uid, setuid.st_mode & 0o7777) == (1000, 0o4755)
    assert os.getxattr(root / "xattr", "user.colour") == b"green"
    first, second = (root / "data/linked-a").stat(), (root / "data/linked-b").stat()
    assert first.st_ino == second.st_ino and first.st_nlink == 2
    assert (root / "fifo").is_fifo()
    assert (root / "data/kept").stat().st_mtime == 0 and (root / "data").stat().st_mtime == 0


def test_every_kind_of_blob_unpacks_to_the_same_layers(images: Images, tmp_path: Path) -> None:
    async def main() -> None:
        trees = []
        for key in ("busybox", "busybox:zstd", "busybox:plain"):
            async with open_store(tmp_path / key) as store:
                image = await store.pull(images[key], None)
                trees.append(list(read_tree(Path(store.layer_paths(image)[0]))))
        assert trees[0] == trees[1] == trees[2]
        assert "bin/busybox" in trees[0]

    run(main())


@pytest.mark.parametrize("key", ["platforms", "platforms:docker"])
def test_the_platform_of_the_node_is_pulled(key: str, images: Images, tmp_path: Path) -> None:
    async def main() -> None:
        async with open_store(tmp_path) as store:
            image = await store.pull(images[key], None)
            platform = file_of(store, image, "platform").read_text().strip()
            assert platform == image.architecture != "s390x"

    run(main())


def test_an_image_for_other_platforms_only_is_not_pulled(
    registry: Registry, tmp_path: Path
) -> None:
    foreign = build_image([Layer().file("a").tar()], {}, architecture="s390x")
    registry.push(foreign, "tests/foreign", "alone")
    registry.push(build_index([foreign]), "tests/foreign", "index")

    async def main() -> None:
        async with open_store(tmp_path) as store:
            with pytest.raises(errors.Unsupported, match="linux/s390x"):
                await store.pull(registry.reference("tests/foreign", "alone"), None)
            with pytest.raises(errors.NotFound, match="linux/s390x"):
                await store.pull(registry.reference("tests/foreign", "index"), None)
            assert store.images() == () and list_layers(tmp_path) == []

    run(main())


def test_an_image_says_what_its_config_says(images: Images, tmp_path: Path) -> None:
    built = images.image("configured")

    async def main() -> None:
        async with open_store(tmp_path) as store:
            image = await store.pull(images["configured"], None)
            assert image.id == built.config
            assert image.digests[0].endswith("@" + built.root.digest)
            config = image.config
            assert (config.entrypoint, config.cmd) == (("/bin/echo", "entry"), ("default", "words"))
            assert (config.user, config.working_dir) == ("kim", "/home/kim/made")
            assert (config.stop_signal, config.volumes) == ("SIGUSR1", ("/volume",))
            assert config.labels == {"team": "tests"}
            assert image.size_bytes > 1_000_000
            usage = store.usage()
            assert usage.used_bytes >= 1_000_000 and usage.inodes_used > 100

    run(main())


def test_an_image_is_found_by_every_form_of_its_name(images: Images, tmp_path: Path) -> None:
    async def main() -> None:
        reference = images["busybox"]
        repository = reference.rpartition(":")[0]
        async with open_store(tmp_path) as store:
            image = await store.pull(repository, None)
            digest = image.digests[0]
            assert image.tags == (reference,)
            names = [reference, repository, digest, f"{repository}:any@{digest.partition('@')[2]}"]
            names += [image.id, image.id[7:], image.id[7:20], image.id[:20]]
            assert [store.find(name) for name in names] == [image] * len(names)
            assert store.find(f"{repository}:other") is None
            again = await store.pull(digest, None)
            assert again == image

    run(main())


def test_a_tag_that_moves_leaves_the_old_image_with_its_digest(
    registry: Registry, tmp_path: Path
) -> None:
    old, new = (build_image([Layer().file("a", text).tar()], {}) for text in ("old", "new"))

    async def main() -> None:
        async with open_store(tmp_path) as store:
            registry.push(old, "tests/moving")
            before = await store.pull(registry.reference("tests/moving"), None)
            registry.push(new, "tests/moving")
            after = await store.pull(registry.reference("tests/moving"), None)
            assert (after.id, after.tags) == (new.config, before.tags)
            left = store.find(before.digests[0])
            assert left and (left.id, left.tags) == (old.config, ())
        async with open_store(tmp_path) as store:
            assert {image.id: image.tags for image in store.images()} == {
                old.config: (),
                new.config: before.tags,
            }

    run(main())


def test_removing_by_one_tag_removes_the_image_and_the_layers_no_other_image_has(
    images: Images, tmp_path: Path
) -> None:
    async def main() -> None:
        async with open_store(tmp_path) as store:
            busybox = await store.pull(images["busybox"], None)
            await store.pull(images["layered"], None)
            both = await store.pull(images["layered:zstd"], None)
            assert len(both.tags) == 2
            await asyncio.gather(*(store.remove(tag) for tag in both.tags))
            assert store.images() == (busybox,)
            await wait_for_layers(tmp_path, 1)
            assert store.usage().used_bytes <= busybox.size_bytes
            await store.remove("absent")
            await store.remove(busybox.id[7:19])
            assert (store.images(), store.usage().inodes_used) == ((), 0)
        assert list_layers(tmp_path) == []

    run(main())


def test_layers_of_a_removed_image_stay_while_a_container_uses_them(
    images: Images, tmp_path: Path
) -> None:
    used: set[Digest] = set()

    async def main() -> None:
        async with open_store(tmp_path, in_use=lambda: frozenset(used)) as store:
            image = await store.pull(images["busybox"], None)
            used.update(image.layers)
            await store.remove(image.id)
            assert store.find(image.id) is None
            assert file_of(store, image, "bin/busybox").is_file()
            used.clear()
            await store.collect_garbage()
            await wait_for_layers(tmp_path, 0)

    run(main())


def test_a_store_opens_with_what_was_whole_and_sweeps_the_rest(
    images: Images, tmp_path: Path
) -> None:
    async def main() -> None:
        async with open_store(tmp_path) as store:
            whole = await store.pull(images["busybox"], None)
            broken = await store.pull(images["layered"], None)
            used = store.usage().used_bytes
        shutil.rmtree(store.layer_paths(broken)[0])
        for name in (".partial-1/a", ".trash-1/b", "0123/c"):
            (tmp_path / "images/layers" / name).mkdir(parents=True)
        async with open_store(tmp_path) as store:
            assert store.images() == (whole,)
            # What is left of the broken one waits for a pull, until the next start.
            await wait_for_layers(tmp_path, len(broken.layers) - 1)
            assert store.usage().used_bytes < used
        async with open_store(tmp_path) as store:
            assert store.images() == (whole,)
            await wait_for_layers(tmp_path, 1)
            again = await store.pull(images["layered"], None)
            with mounted(store, again, tmp_path) as root:
                check_layered(root)

    run(main())


def test_a_layer_that_an_image_has_twice_is_mounted_once(
    registry: Registry, tmp_path: Path
) -> None:
    twice = Layer().file("a", "twice").tar()
    built = build_image([twice, Layer().whiteout("a").file("b").tar(), twice], {})
    registry.push(built, "tests/twice")

    async def main() -> None:
        async with open_store(tmp_path) as store:
            image = await store.pull(registry.reference("tests/twice"), None)
            assert len(image.layers) == 3 and len(store.layer_paths(image)) == 2
            with mounted(store, image, tmp_path) as root:
                assert sorted(os.listdir(root)) == ["a", "b"]

    run(main())


@pytest.mark.parametrize("form", ["folder", "tar"])
def test_a_layout_is_imported(form: str, tmp_path: Path) -> None:
    path = tmp_path / "layout"
    write_layout(path, build_layered(), "layered")
    if form == "tar":
        path = tmp_path / "layout.tar"
        with tarfile.open(path, "w") as archive:
            archive.add(tmp_path / "layout", arcname=".")

    async def main() -> None:
        async with open_store(tmp_path) as store:
            (image,) = await store.import_archive(path, "imported")
            assert image.tags == ("docker.io/library/imported:latest",)
            assert image.layers == tuple(digest_of(layer) for layer in layered_layers())
            with mounted(store, image, tmp_path) as root:
                check_layered(root)

    run(main())


def test_a_layout_that_is_not_whole_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    built = build_layered()
    layout = tmp_path / "layout"
    write_layout(layout, built, "layered")
    blob = layout / "blobs/sha256" / built.layers[2].removeprefix("sha256:")
    (tmp_path / "text").write_text("no tar")

    async def main() -> None:
        async with open_store(tmp_path) as store:
            blob.write_bytes(blob.read_bytes()[:-1] + b"x")
            with pytest.raises(errors.CorruptImage):
                await store.import_archive(layout, "imported")
            blob.unlink()
            with pytest.raises(errors.CorruptImage, match="missing"):
                await store.import_archive(layout, "imported")
            with pytest.raises(errors.CorruptImage, match="neither a folder"):
                await store.import_archive(tmp_path / "text", "imported")
            with pytest.raises(errors.InvalidRequest, match="No such file"):
                await store.import_archive(tmp_path / "absent", "imported")
            await wait_for_layers(tmp_path, 0)
            assert store.images() == ()

    run(main())
