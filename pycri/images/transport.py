# SPDX-License-Identifier: Apache-2.0
"""HTTP to registries, as hosts.toml says of each. The only HTTP client of pycri.

A redirect is followed here: to another origin neither the credentials nor the headers that are for
the host go along, and from TLS it never leads into the open. There is no total time-out: layers
may be huge and links slow, but a connection on which nothing comes for `stall_timeout_s` is given
up. What goes wrong on the way is RegistryUnavailable. The environment (HTTPS_PROXY) is not read.
"""

import asyncio
import ssl
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import aiohttp  # noqa: TID251 - this is its one home
from multidict import CIMultiDict
from yarl import URL

from pycri import __version__
from pycri.errors import CorruptImage, RegistryUnavailable
from pycri.images.certs import TlsContexts
from pycri.images.hosts import RegistryHost

_MOST_REDIRECTS: Final = 5
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_READ_BUFFER: Final = 256 * 1024

Response = aiohttp.ClientResponse


class Transport:
    """The connections of a node, shared by all pulls."""

    def __init__(self, *, stall_timeout_s: float) -> None:
        self._stall_timeout_s = stall_timeout_s
        self._contexts = TlsContexts()
        self._session: aiohttp.ClientSession | None = None

    async def link(self, host: RegistryHost) -> "Link":
        """Return the way to a host. Raises: InvalidSettings if its certificates are not usable."""
        context = await asyncio.to_thread(self._contexts.context, host)
        timeout = aiohttp.ClientTimeout(
            total=None, connect=host.dial_timeout_s, sock_read=self._stall_timeout_s
        )
        return Link(self._open_session(), host, timeout, context)

    def _open_session(self) -> aiohttp.ClientSession:
        # Made when first needed: it belongs to the loop.
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # As many as pulls ask for: these have a bound on their layers.
                connector=aiohttp.TCPConnector(limit=0),
                headers={"User-Agent": f"pycri/{__version__}", "Accept-Encoding": "identity"},
                auto_decompress=False,
                read_bufsize=_READ_BUFFER,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None


class Link:
    """The way to one host, and to what it redirects to and names as its token service."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        host: RegistryHost,
        timeout: aiohttp.ClientTimeout,
        context: ssl.SSLContext,
    ) -> None:
        self._session = session
        self._host = host
        self._timeout = timeout
        self._context = context

    @property
    def stall_timeout_s(self) -> float:
        """How long a connection may be silent."""
        return self._timeout.sock_read or 0.0

    def is_host(self, url: URL) -> bool:
        """Tell whether a URL is of the host itself, not of where it redirects to."""
        return url.origin() == URL(self._host.url).origin()

    async def send(
        self, method: str, url: str, headers: Mapping[str, str], authorizations: Mapping[URL, str]
    ) -> Response:
        """Return the answer after all redirects; the caller releases it.

        authorizations: by the origin that each is for.
        Raises: RegistryUnavailable.
        """
        at = _parse(url)
        for _ in range(_MOST_REDIRECTS):
            sent = CIMultiDict(self._host.headers if self.is_host(at) else ())
            sent.update(headers)
            if authorization := authorizations.get(at.origin()):
                sent["Authorization"] = authorization
            response = await self._send(method, at, sent)
            if response.status not in _REDIRECTS:
                return response
            location = response.headers.get("Location", "")
            response.release()
            at = _follow(at, location)
        raise RegistryUnavailable(f"{self._host.url} redirects in circles")

    async def ask(self, url: str, authorization: str, form: Mapping[str, str] | None) -> Response:
        """Ask a token service; no redirect is followed. Raises: RegistryUnavailable."""
        at = _parse(url)
        # They may be the key to a gate in front of both, but are nobody else's.
        own = at.host == URL(self._host.url).host
        headers = CIMultiDict(self._host.headers if own else ())
        if authorization:
            headers["Authorization"] = authorization
        return await self._send("GET" if form is None else "POST", at, headers, form)

    async def _send(
        self,
        method: str,
        url: URL,
        headers: CIMultiDict[str],
        form: Mapping[str, str] | None = None,
    ) -> Response:
        with translated(url):
            return await self._session.request(
                method,
                url,
                headers=headers,
                data=form,
                allow_redirects=False,
                timeout=self._timeout,
                ssl=self._context,
                proxy=self._host.proxy or None,
            )


def _parse(url: str) -> URL:
    try:
        return URL(url, encoded=True)
    except ValueError as error:
        raise RegistryUnavailable(f"{url!r} is not a URL: {error}") from error


def _follow(at: URL, location: str) -> URL:
    try:
        target = at.join(URL(location, encoded=True))
        target.origin()
    except ValueError as error:
        raise RegistryUnavailable(f"{at.origin()} redirects to no URL: {error}") from error
    if target.scheme != "https" and not (at.scheme == "http" and target.scheme == "http"):
        raise RegistryUnavailable(f"{at.origin()} redirects to {target.scheme}, which is not safe")
    return target


async def read_pieces(response: Response) -> AsyncGenerator[bytes, None]:
    """Yield the body as it comes. Raises: RegistryUnavailable if it breaks off or stands still."""
    with translated(response.url):
        async for piece in response.content.iter_any():
            yield piece


async def read_body(response: Response, limit: int) -> bytes:
    """Return the whole body. Raises: CorruptImage if it is longer; RegistryUnavailable."""
    body = bytearray()
    async for piece in read_pieces(response):
        body += piece
        if len(body) > limit:
            raise CorruptImage(f"{response.url.origin()} sends more than {limit} bytes")
    return bytes(body)


@contextmanager
def translated(url: URL) -> Iterator[None]:
    """Turn what the HTTP client raises into our error. No query is quoted: it may be a secret."""
    try:
        yield
    except aiohttp.ConnectionTimeoutError as error:
        raise RegistryUnavailable(f"{url.origin()} cannot be reached: time-out") from error
    except TimeoutError as error:
        raise RegistryUnavailable(f"{url.origin()} sent nothing for too long") from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise RegistryUnavailable(f"{url.origin()}: {error}") from error
