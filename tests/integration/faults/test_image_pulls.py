# SPDX-License-Identifier: Apache-2.0
"""Pulls that go wrong: each has a clear error, and leaves nothing behind."""

import asyncio
import contextlib
import gzip
import os
import signal
import subprocess
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from pycri import errors
from pycri.model.image import RegistryAuth
from tests.world.image_stores import (
    REPOSITORY,
    FaultyRegistry,
    answers,
    list_layers,
    open_store,
    wait_for_layers,
)
from tests.world.oci import Descriptor, Image, Layer, build_image, digest_of

USER = RegistryAuth(username="kim", password="pass")


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def small_image(*, layers: int = 2, size: int = 100_000) -> Image:
    """Return an image whose layers do not compress."""
    return build_image(
        [Layer().file(f"file-{number}", os.urandom(size)).tar() for number in range(layers)], {}
    )


async def fails(
    folder: Path,
    registry: FaultyRegistry,
    error: type[Exception],
    match: str | None = None,
    auth: RegistryAuth | None = None,
) -> None:
    """Check that the pull fails with `error`, and that nothing is left of it."""
    async with open_store(folder, stall_timeout_s=0.3) as store:
        with pytest.raises(error, match=match):
            await store.pull(registry.reference, auth)
        await wait_for_layers(folder, 0)
        assert store.images() == ()
        assert store.usage().used_bytes == 0


@pytest.mark.parametrize("part", ["manifest", "config", "layer"])
def test_content_that_does_not_match_its_digest_is_refused(part: str, tmp_path: Path) -> None:
    image = small_image()
    digest = {"manifest": image.root.digest, "config": image.config, "layer": image.layers[1]}[part]

    async def main() -> None:
        async with FaultyRegistry.start(image) as registry:
            content = image.blobs[digest]
            registry.image = msgspec.structs.replace(
                image, blobs=image.blobs | {digest: content[:-1] + bytes([content[-1] ^ 1])}
            )
            promised = {"Docker-Content-Digest": image.root.digest}
            if part == "manifest":
                body = registry.image.blobs[digest]
                registry.faults["latest"] = answers(200, body, promised)
            await fails(tmp_path, registry, errors.CorruptImage)

    run(main())


def test_a_layer_that_unpacks_to_another_digest_is_refused(tmp_path: Path) -> None:
    """The blob is what the manifest says, but its content is not what the config says."""
    honest, other = small_image(layers=1), small_image(layers=1)
    liar = spliced(honest, gzip.decompress(other.blobs[other.layers[0]]))

    async def main() -> None:
        async with FaultyRegistry.start(liar) as registry:
            await fails(tmp_path, registry, errors.CorruptImage, "unpacks to the digest")

    run(main())


def spliced(image: Image, layer: bytes) -> Image:
    """Return the image with its only layer's blob replaced, in the manifest too."""
    blob = gzip.compress(layer)
    manifest = image.blobs[image.root.digest].replace(
        image.layers[0].encode(), digest_of(blob).encode()
    )
    size = f'"size": {len(image.blobs[image.layers[0]])}'.encode()
    manifest = manifest.replace(size, f'"size": {len(blob)}'.encode())
    root = Descriptor(
        media_type=image.root.media_type, digest=digest_of(manifest), size=len(manifest)
    )
    kept = {image.config: image.blobs[image.config]}
    return Image(
        root=root,
        blobs=kept | {digest_of(blob): blob, root.digest: manifest},
        manifests={root.digest: root},
        layers=(digest_of(blob),),
        config=image.config,
    )


@pytest.mark.parametrize("change", ["cut", "longer", "no-gzip", "empty"])
def test_a_damaged_blob_is_refused(change: str, tmp_path: Path) -> None:
    image = small_image()

    async def main() -> None:
        async with FaultyRegistry.start(image) as registry:
            blob = image.blobs[image.layers[0]]
            damaged = {
                "cut": blob[:-100],
                "longer": blob + bytes(100),
                "no-gzip": b"\x1f\x8b\x08" + os.urandom(len(blob) - 3),
                "empty": b"",
            }
            registry.faults[image.layers[0]] = answers(200, damaged[change])
            await fails(tmp_path, registry, errors.CorruptImage)

    run(main())


@pytest.mark.parametrize(
    ("status", "error", "match"),
    [
        (404, errors.NotFound, REPOSITORY),
        (401, errors.Denied, "none were given"),
        (403, errors.Denied, "credentials are missing"),
        (429, errors.RegistryUnavailable, "too many requests"),
        (500, errors.RegistryUnavailable, "500"),
        (418, errors.RegistryUnavailable, "418"),
    ],
)
@pytest.mark.parametrize("part", ["manifest", "layer"])
def test_a_registry_that_refuses_is_named_with_its_reason(
    part: str, status: int, error: type[Exception], match: str, tmp_path: Path
) -> None:
    image = small_image()

    async def main() -> None:
        async with FaultyRegistry.start(image) as registry:
            ending = "latest" if part == "manifest" else image.layers[0]
            # At once: a busy registry is asked again.
            registry.faults[ending] = answers(status, headers={"Retry-After": "0"})
            await fails(tmp_path, registry, error, match)

    run(main())


def test_a_registry_that_is_down_is_unavailable(tmp_path: Path) -> None:
    async def main() -> None:
        async with FaultyRegistry.start(small_image()) as registry:
            pass
        await fails(tmp_path, registry, errors.RegistryUnavailable, registry.address)

    run(main())


def protect(registry: FaultyRegistry) -> None:
    """Let the registry ask for a token of a service beside it, which knows USER."""
    service = f"http://{registry.address}/token"
    challenge = f'Bearer realm="{service}",service="tests",scope="repository:{REPOSITORY}:pull"'

    async def token(request: web.Request) -> web.Response:
        form = await request.post()
        basic = request.headers.get("Authorization") == "Basic a2ltOnBhc3M="
        asked = dict(request.query)
        if form:
            asked = {"scope": str(form["scope"]), "service": str(form["service"])}
            basic = (form["grant_type"], form["refresh_token"]) == ("refresh_token", "identity")
        assert asked == {"service": "tests", "scope": f"repository:{REPOSITORY}:pull"}
        return web.json_response({"token": "good"} if basic else {}, status=200 if basic else 401)

    async def guarded(request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") != "Bearer good":
            return web.Response(status=401, headers={"WWW-Authenticate": challenge})
        return await registry.serve(request)

    registry.faults |= {"/token": token, "": guarded}


@pytest.mark.parametrize(
    "auth", [USER, RegistryAuth(identity_token="identity"), RegistryAuth(registry_token="good")]
)
def test_a_token_is_fetched_once_for_an_image(auth: RegistryAuth, tmp_path: Path) -> None:
    async def main() -> None:
        async with FaultyRegistry.start(small_image()) as registry, open_store(tmp_path) as store:
            protect(registry)
            await store.pull(registry.reference, auth)
            assert registry.asked("/token") == (0 if auth.registry_token else 1)

    run(main())


@pytest.mark.parametrize(
    "auth",
    [
        None,
        RegistryAuth(username="kim", password="guess"),
        RegistryAuth(identity_token="guess"),
        RegistryAuth(registry_token="guess"),
        msgspec.structs.replace(USER, server_address="quay.io"),
    ],
)
def test_a_pull_with_the_wrong_secret_is_denied(auth: RegistryAuth | None, tmp_path: Path) -> None:
    async def main() -> None:
        async with FaultyRegistry.start(small_image()) as registry:
            protect(registry)
            await fails(tmp_path, registry, errors.Denied, REPOSITORY, auth)

    run(main())


def test_a_token_that_expires_within_a_pull_is_fetched_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with FaultyRegistry.start(small_image()) as registry, open_store(tmp_path) as store:
            protect(registry)
            guarded = registry.faults[""]
            expired = asyncio.Event()

            async def expires(request: web.Request) -> web.StreamResponse:
                if expired.is_set():
                    return await guarded(request)
                expired.set()
                return web.Response(
                    status=401, headers=(await guarded(request.clone(headers={}))).headers
                )

            registry.faults = {registry.image.layers[0]: expires} | registry.faults
            await store.pull(registry.reference, USER)
            assert registry.asked("/token") == 2

    run(main())


def test_redirects_in_circles_end(tmp_path: Path) -> None:
    async def main() -> None:
        async with FaultyRegistry.start(small_image()) as registry:
            registry.faults["latest"] = answers(302, headers={"Location": "latest"})
            await fails(tmp_path, registry, errors.RegistryUnavailable, "circles")

    run(main())


def test_pulls_at_the_same_time_fetch_each_blob_once(tmp_path: Path) -> None:
    image = small_image()

    async def main() -> None:
        async with FaultyRegistry.start(image) as registry, open_store(tmp_path) as store:
            by_digest = f"{registry.address}/{REPOSITORY}@{image.root.digest}"
            names = [registry.reference] * 3 + [by_digest] * 2
            pulled = await asyncio.gather(*(store.pull(name, None) for name in names))
            assert len({found.id for found in pulled}) == 1
            assert [registry.asked(layer) for layer in image.layers] == [1, 1]
            assert registry.asked("/manifests/latest") == 1

    run(main())


def test_a_pull_that_joined_a_failing_one_goes_on_by_itself(tmp_path: Path) -> None:
    """Two registries have one layer; the first of them breaks while the second waits for it."""
    image = small_image(layers=1)

    async def main() -> None:
        async with (
            FaultyRegistry.start(image) as bad,
            FaultyRegistry.start(image) as good,
            open_store(tmp_path) as store,
        ):
            broken, joined = asyncio.Event(), asyncio.Event()

            async def breaks(_: web.Request) -> web.StreamResponse:
                joined.set()
                await broken.wait()
                return web.Response(status=500, headers={"Retry-After": "0"})

            bad.faults[image.layers[0]] = breaks
            first = asyncio.create_task(store.pull(bad.reference, None))
            await joined.wait()
            second = asyncio.create_task(store.pull(good.reference, None))
            while not good.asked(image.config):  # noqa: ASYNC110 - a bounded wait, by the test's
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            broken.set()
            with pytest.raises(errors.RegistryUnavailable):
                await first
            assert (await second).id == image.config
            assert good.asked(image.layers[0]) == 1

    run(main())


def test_a_cancelled_pull_leaves_nothing(tmp_path: Path) -> None:
    image = small_image(layers=5)

    async def main() -> None:
        async with FaultyRegistry.start(image) as registry, open_store(tmp_path) as store:
            registry.gate.clear()
            registry.faults[image.config] = registry.serve_open
            registry.faults[image.layers[0]] = registry.serve_open
            callers = [asyncio.create_task(store.pull(registry.reference, None)) for _ in range(2)]
            await wait_for_layers(tmp_path, 4)  # one whole, three waiting for their blobs
            callers[0].cancel()
            await asyncio.wait([callers[0]])
            assert not callers[1].done() and len(list_layers(tmp_path)) == 4
            callers[1].cancel()
            await asyncio.wait([callers[1]])
            assert store.images() == ()
            await wait_for_layers(tmp_path, 0)
            registry.gate.set()
            assert (await store.pull(registry.reference, None)).id == image.config

    run(main())


def test_closing_the_store_ends_its_pulls(tmp_path: Path) -> None:
    async def main() -> None:
        async with FaultyRegistry.start(small_image()) as registry:
            registry.gate.clear()
            registry.faults[registry.image.config] = registry.serve_open
            async with open_store(tmp_path) as store:
                pull = asyncio.create_task(store.pull(registry.reference, None))
                await wait_for_layers(tmp_path, 2)
            assert pull.cancelled() or isinstance(pull.exception(), asyncio.CancelledError)
            assert list_layers(tmp_path) == []

    run(main())


def test_an_unpack_process_that_is_killed_fails_its_pull(tmp_path: Path) -> None:
    image = small_image(layers=1)

    async def main() -> None:
        async with FaultyRegistry.start(image) as registry, open_store(tmp_path) as store:
            registry.gate.clear()
            registry.faults[image.config] = registry.serve_open
            pull = asyncio.create_task(store.pull(registry.reference, None))
            await wait_for_layers(tmp_path, 1)
            os.kill(unpack_process(list_layers(tmp_path)[0]), signal.SIGKILL)
            registry.gate.set()
            with pytest.raises(errors.SetupFailed, match="status -9"):
                await pull
            assert store.images() == () and list_layers(tmp_path) == []

    run(main())


def unpack_process(partial: str) -> int:
    """Return our child that has the folder `partial` among its arguments."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    (pid,) = [pid for pid in children if partial in Path(f"/proc/{pid}/cmdline").read_text()]
    return int(pid)


def test_a_layer_is_unpacked_behind_what_is_more_urgent(tmp_path: Path) -> None:
    image = small_image(layers=1, size=3_000_000)
    blob = image.blobs[image.layers[0]]

    async def main() -> None:
        async with FaultyRegistry.start(image) as registry, open_store(tmp_path) as store:

            async def stalls(request: web.Request) -> web.StreamResponse:
                response = web.StreamResponse(headers={"Content-Length": str(len(blob))})
                await response.prepare(request)
                await response.write(blob[:-1000])
                await registry.gate.wait()
                await response.write(blob[-1000:])
                return response

            registry.gate.clear()
            registry.faults[image.config] = registry.serve_open
            registry.faults[image.layers[0]] = stalls
            pull = asyncio.create_task(store.pull(registry.reference, None))
            await wait_for_layers(tmp_path, 1)
            (partial,) = (tmp_path / "images/layers").iterdir()
            for _ in range(1000):
                if os.listdir(partial):
                    break
                await asyncio.sleep(0.01)
            priorities = read_priorities(unpack_process(partial.name))
            assert len(priorities) > 1 and set(priorities) == {(10, "best-effort: prio 7")}
            registry.gate.set()
            await pull

    run(main())


def read_priorities(pid: int) -> list[tuple[int, str]]:
    """Return nice (field 19 of stat, proc(5)) and I/O priority of each thread of a process."""
    found = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        nice = int((thread / "stat").read_text().rpartition(")")[2].split()[16])
        shown = subprocess.run(["ionice", "-p", thread.name], capture_output=True, text=True)
        found.append((nice, shown.stdout.strip()))
    return found


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    disk = folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_full_disk_fails_the_pull_and_is_as_empty_as_before(tmp_path: Path) -> None:
    fits, too_large = small_image(layers=1), small_image(layers=3, size=3_000_000)

    async def main(disk: Path) -> None:
        async with FaultyRegistry.start(too_large) as registry, open_store(disk) as store:
            with pytest.raises(errors.OutOfResources):
                await store.pull(registry.reference, None)
            await wait_for_layers(disk, 0)
            registry.image = fits
            assert (await store.pull(registry.reference, None)).id == fits.config

    with small_disk(tmp_path, "4m") as disk:
        run(main(disk))


def test_memory_stays_bounded_while_a_large_layer_is_pulled(tmp_path: Path) -> None:
    image = small_image(layers=1, size=150_000_000)

    async def main() -> None:
        async with FaultyRegistry.start(image) as registry, open_store(tmp_path) as store:
            large = image.blobs[image.layers[0]]

            async def slowly_sent(request: web.Request) -> web.StreamResponse:
                response = web.StreamResponse(headers={"Content-Length": str(len(large))})
                await response.prepare(request)
                for at in range(0, len(large), 65536):
                    await response.write(large[at : at + 65536])
                return response

            registry.faults[image.layers[0]] = slowly_sent
            before = peak_bytes()
            await store.pull(registry.reference, None)
            assert peak_bytes() - before < 30_000_000

    run(main())


def peak_bytes() -> int:
    """Return the most memory that this process had."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024
