# SPDX-License-Identifier: Apache-2.0
"""A real registry behind a proxy that breaks things: pulls go on where they can."""

import asyncio
import os
import random
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from pycri import errors
from pycri.cri.api import runtime_v1_pb2 as cri
from pycri.images import retrying
from pycri.images.store import ImageStore
from pycri.model.image import RegistryAuth
from tests.world import session
from tests.world.daemon import CALL_TIMEOUT_S, Node, wait_until
from tests.world.faulty_proxy import FaultyProxy, redirects
from tests.world.image_stores import (
    Handler,
    answers,
    list_layers,
    open_store,
    read_tree,
    wait_for_layers,
)
from tests.world.oci import Image, Layer, build_image
from tests.world.registry import PASSWORD, USERNAME, Registry

SIZE = 300_000
STALL_S = 2.0 * session.TIME_FACTOR
KIM = RegistryAuth(username=USERNAME, password=PASSWORD)
SOON = {"Retry-After": "0"}


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "_PAUSES_S", (0.01, 0.01, 0.01, 0.01))


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


@pytest.fixture(scope="module")
def built(registry: Registry) -> Image:
    """An image of two layers of SIZE bytes that do not compress, pushed as tests/broken."""
    layers = [Layer().file(f"file-{number}", os.urandom(SIZE)).tar() for number in range(2)]
    image = build_image(layers, {})
    registry.push(image, "tests/broken")
    return image


def mirrored(folder: Path, *addresses: str) -> str:
    """Describe x.test as these mirrors, and the last one as its server; return the image's name."""
    *mirrors, server = addresses
    text = f'server = "http://{server}"\n' + "".join(f'[host."http://{m}"]\n' for m in mirrors)
    file = folder / "certs.d/x.test/hosts.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return "x.test/tests/broken"


async def pulls(folder: Path, name: str, built: Image, auth: RegistryAuth | None = None) -> None:
    """Check that the pull brings the image, whole."""
    async with open_store(folder, stall_timeout_s=STALL_S) as store:
        image = await store.pull(name, auth)
        assert image.id == built.config
        files = [os.listdir(layer)[0] for layer in store.layer_paths(image)]
        assert sorted(files) == ["file-0", "file-1"]
        await store.remove(image.id)
        await wait_for_layers(folder, 0)


async def fails(folder: Path, name: str, error: type[Exception], match: str) -> BaseException:
    """Check that the pull fails with `error`, and that nothing is left of it."""
    async with open_store(folder, stall_timeout_s=STALL_S) as store:
        with pytest.raises(error, match=match) as caught:
            await store.pull(name, None)
        await wait_for_layers(folder, 0)
        assert store.images() == () and list_layers(folder) == []
    return caught.value


def name_at(proxy: FaultyProxy) -> str:
    return f"{proxy.address}/tests/broken"


def ranges(proxy: FaultyProxy, digest: str) -> list[str]:
    """Return the ranges that a blob was asked for with."""
    return [
        headers.get("Range", "")
        for request, headers in zip(proxy.requests, proxy.headers, strict=True)
        if request.endswith(digest)
    ]


Fault = Callable[[FaultyProxy], Handler]


@pytest.mark.parametrize(
    "fault",
    [
        lambda proxy: proxy.cuts(after=100_000, times=2),
        lambda proxy: proxy.stalls(after=100_000, times=2),
        lambda proxy: proxy.truncates(after=100_000, times=2),
    ],
    ids=["cuts", "stalls", "truncates"],
)
def test_a_transfer_that_breaks_off_is_taken_up_again_where_it_broke(
    fault: Fault, built: Image, registry: Registry, tmp_path: Path
) -> None:
    async def main() -> None:
        async with FaultyProxy.start(registry.address) as proxy:
            proxy.faults[built.layers[0]] = fault(proxy)
            await pulls(tmp_path, name_at(proxy), built)
            assert ranges(proxy, built.layers[0]) == ["", "bytes=100000-", "bytes=200000-"]

    run(main())


@pytest.mark.parametrize("part", ["manifest", "config"])
def test_a_short_document_that_breaks_off_is_asked_for_again(
    part: str, built: Image, registry: Registry, tmp_path: Path
) -> None:
    ending = "/latest" if part == "manifest" else built.config

    async def main() -> None:
        async with FaultyProxy.start(registry.address) as proxy:
            proxy.faults[ending] = proxy.cuts(after=20, times=3)
            await pulls(tmp_path, name_at(proxy), built)
            assert proxy.asked(ending) == 4

    run(main())


def test_pulls_come_through_a_storm_of_faults(registry: Registry, tmp_path: Path) -> None:
    """Nothing that is listed in the end is other than it was pushed."""
    seed = random.randrange(1_000_000)
    chance = random.Random(seed)
    layers = [
        [Layer().file(f"{n}-{m}", os.urandom(SIZE)).tar() for m in range(2)] for n in range(6)
    ]
    images = [build_image(tars, {}) for tars in layers]
    for number, image in enumerate(images):
        registry.push(image, f"tests/storm-{number}")

    async def main() -> None:
        async with FaultyProxy.start(registry.address) as proxy:

            async def storm(request: web.Request) -> web.StreamResponse:
                after = chance.randrange(1_000, SIZE)
                faults: list[Handler] = [
                    proxy.cuts(after=after),
                    proxy.truncates(after=after),
                    answers(chance.choice([429, 500, 503]), headers=SOON),
                ]
                # Answers shorter than that, all manifests, come whole.
                return await (chance.choice(faults) if chance.random() < 0.3 else proxy.serve)(
                    request
                )

            proxy.faults[""] = storm
            async with open_store(tmp_path, stall_timeout_s=20) as store:
                names = [f"{proxy.address}/tests/storm-{number}" for number in range(len(images))]
                found = await asyncio.gather(*(store.pull(name, None) for name in names))
                assert [one.id for one in found] == [image.config for image in images], seed
                assert len(list(read_tree(tmp_path / "images/layers"))) == 24, seed

    run(main())


def test_a_registry_that_knows_no_ranges_is_read_from_the_start_again(
    built: Image, registry: Registry, tmp_path: Path
) -> None:
    async def main() -> None:
        async with FaultyProxy.start(registry.address) as proxy:
            cut = proxy.cuts(after=100_000, times=1)
            left = 1

            async def whole(request: Any) -> Any:
                nonlocal left
                left -= 1
                if left >= 0:
                    return await cut(request)
                return await answers(200, built.blobs[built.layers[0]])(request)

            proxy.faults[built.layers[0]] = whole
            await pulls(tmp_path, name_at(proxy), built)

    run(main())


def test_a_resumed_blob_of_other_content_is_refused(
    built: Image, registry: Registry, tmp_path: Path
) -> None:
    async def main() -> None:
        async with FaultyProxy.start(registry.address) as proxy:
            cut, spoil = proxy.cuts(after=100_000), proxy.spoils()

            async def other(request: Any) -> Any:
                return await (spoil if "Range" in request.headers else cut)(request)

            proxy.faults[built.layers[0]] = other
            await fails(tmp_path, name_at(proxy), errors.CorruptImage, "valid gzip|digest")

    run(main())


@pytest.mark.parametrize("answer", ["elsewhere", "other-size", "not-a-range"])
def test_a_resumed_blob_from_another_place_is_refused(
    answer: str, built: Image, registry: Registry, tmp_path: Path
) -> None:
    size = len(built.blobs[built.layers[0]])
    said = {
        "elsewhere": f"bytes 99999-{size - 1}/{size}",
        "other-size": f"bytes 100000-{size - 1}/{size + 1}",
        "not-a-range": "bytes",
    }[answer]

    async def main() -> None:
        async with FaultyProxy.start(registry.address) as proxy:
            cut = proxy.cuts(after=100_000)
            wrong = answers(206, b"x", {"Content-Range": said})

            async def resumed(request: Any) -> Any:
                return await (wrong if "Range" in request.headers else cut)(request)

            proxy.faults[built.layers[0]] = resumed
            await fails(tmp_path, name_at(proxy), errors.CorruptImage, "resumes a blob")

    run(main())


def test_a_transfer_that_never_gets_further_is_given_up(
    built: Image, registry: Registry, tmp_path: Path
) -> None:
    async def main() -> None:
        async with FaultyProxy.start(registry.address) as proxy:
            cut, refuse = proxy.cuts(after=100_000), answers(500, headers=SOON)

            async def dies(request: Any) -> Any:
                return await (refuse if "Range" in request.headers else cut)(request)

            proxy.faults[built.layers[0]] = dies
            await fails(tmp_path, name_at(proxy), errors.RegistryUnavailable, "answers 500")

    run(main())


def test_a_transfer_that_stays_silent_is_tried_once_more(
    built: Image, registry: Registry, tmp_path: Path
) -> None:
    async def main() -> None:
        async with FaultyProxy.start(registry.address) as proxy:
            cut, stall = proxy.cuts(after=100_000), proxy.stalls(after=0)

            async def dies(request: web.Request) -> web.StreamResponse:
                return await (stall if "Range" in request.headers else cut)(request)

            proxy.faults[built.layers[0]] = dies
            await fails(tmp_path, name_at(proxy), errors.RegistryUnavailable, "sent nothing")
            assert ranges(proxy, built.layers[0]) == ["", "bytes=100000-", "bytes=100000-"]

    run(main())


def test_a_registry_that_stays_silent_is_given_up(
    built: Image, registry: Registry, tmp_path: Path
) -> None:
    async def main() -> None:
        async with FaultyProxy.start(registry.address) as proxy:
            proxy.faults["/latest"] = proxy.stalls(after=0)
            await fails(
                tmp_path, name_at(proxy), errors.RegistryUnavailable, "sent nothing for too long"
            )

    run(main())


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
@pytest.mark.parametrize("part", ["manifest", "layer"])
def test_a_registry_that_is_too_busy_is_asked_again(
    part: str, status: int, built: Image, registry: Registry, tmp_path: Path
) -> None:
    async def main() -> None:
        async with FaultyProxy.start(registry.address) as proxy:
            ending = "/latest" if part == "manifest" else built.layers[0]
            proxy.faults[ending] = proxy.times(answers(status, headers=SOON), 2)
            await pulls(tmp_path, name_at(proxy), built)
            assert proxy.asked(ending) == 3

    run(main())


def test_a_registry_that_asks_for_a_long_pause_is_believed(
    built: Image, registry: Registry, tmp_path: Path
) -> None:
    said = b'{"errors":[{"code":"TOOMANYREQUESTS","message":"pull rate limit reached"}]}'

    async def main() -> None:
        async with FaultyProxy.start(registry.address) as proxy:
            proxy.faults["/latest"] = answers(429, said, {"Retry-After": "21600"})
            match = r"429 \(too many requests, retry after 21600: 'pull rate limit reached'\)"
            await fails(tmp_path, name_at(proxy), errors.RegistryUnavailable, match)
            assert proxy.asked("/latest") == 1

    run(main())


@pytest.mark.parametrize(
    "fault",
    [
        lambda proxy: answers(404),
        lambda proxy: answers(401),
        lambda proxy: answers(403),
        lambda proxy: answers(429, headers={"Retry-After": "50"}),
        lambda proxy: answers(500),
        lambda proxy: answers(307, headers={"Location": "http://127.0.0.1:1/"}),
        lambda proxy: proxy.cuts(after=10),
        lambda proxy: proxy.stalls(after=10),
        lambda proxy: proxy.spoils(),
        lambda proxy: answers(200, b"something else"),
    ],
    ids=["404", "401", "403", "429", "500", "moved", "cuts", "stalls", "spoils", "other"],
)
@pytest.mark.parametrize("part", ["manifest", "config", "layer"])
def test_the_next_host_is_asked_where_a_mirror_fails(
    part: str, fault: Fault, built: Image, registry: Registry, tmp_path: Path
) -> None:
    ending = {"manifest": "/latest", "config": built.config, "layer": built.layers[1]}[part]

    async def main() -> None:
        async with (
            FaultyProxy.start(registry.address) as mirror,
            FaultyProxy.start(registry.address) as upstream,
        ):
            name = mirrored(tmp_path, mirror.address, upstream.address)
            mirror.faults[ending] = fault(mirror)
            await pulls(tmp_path, name, built)
            assert mirror.asked(ending) >= 1 and upstream.asked(ending) == 1

    run(main())


def test_a_mirror_that_breaks_for_good_is_followed_at_the_byte_where_it_broke(
    built: Image, registry: Registry, tmp_path: Path
) -> None:
    async def main() -> None:
        async with (
            FaultyProxy.start(registry.address) as mirror,
            FaultyProxy.start(registry.address) as upstream,
        ):
            name = mirrored(tmp_path, mirror.address, upstream.address)
            cut, gone = mirror.cuts(after=123_456), answers(404)

            async def dies(request: Any) -> Any:
                return await (gone if "Range" in request.headers else cut)(request)

            mirror.faults[built.layers[0]] = dies
            await pulls(tmp_path, name, built)
            assert ranges(upstream, built.layers[0]) == ["bytes=123456-"]

    run(main())


@pytest.mark.parametrize("status", [401, 404, 503])
def test_a_mirror_that_is_of_no_use_costs_a_pull_one_try(
    status: int, built: Image, registry: Registry, tmp_path: Path
) -> None:
    async def main() -> None:
        async with FaultyProxy.start(registry.address) as mirror:
            name = mirrored(tmp_path, mirror.address, registry.address)
            mirror.faults[""] = answers(status)
            await pulls(tmp_path, name, built)
            assert len(mirror.requests) == 1

    run(main())


def test_where_every_host_fails_the_last_one_is_told_and_the_others_noted(
    built: Image, registry: Registry, tmp_path: Path
) -> None:
    async def main() -> None:
        async with (
            FaultyProxy.start(registry.address) as mirror,
            FaultyProxy.start(registry.address) as upstream,
        ):
            name = mirrored(tmp_path, mirror.address, upstream.address)
            mirror.faults["/latest"] = answers(500)
            upstream.faults["/latest"] = answers(404)
            error = await fails(tmp_path, name, errors.NotFound, "x.test/tests/broken")
            notes = getattr(error, "__notes__", [])
            assert any(mirror.address in note and "answers 500" in note for note in notes)
            assert any(upstream.address in note for note in notes)

    run(main())


def test_a_spoiled_layer_of_every_host_is_refused_in_the_end(
    built: Image, registry: Registry, tmp_path: Path
) -> None:
    async def main() -> None:
        async with (
            FaultyProxy.start(registry.address) as mirror,
            FaultyProxy.start(registry.address) as upstream,
        ):
            name = mirrored(tmp_path, mirror.address, upstream.address)
            for host in (mirror, upstream):
                host.faults[built.layers[0]] = host.spoils()
            await fails(tmp_path, name, errors.CorruptImage, "valid gzip|digest")
            assert [host.asked(built.layers[0]) for host in (mirror, upstream)] == [1, 1]

    run(main())


def test_a_redirect_to_another_host_takes_no_secret_along(
    scope: Any, built: Image, tmp_path: Path
) -> None:
    """No password, no header of hosts.toml; what asks for a token there gets what anyone has."""

    async def main(registry: Registry, storage: Registry) -> None:
        async with (
            FaultyProxy.start(registry.address) as front,
            FaultyProxy.start(storage.address) as back,
        ):
            layer = built.layers[0]
            front.faults[layer] = redirects(back.address)
            file = tmp_path / "certs.d/x.test/hosts.toml"
            file.parent.mkdir(parents=True)
            file.write_text(f'server = "http://{front.address}"\n[header]\nx-key = "secret"')
            await pulls(tmp_path, "x.test/tests/broken", built, KIM)
            assert back.asked(layer) == 1
            assert set(back.authorizations) == {""}
            assert not any("x-key" in headers for headers in back.headers)
            assert all("x-key" in headers for headers in front.headers)
            challenge = {"WWW-Authenticate": f'Bearer realm="http://{back.address}/token"'}
            back.faults[layer] = back.times(answers(401, headers=challenge), 1)
            back.faults["/token"] = answers(200, b'{"token": "of-anyone"}')
            await pulls(tmp_path, "x.test/tests/broken", built, KIM)
            assert set(back.authorizations) == {"", "Bearer of-anyone"}
            assert "Bearer of-anyone" not in front.authorizations

    with (
        Registry.start(tmp_path / "front", auth=True) as registry,
        Registry.start(tmp_path / "back") as storage,
    ):
        scope.adopted |= {registry.pid, storage.pid}
        for found in (registry, storage):
            found.push(built, "tests/broken")
        run(main(registry, storage))


def test_a_pull_ends_when_the_last_client_that_joined_it_hangs_up(own_node: Node) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(CALL_TIMEOUT_S)
        name = f"127.0.0.1:{listener.getsockname()[1]}/tests/silent"
        request = cri.PullImageRequest(image=cri.ImageSpec(image=name))
        calls = [own_node.images.PullImage.future(request) for _ in range(2)]
        # Calls are taken in their order: when this one is answered, both pulls are there.
        own_node.images.ListImages(cri.ListImagesRequest(), timeout=CALL_TIMEOUT_S)
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(CALL_TIMEOUT_S)
            assert b"/v2/tests/silent/manifests/latest" in connection.recv(65536)
            calls[0].cancel()  # type: ignore[no-untyped-call]
            wait_until(
                lambda: "call cancelled" in own_node.daemon_log(),
                what="one caller has left",
            )
            connection.settimeout(0.3)
            with pytest.raises(TimeoutError):
                connection.recv(1)
            calls[1].cancel()  # type: ignore[no-untyped-call]
            connection.settimeout(CALL_TIMEOUT_S)
            assert connection.recv(1) == b""
        listener.settimeout(0.1)
        with pytest.raises(TimeoutError):
            listener.accept()


async def wait_under_way(store: ImageStore, count: int) -> None:
    for _ in range(2000):
        if store.transfers.under_way == count:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{store.transfers.under_way} layers are under way")


@pytest.mark.parametrize("how", ["stalls", "drips"])
def test_registries_that_bring_little_keep_no_other_pull_waiting(
    how: str, built: Image, registry: Registry, tmp_path: Path
) -> None:
    """More layers than there are slots for unpacking stand still, all in the middle."""
    stuck = [
        build_image(
            [Layer().file(f"{number}-{layer}", os.urandom(SIZE)).tar() for layer in "abc"], {}
        )
        for number in range(4)
    ]
    for number, image in enumerate(stuck):
        registry.push(image, f"tests/stuck-{number}")

    async def main() -> None:
        async with (
            FaultyProxy.start(registry.address) as proxy,
            open_store(tmp_path, stall_timeout_s=1000) as store,
        ):
            for image in stuck:
                for blob in image.layers:
                    fault = proxy.stalls if how == "stalls" else proxy.drips
                    proxy.faults[blob] = fault(after=100_000)
            names = [f"{proxy.address}/tests/stuck-{number}" for number in range(len(stuck))]
            pulling = [asyncio.create_task(store.pull(name, None)) for name in names]
            async with asyncio.timeout(20 * session.TIME_FACTOR):
                await wait_under_way(store, 3 * len(stuck))
                pulled = await store.pull(f"{registry.address}/tests/broken", None)
            assert pulled.id == built.config and not any(task.done() for task in pulling)
            for task in pulling:
                task.cancel()
            await asyncio.wait(pulling)
            await store.remove(pulled.id)
            await wait_for_layers(tmp_path, 0)

    run(main())
