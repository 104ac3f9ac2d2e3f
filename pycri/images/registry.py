# SPDX-License-Identifier: Apache-2.0
"""The client of the OCI distribution API. The only HTTP client of pycri.

    GET /v2/<path>/manifests/<tag or digest>     RegistrySource.root, .manifest
    GET /v2/<path>/blobs/<digest>                RegistrySource.blob

Credentials are sent only when a registry asks for them, only to the registry they are for, and to
the token service it names; a redirect to another host loses them. Plain HTTP is used only for
loopback addresses and for a mirror whose URL says so. There is no total time-out: layers may be
huge and links slow, but a transfer that stands still for `stall_timeout_s` is given up.
Source: OCI distribution-spec; distribution's token and OAuth2 authentication.
"""

import hashlib
import ipaddress
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Final
from urllib.parse import urlsplit

import aiohttp  # noqa: TID251 - this is its one home
import msgspec
from yarl import URL

from pycri import __version__
from pycri.errors import CorruptImage, Denied, NotFound, RegistryUnavailable, TimedOut
from pycri.images.content import Document
from pycri.images.credentials import (
    Challenge,
    basic_header,
    choose_credentials,
    parse_challenges,
)
from pycri.images.manifest import INDEX_TYPES, MANIFEST_TYPES, Descriptor
from pycri.images.reference import DEFAULT_HOST, Reference
from pycri.model.ids import Digest
from pycri.model.image import RegistryAuth

_ACCEPT: Final = ", ".join((*MANIFEST_TYPES, *INDEX_TYPES))
_MANIFEST_LIMIT: Final = 8 * 1024 * 1024
_TOKEN_LIMIT: Final = 1024 * 1024
_MOST_REDIRECTS: Final = 5
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_CONNECT_TIMEOUT_S: Final = 30.0
_READ_BUFFER: Final = 256 * 1024


class _Token(msgspec.Struct, frozen=True):
    token: str = ""
    access_token: str = ""


class RegistryClient:
    """Connections to registries, shared by all pulls.

    mirrors: registry host to the base URL that is asked in its place.
    """

    def __init__(
        self, mirrors: Mapping[str, str] | None = None, *, stall_timeout_s: float = 60.0
    ) -> None:
        self._mirrors = dict(mirrors or {})
        self._stall_timeout_s = stall_timeout_s
        self._session: aiohttp.ClientSession | None = None

    def source(self, reference: Reference, auth: RegistryAuth | None) -> "RegistrySource":
        """Return the image `reference` as its registry has it, read with the rights of `auth`."""
        base = self._mirrors.get(reference.host) or _base_url(reference.host)
        credentials = choose_credentials(auth, reference.host)
        return RegistrySource(self.session(), base.rstrip("/"), reference, credentials)

    def session(self) -> aiohttp.ClientSession:
        """Return the pool of connections, made when first needed: it belongs to the loop."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=_CONNECT_TIMEOUT_S, sock_read=self._stall_timeout_s
                ),
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


def _base_url(host: str) -> str:
    if host == DEFAULT_HOST:
        return "https://registry-1.docker.io"
    return f"http://{host}" if _is_loopback(urlsplit(f"//{host}").hostname) else f"https://{host}"


def _is_loopback(name: str | None) -> bool:
    if name is None or name == "localhost":
        return name is not None
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class RegistrySource:
    """One image in one registry: a ContentSource. Holds the token of this pull only."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        base: str,
        reference: Reference,
        credentials: RegistryAuth,
    ) -> None:
        self._session = session
        self._base = base
        self._reference = reference
        self._credentials = credentials
        token = credentials.registry_token
        self._authorization = f"Bearer {token}" if token else ""

    async def root(self) -> Document:
        """Return the manifest or index that the reference names; verified if it is a digest."""
        return await self.manifest(self._reference.target)

    async def manifest(self, target: str) -> Document:
        """Return the manifest or index with a tag or digest.

        Raises: NotFound, Denied, RegistryUnavailable, TimedOut, CorruptImage.
        """
        async with self._get(f"manifests/{target}", accept=_ACCEPT) as response:
            body = await _read(response, _MANIFEST_LIMIT)
            digest = Digest("sha256:" + hashlib.sha256(body).hexdigest())
            promised = target if ":" in target else response.headers.get("Docker-Content-Digest")
            if promised not in (None, digest):
                raise CorruptImage(f"the manifest {target} is {digest}, promised was {promised}")
            return Document(body=body, media_type=response.content_type, digest=digest)

    async def blob(self, descriptor: Descriptor) -> AsyncIterator[bytes]:
        """Yield the pieces of a blob as they come, not verified.

        Raises: NotFound, Denied, RegistryUnavailable, TimedOut.
        """
        async with self._get(f"blobs/{descriptor.digest}", accept="*/*") as response:
            async for piece in response.content.iter_any():
                yield piece

    @asynccontextmanager
    async def _get(self, what: str, *, accept: str) -> AsyncIterator[aiohttp.ClientResponse]:
        url = URL(f"{self._base}/v2/{self._reference.path}/{what}", encoded=True)
        with _translated(url):
            response = await self._request(url, accept)
            if response.status == 401:
                challenges = parse_challenges(response.headers.getall("WWW-Authenticate", []))
                response.release()
                self._authorization = await self._authorize(challenges)
                response = await self._request(url, accept)
            async with response:
                self._check(response)
                yield response

    async def _request(self, url: URL, accept: str) -> aiohttp.ClientResponse:
        origin = url.origin()
        for _ in range(_MOST_REDIRECTS):
            headers = {"Accept": accept}
            if self._authorization and url.origin() == origin:
                headers["Authorization"] = self._authorization
            response = await self._session.get(url, headers=headers, allow_redirects=False)
            if response.status not in _REDIRECTS:
                return response
            location = response.headers.get("Location", "")
            response.release()
            url = url.join(URL(location, encoded=True))
            if url.scheme != "https" and not (origin.scheme == "http" and url.scheme == "http"):
                raise RegistryUnavailable(f"{origin} redirects to {url.scheme}, which is not safe")
        raise RegistryUnavailable(f"{origin} redirects in circles")

    def _check(self, response: aiohttp.ClientResponse) -> None:
        status, name = response.status, str(self._reference)
        if status == 200:
            return
        if status == 404:
            raise NotFound("image", name)
        if status in (401, 403):
            who = self._credentials.username or "an anonymous user"
            raise Denied(
                f"{self._reference.host} denies {who} the image {name} (status {status}): "
                "it does not exist, or the pull secret is missing or wrong"
            )
        reason = "too many requests" if status == 429 else response.reason
        raise RegistryUnavailable(f"{response.url.origin()} answers {status} ({reason}) for {name}")

    async def _authorize(self, challenges: tuple[Challenge, ...]) -> str:
        """Return a new Authorization header that answers one of the challenges."""
        for challenge in challenges:
            if challenge.scheme == "bearer" and not self._credentials.registry_token:
                return "Bearer " + await self._fetch_token(challenge)
            if challenge.scheme == "basic" and self._credentials.username:
                return basic_header(self._credentials)
        raise Denied(
            f"{self._reference.host} asks for credentials for {self._reference}; "
            + ("those given do not fit" if self._has_credentials() else "none were given")
        )

    def _has_credentials(self) -> bool:
        return self._credentials != RegistryAuth(server_address=self._credentials.server_address)

    async def _fetch_token(self, challenge: Challenge) -> str:
        realm = URL(challenge.realm)
        if realm.scheme != "https" and not _is_loopback(realm.host):
            raise Denied(f"{self._reference.host} names an unsafe token service: {realm}")
        asked = {"scope": challenge.scope or f"repository:{self._reference.path}:pull"}
        if challenge.service:
            asked["service"] = challenge.service
        with _translated(realm):
            async with self._token_request(realm, asked) as response:
                body = await _read(response, _TOKEN_LIMIT)
        if response.status in (400, 401, 403):
            raise Denied(f"the token service of {self._reference.host} denies {self._reference}")
        if response.status != 200:
            raise RegistryUnavailable(
                f"the token service {realm.origin()} answers {response.status}"
            )
        try:
            answer = msgspec.json.decode(body, type=_Token)
        except msgspec.DecodeError as error:
            raise RegistryUnavailable(f"the token service {realm.origin()}: {error}") from error
        return answer.token or answer.access_token

    def _token_request(
        self, realm: URL, asked: dict[str, str]
    ) -> "aiohttp.client._RequestContextManager":
        if self._credentials.identity_token:
            form = asked | {
                "grant_type": "refresh_token",
                "refresh_token": self._credentials.identity_token,
                "client_id": "pycri",
            }
            return self._session.post(realm, data=form, allow_redirects=False)
        headers = (
            {"Authorization": basic_header(self._credentials)} if self._credentials.username else {}
        )
        url = realm.update_query(asked)
        return self._session.get(url, headers=headers, allow_redirects=False)


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > limit:
            raise CorruptImage(f"{response.url} is longer than {limit} bytes")
    return bytes(body)


@contextmanager
def _translated(url: URL) -> Iterator[None]:
    """Turn what the HTTP client raises into pycri's errors."""
    try:
        yield
    except aiohttp.ConnectionTimeoutError as error:
        raise RegistryUnavailable(f"{url.origin()} cannot be reached: time-out") from error
    except TimeoutError as error:
        raise TimedOut(f"{url.origin()} sent nothing for too long") from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise RegistryUnavailable(f"{url.origin()}: {error}") from error
