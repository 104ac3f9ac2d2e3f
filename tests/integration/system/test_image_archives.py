# SPDX-License-Identifier: Apache-2.0
"""Images in and out by archives. skopeo makes what is imported, and reads what is exported."""

import asyncio
import contextlib
import gzip
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import zstandard

from pycri import errors
from pycri.images.store import ImageStore
from pycri.model.image import Image
from tests.world.image_stores import list_layers, open_store, read_tree, wait_for_layers
from tests.world.images import Images, build_busybox, build_layered, layered_layers
from tests.world.oci import Image as BuiltImage
from tests.world.oci import (
    Layer,
    build_image,
    build_index,
    compress,
    digest_of,
    host_architecture,
    write_layout,
)
from tests.world.registry import Registry


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def skopeo(*words: str) -> str:
    """Run skopeo, which need not trust anybody here.

    What it remembers of blobs it has seen, below /var/lib, neither outlives a call nor steers one.
    """
    verb, *rest = words
    plain = ["--src-tls-verify=false", "--dest-tls-verify=false"] if verb == "copy" else []
    script = 'mount -t tmpfs none /var/lib && exec "$@"'
    alone = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
    command = [*alone, "skopeo", "--insecure-policy", verb, *plain, *rest]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def config_of(place: str) -> str:
    """Return the id of the image at a place, as skopeo sees it."""
    return digest_of(skopeo("inspect", "--config", "--raw", place).encode())


def trees(store: ImageStore, image: Image) -> list[list[str]]:
    return [list(read_tree(Path(path))) for path in store.layer_paths(image)]


@contextlib.asynccontextmanager
async def pulled(folder: Path, reference: str) -> AsyncIterator[tuple[ImageStore, Image]]:
    async with open_store(folder) as store:
        yield store, await store.pull(reference, None)


@pytest.mark.parametrize(
    ("form", "key"),
    [
        ("oci", "layered"),
        ("oci", "layered:zstd"),
        ("oci-archive", "layered:docker"),
        ("docker-archive", "layered"),
        ("docker-archive", "layered:docker"),
    ],
)
def test_what_skopeo_writes_is_imported(
    form: str, key: str, images: Images, tmp_path: Path
) -> None:
    archive = tmp_path / "archive"
    place = f"{form}:{archive}:quay.io/tests/moved:1"
    skopeo("copy", f"docker://{images[key]}", place)
    wanted = config_of(place)

    async def main() -> None:
        async with open_store(tmp_path) as store:
            (image,) = await store.import_archive(archive, "")
            assert image.id == wanted
            assert image.tags == ("quay.io/tests/moved:1",)
            assert image.layers == tuple(digest_of(layer) for layer in layered_layers())
            (again,) = await store.import_archive(archive, "another")
            assert again.tags == (*image.tags, "docker.io/library/another:latest")

    run(main())


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
@pytest.mark.parametrize("form", ["oci-archive", "docker-archive"])
def test_a_compressed_archive_is_imported(
    form: str, compression: str, images: Images, tmp_path: Path
) -> None:
    plain, packed = tmp_path / "plain", tmp_path / "packed"
    skopeo("copy", f"docker://{images['layered']}", f"{form}:{plain}:web:1")
    packed.write_bytes(compress(plain.read_bytes(), compression))

    async def main() -> None:
        async with open_store(tmp_path) as store:
            (image,) = await store.import_archive(packed, "")
            assert image.tags == ("docker.io/library/web:1",)
            assert image.layers == tuple(digest_of(layer) for layer in layered_layers())
            names = set(os.listdir(tmp_path / "images"))
            assert names == {"layers", "recipes"}

    run(main())


@pytest.mark.parametrize("form", ["oci-archive", "docker-archive", "oci"])
def test_what_is_exported_is_read_by_skopeo_as_the_same_image(
    form: str, images: Images, registry: Registry, tmp_path: Path
) -> None:
    archive = tmp_path / "out"

    async def export() -> Image:
        async with pulled(tmp_path / "one", images["layered"]) as (store, image):
            await store.export(archive, [image.id], folder=form == "oci")
            return image

    image = asyncio.run(export())
    assert stat_mode(archive) == (0o755 if form == "oci" else 0o600)
    place = f"{form}:{archive}" + (f":{image.tags[0]}" if form == "docker-archive" else "")
    assert config_of(place) == image.id
    target = registry.reference("tests/exported", form)
    skopeo("copy", place, f"docker://{target}")

    async def pull() -> None:
        async with (
            open_store(tmp_path / "two") as store,
            open_store(tmp_path / "one") as origin,
        ):
            again = await store.pull(target, None)
            assert (again.id, again.layers) == (image.id, image.layers)
            assert trees(store, again) == trees(origin, image)

    run(pull())


def stat_mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.parametrize("folder", [False, True])
def test_several_images_go_out_and_come_back_with_their_names(
    folder: bool, images: Images, tmp_path: Path
) -> None:
    archive = tmp_path / "archive"

    async def main() -> None:
        async with open_store(tmp_path / "one") as store:
            layered = await store.pull(images["layered"], None)
            await store.import_archive(write(build_busybox(), tmp_path / "b"), "tools:1")
            await store.import_archive(tmp_path / "b", "tools:2")
            names = [layered.digests[0], "tools:2"]
            await store.export(archive, names, folder=folder)
        async with open_store(tmp_path / "two") as store:
            found = {image.tags: image.id for image in await store.import_archive(archive, "")}
            assert found == {
                layered.tags: layered.id,
                ("docker.io/library/tools:2",): build_busybox().config,
            }
            (only,) = await store.import_archive(archive, "tools:2")
            assert only.id == build_busybox().config
            with pytest.raises(errors.InvalidRequest, match="has 2 images, and not one named"):
                await store.import_archive(archive, "tools:1")

    run(main())


def write(built: BuiltImage, folder: Path, name: str = "") -> Path:
    write_layout(folder, built, name)
    return folder


def test_an_export_takes_the_place_of_a_file_and_leaves_nothing_else(
    images: Images, tmp_path: Path
) -> None:
    target = tmp_path / "out/image.tar"
    target.parent.mkdir()
    target.write_text("older")

    async def main() -> None:
        async with pulled(tmp_path, images["busybox"]) as (store, image):
            with pytest.raises(errors.NotFound, match="nobody"):
                await store.export(target, [image.id, "nobody"], folder=False)
            assert target.read_text() == "older"
            await store.export(target, [image.id], folder=False)
            assert os.listdir(target.parent) == ["image.tar"] and tarfile.is_tarfile(target)
            with pytest.raises(errors.InvalidRequest, match="No such file"):
                await store.export(tmp_path / "absent/image.tar", [image.id], folder=False)
            with pytest.raises(errors.InvalidRequest, match="is a folder"):
                await store.export(target.parent, [image.id], folder=False)
            await store.export(target.parent, [image.id], folder=True)
            with pytest.raises(errors.InvalidRequest, match="holds a layout already"):
                await store.export(target.parent, [image.id], folder=True)

    run(main())


@pytest.mark.parametrize("size", ["100k", "1500k"])
def test_an_export_without_room_says_so_and_leaves_nothing(
    size: str, images: Images, tmp_path: Path
) -> None:
    """The room ends in a layer, which another process writes, or before."""
    target = tmp_path / "small"
    target.mkdir()

    async def main() -> None:
        async with pulled(tmp_path, images["layered"]) as (store, image):
            with pytest.raises((errors.OutOfResources, OSError), match=r"room|No space"):
                await store.export(target / "image.tar", [image.id], folder=False)
            assert os.listdir(target) == []

    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", target], check=True)
    try:
        run(main())
    finally:
        subprocess.run(["umount", target], check=True)


def damage(file: Path) -> None:
    """Change the content of a file, and not its size."""
    file.write_text("x" * file.stat().st_size)


def test_a_layer_that_is_not_what_it_was_is_not_exported(images: Images, tmp_path: Path) -> None:
    target = tmp_path / "image.tar"

    async def main() -> None:
        async with pulled(tmp_path, images["layered"]) as (store, image):
            damage(Path(store.layer_paths(image)[0], "run.sh"))
            with pytest.raises(errors.CorruptImage, match="not what they were"):
                await store.export(target, [image.id], folder=False)
            assert not target.exists()

    run(main())


def test_an_image_that_is_removed_while_it_is_checked_is_not_broken(
    images: Images, tmp_path: Path
) -> None:
    async def main() -> None:
        async with pulled(tmp_path, images["layered"]) as (store, first):
            second = await store.pull(images["nginx"], None)
            found = []
            async for checked in store.check():
                found.append((checked.image.id, checked.problems))
                await store.remove(second.id)
            assert found == [(first.id, ())]
            assert store.images() == (first,)

    run(main())


def test_a_layer_that_replaced_its_own_files_is_said_to_be_none_for_export(
    tmp_path: Path,
) -> None:
    twice = build_image([Layer().file("a", b"one").file("a", b"two").tar()], {})

    async def main() -> None:
        async with open_store(tmp_path) as store:
            (image,) = await store.import_archive(write(twice, tmp_path / "twice"), "twice")
            with pytest.raises(errors.Unsupported, match="cannot be exported"):
                await store.export(tmp_path / "image.tar", [image.id], folder=False)

    run(main())


def change_content(file: Path) -> None:
    """Change a byte, and nothing else that one can see."""
    times = file.stat().st_mtime_ns
    file.write_bytes(b"x" + file.read_bytes()[1:])
    os.utime(file, ns=(times, times))


def change_mode(file: Path) -> None:
    file.chmod(0o600)


def change_attribute(file: Path) -> None:
    os.setxattr(file, "user.colour", b"blue")


def replace(file: Path) -> None:
    times = file.stat().st_mtime_ns
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content)
    os.utime(file, ns=(times, times))


@pytest.mark.parametrize("change", [change_content, change_mode, change_attribute, replace])
def test_a_layer_that_replaced_its_own_files_is_compared_all_the_same(
    change: Callable[[Path], None], tmp_path: Path
) -> None:
    layer = Layer().file("a", b"one").file("a", b"two", xattrs={"user.colour": "red"})
    twice = build_image([layer.directory("d").hardlink("d/b", "a").symlink("l", "a").tar()], {})

    async def main() -> None:
        async with open_store(tmp_path) as store:
            (image,) = await store.import_archive(write(twice, tmp_path / "twice"), "twice")
            (found,) = [checked async for checked in store.check()]
            assert (found.problems, found.not_compared) == ((), 0)
            await asyncio.to_thread(change, Path(store.layer_paths(image)[0], "a"))
            (found,) = [checked async for checked in store.check()]
            assert "its files are not what they were" in found.problems[0]
            assert found.broken == set(image.layers)

    run(main())


def docker_archive(path: Path, *, compressed: bool, linked: bool) -> str:
    """Write what `docker save` wrote, or builders of Docker archives do; return the image's id."""
    layers = layered_layers()
    built = build_image(layers, {"Cmd": ["/run.sh"]})
    config = built.blobs[built.config]
    names = []
    with tarfile.open(path, "w") as archive:

        def add(name: str, data: bytes, **fields: Any) -> None:
            member = tarfile.TarInfo(name)
            for key, value in fields.items():
                setattr(member, key, value)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))

        for number, layer in enumerate(layers):
            name = f"{number:064x}/layer.tar"
            if linked:
                add(f"real-{number}.tar", layer)
                add(name, b"", type=tarfile.SYMTYPE, linkname=f"../real-{number}.tar")
            else:
                add(name, gzip.compress(layer) if compressed else layer)
            names.append(name)
        add("config.json", config)
        entry = {"Config": "config.json", "RepoTags": ["web:1", "web:2"], "Layers": names}
        add("manifest.json", json.dumps([entry]).encode())
    return built.config


@pytest.mark.parametrize(("compressed", "linked"), [(False, False), (True, False), (False, True)])
def test_docker_archives_of_other_writers_are_imported(
    compressed: bool, linked: bool, tmp_path: Path
) -> None:
    archive = tmp_path / "saved.tar"
    wanted = docker_archive(archive, compressed=compressed, linked=linked)

    async def main() -> None:
        async with open_store(tmp_path) as store:
            (image,) = await store.import_archive(archive, "")
            assert image.id == wanted and image.digests == ()
            assert image.tags == ("docker.io/library/web:1", "docker.io/library/web:2")
            assert image.layers == tuple(digest_of(layer) for layer in layered_layers())

    run(main())


def test_the_platform_of_the_node_is_imported(tmp_path: Path) -> None:
    own, other = (
        build_image([Layer().file("a", name).tar()], {}, architecture=name)
        for name in ("", "s390x")
    )
    layout = write(build_index([other, own]), tmp_path / "index", "web:1")

    async def main() -> None:
        async with open_store(tmp_path) as store:
            (image,) = await store.import_archive(layout, "")
            assert image.id == own.config

    run(main())


@pytest.mark.parametrize("name", ["", "web:1"])
def test_of_two_images_of_one_name_the_one_that_suits_the_node_best_is_imported(
    name: str, tmp_path: Path
) -> None:
    built = [build_image([Layer().file("a", text).tar()], {}) for text in ("first", "second")]
    layout = write(built[0], tmp_path / "layout", "docker.io/library/web:1")
    other = write(built[1], tmp_path / "other", "docker.io/library/web:1")
    shutil.copytree(other, layout, dirs_exist_ok=True, ignore=shutil.ignore_patterns("index.json"))
    index, more = (json.loads((path / "index.json").read_text()) for path in (layout, other))
    index["manifests"] += more["manifests"]
    for entry, variant in zip(index["manifests"], ("v0", "v1"), strict=True):
        entry["platform"] = {"os": "linux", "architecture": host_architecture(), "variant": variant}
    (layout / "index.json").write_text(json.dumps(index))

    async def main() -> None:
        async with open_store(tmp_path) as store:
            (image,) = await store.import_archive(layout, name)
            assert image.id == built[1].config and store.images() == (image,)

    run(main())


def bad_archives(folder: Path) -> dict[str, tuple[Path, str]]:
    """Return archives that are none, with what is said of each."""
    folder.mkdir()
    layout = write(build_layered(), folder / "layout", "web:1")

    def copy(name: str) -> Path:
        return Path(shutil.copytree(layout, folder / name))

    no_index, no_name = copy("no-index"), copy("no-name")
    (no_index / "index.json").unlink()
    index = json.loads((no_name / "index.json").read_text())
    del index["manifests"][0]["annotations"]
    (no_name / "index.json").write_text(json.dumps(index))
    torn = folder / "torn.tar"
    docker_archive(torn, compressed=False, linked=False)
    os.truncate(torn, torn.stat().st_size // 2)
    escaping = copy("escaping")
    manifest = [{"Config": "../../../etc/passwd", "RepoTags": ["web:1"], "Layers": []}]
    (escaping / "index.json").unlink()
    (escaping / "manifest.json").write_text(json.dumps(manifest))
    packed = folder / "packed"
    packed.write_bytes(zstandard.compress(b"no tar at all" * 1000))
    return {
        "no-index": (no_index, "neither an OCI layout nor a Docker archive"),
        "no-name": (no_name, "none of the 1 images"),
        "torn": (torn, "is missing|neither a folder nor a tar|neither an OCI"),
        "escaping": (escaping, "etc/passwd is missing"),
        "packed": (packed, "neither a folder nor a tar"),
        "absent": (folder / "absent", "No such file"),
    }


@pytest.mark.parametrize("kind", ["no-index", "no-name", "torn", "escaping", "packed", "absent"])
def test_an_archive_that_is_none_is_refused_and_leaves_nothing(kind: str, tmp_path: Path) -> None:
    archive, words = bad_archives(tmp_path / "archives")[kind]

    async def main() -> None:
        async with open_store(tmp_path) as store:
            with pytest.raises((errors.CorruptImage, errors.InvalidRequest), match=words):
                await store.import_archive(archive, "")
            await wait_for_layers(tmp_path, 0)
            assert store.images() == () and list_layers(tmp_path) == []

    run(main())
