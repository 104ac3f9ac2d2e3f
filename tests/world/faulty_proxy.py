# SPDX-License-Identifier: Apache-2.0
"""A proxy in front of a real registry, that breaks what comes through as a test says.

Its faults are those of FaultyServer, made here: `proxy.faults[ending] = proxy.cuts(after=1000)`.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

from tests.world.image_stores import FaultyServer, Handler

_PASSED_ON = ("Accept", "Range", "Authorization")
_PASSED_BACK = (
    "Content-Type",
    "Content-Range",
    "Docker-Content-Digest",
    "Www-Authenticate",
    "Location",
)


class FaultyProxy(FaultyServer):
    """Passes requests on to the registry at `upstream`, "127.0.0.1:PORT", by HTTP."""

    def __init__(self, upstream: str) -> None:
        super().__init__()
        self._upstream = upstream

    @classmethod
    @asynccontextmanager
    async def start(cls, upstream: str) -> AsyncIterator["FaultyProxy"]:
        """Serve until the end of the block."""
        async with cls(upstream).serving() as proxy:
            yield proxy

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Answer as the registry does."""
        status, headers, body = await self._fetch(request)
        if request.method == "HEAD":
            return web.Response(status=status, headers=headers)
        return web.Response(status=status, headers=headers, body=body)

    async def _fetch(self, request: web.Request) -> tuple[int, CIMultiDict[str], bytes]:
        sent = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
        url = f"http://{self._upstream}{request.path_qs}"
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.request(request.method, url, headers=sent, allow_redirects=False) as response,
        ):
            kept = {
                name: response.headers[name] for name in _PASSED_BACK if name in response.headers
            }
            return response.status, CIMultiDict(kept), await response.read()

    def cuts(self, *, after: int, times: int = 1_000) -> Handler:
        """Return a fault: the connection is cut after so many bytes, so many times."""

        async def cut(response: web.StreamResponse, request: web.Request) -> None:
            assert request.transport is not None
            # What was written is on its way: a reset would take it back.
            await asyncio.sleep(0.02)
            request.transport.abort()

        return self._breaks(after, times, cut)

    def stalls(self, *, after: int, times: int = 1_000) -> Handler:
        """Return a fault: after so many bytes nothing more comes, so many times."""

        async def stall(response: web.StreamResponse, request: web.Request) -> None:
            await asyncio.Event().wait()

        return self._breaks(after, times, stall)

    def drips(self, *, after: int) -> Handler:
        """Return a fault: after so many bytes a few come now and then."""

        async def drip(response: web.StreamResponse, request: web.Request) -> None:
            while True:
                await response.write(b"drop")
                await asyncio.sleep(0.05)

        return self._breaks(after, 1_000, drip)

    def truncates(self, *, after: int, times: int = 1_000) -> Handler:
        """Return a fault: the answer ends well after so many bytes, so many times."""

        async def end(response: web.StreamResponse, request: web.Request) -> None:
            await response.write_eof()

        return self._breaks(after, times, end, whole_length=False)

    def spoils(self) -> Handler:
        """Return a fault: the last byte of the body is another."""

        async def spoil(request: web.Request) -> web.StreamResponse:
            status, headers, body = await self._fetch(request)
            spoiled = body[:-1] + bytes([body[-1] ^ 1])
            return web.Response(status=status, headers=headers, body=spoiled)

        return spoil

    def _breaks(
        self,
        after: int,
        times: int,
        end: Callable[[web.StreamResponse, web.Request], Awaitable[None]],
        *,
        whole_length: bool = True,
    ) -> Handler:
        async def breaks(request: web.Request) -> web.StreamResponse:
            status, headers, body = await self._fetch(request)
            if whole_length:
                headers["Content-Length"] = str(len(body))
            response = web.StreamResponse(status=status, headers=headers)
            await response.prepare(request)
            await response.write(body[:after])
            await end(response, request)
            return response

        return self.times(breaks, times)


def redirects(address: str) -> Handler:
    """Return a fault: the same path is to be asked for at another address."""

    async def redirect(request: web.Request) -> web.StreamResponse:
        location = f"http://{address}{request.path_qs}"
        return web.Response(status=307, headers={"Location": location})

    return redirect
