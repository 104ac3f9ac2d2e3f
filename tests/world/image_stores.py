# SPDX-License-Identifier: Apache-2.0
"""An image store of a test's own, and a registry that misbehaves as the test says."""

import asyncio
import os
import sqlite3
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

from aiohttp import web
from multidict import CIMultiDictProxy

from pycri.images.admission import Admission, Verifiers
from pycri.images.manifest import host_platform
from pycri.images.policy import ImagePolicy, Verdict
from pycri.images.registry import RegistryClient
from pycri.images.store import ImageRules, ImageStore
from pycri.model.ids import Digest
from pycri.state.database import Database
from tests.world.oci import Image

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
REPOSITORY = "tests/image"


def make_rules(
    folder: Path,
    rules: dict[str, Verdict] | None = None,
    *,
    timeout_s: float = 20.0,
    most: int = 10,
    pinned: tuple[str, ...] = (),
) -> ImageRules:
    """Make the rules of a store whose verifiers are in FOLDER/verifiers; all is accepted."""
    verifiers = Verifiers(folder / "verifiers", most=most, timeout_s=timeout_s)
    return ImageRules(admission=Admission(ImagePolicy(rules or {}), verifiers), pinned=pinned)


@asynccontextmanager
async def open_store(
    folder: Path,
    *,
    in_use: Callable[[], frozenset[Digest]] = frozenset,
    stall_timeout_s: float = 20.0,
    rules: ImageRules | None = None,
) -> AsyncIterator[ImageStore]:
    """Open a store in `folder`, which may hold what a former one left.

    Of registries it knows what is in FOLDER/certs.d and FOLDER/credentials.json.
    """
    database = await Database.open(folder / "pycri.db")
    client = RegistryClient(
        folder / "certs.d", folder / "credentials.json", progress_timeout_s=stall_timeout_s
    )
    store = ImageStore(
        folder / "images",
        database,
        platform=host_platform(os.uname().machine),
        registry=client,
        rules=rules or make_rules(folder),
        layers_in_use=in_use,
    )
    try:
        await store.open()
        yield store
    finally:
        await store.close()
        await client.close()
        await database.close()


def forget_the_boot(folder: Path) -> None:
    """Let the store believe that the machine was started again."""
    with sqlite3.connect(folder / "pycri.db") as database:
        database.execute("UPDATE meta SET value = 'former' WHERE key = 'layers_open_in_boot'")
    database.close()


def list_layers(folder: Path) -> list[str]:
    """Return the names below the layers' folder: whole ones, partial ones and trash."""
    return sorted(os.listdir(folder / "images/layers"))


async def wait_for_layers(folder: Path, count: int) -> None:
    """Wait until there are `count` names below the layers' folder; removal goes on aside."""
    for _ in range(1000):
        if len(list_layers(folder)) == count:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"there are still {list_layers(folder)}")


class FaultyServer:
    """A server on loopback that notes what it is asked, and misbehaves as the test says.

    requests: "METHOD path" of what was asked, in order; queries and headers: what came with it.
    faults: by the end of a path, handlers that answer in its place.
    """

    def __init__(self) -> None:
        self.address = ""
        self.requests: list[str] = []
        self.queries: list[str] = []
        self.headers: list[CIMultiDictProxy[str]] = []
        self.faults: dict[str, Handler] = {}

    @asynccontextmanager
    async def serving(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[Self]:
        """Serve until the end of the block."""
        application = web.Application()
        # A client that goes away ends the handler too: some wait for ever.
        runner = web.AppRunner(application, handler_cancellation=True)
        application.router.add_route("*", "/{path:.*}", self._answer)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
            await site.start()
            self.address = "{}:{}".format(*runner.addresses[0][:2])
            yield self
        finally:
            await runner.cleanup()

    @property
    def authorizations(self) -> list[str]:
        """The Authorization header of each request, "" where there was none."""
        return [headers.get("Authorization", "") for headers in self.headers]

    def asked(self, ending: str) -> int:
        """Return how often a path with this end was asked for."""
        return sum(request.endswith(ending) for request in self.requests)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.path}")
        self.queries.append(request.query_string)
        self.headers.append(request.headers)
        for ending, fault in self.faults.items():
            if request.path.endswith(ending):
                return await fault(request)
        return await self.serve(request)

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Answer as it should be."""
        return web.Response(status=404)

    def times(self, fault: Handler, count: int) -> Handler:
        """Return a fault that passes after it has occurred `count` times."""
        left = count

        async def passing(request: web.Request) -> web.StreamResponse:
            nonlocal left
            left -= 1
            return await (fault if left >= 0 else self.serve)(request)

        return passing


class FaultyRegistry(FaultyServer):
    """One image in memory, served by HTTP as REPOSITORY:latest. gate: answers to blobs wait."""

    def __init__(self, image: Image) -> None:
        super().__init__()
        self.image = image
        self.gate = asyncio.Event()
        self.gate.set()

    @classmethod
    @asynccontextmanager
    async def start(cls, image: Image) -> AsyncIterator["FaultyRegistry"]:
        """Serve `image` until the end of the block."""
        async with cls(image).serving() as server:
            yield server

    @property
    def reference(self) -> str:
        """What a client pulls."""
        return f"{self.address}/{REPOSITORY}:latest"

    async def serve_open(self, request: web.Request) -> web.StreamResponse:
        """Answer with a blob though the gate is shut; a handler for `faults`."""
        return web.Response(body=self.image.blobs[request.path.rpartition("/")[2]])

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Answer as a registry does."""
        prefix, _, target = request.path.rpartition("/")
        if prefix == f"/v2/{REPOSITORY}/manifests":
            digest = self.image.root.digest if target == "latest" else target
            if digest in self.image.manifests:
                kind = self.image.manifests[digest].media_type
                return web.Response(body=self.image.blobs[digest], content_type=kind)
        if prefix == f"/v2/{REPOSITORY}/blobs" and target in self.image.blobs:
            await self.gate.wait()
            return web.Response(body=self.image.blobs[target])
        return web.Response(status=404)


def answers(status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> Handler:
    """Return a fault: always this answer."""

    async def fault(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status, body=body, headers=headers)

    return fault


def read_tree(folder: Path) -> Iterator[str]:
    """Yield the paths of all files below a folder, relative to it."""
    for path in sorted(folder.rglob("*")):
        yield str(path.relative_to(folder))
