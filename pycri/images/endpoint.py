# SPDX-License-Identifier: Apache-2.0
"""One host, asked for the content of one image: authorized, patient, resuming.

Credentials are sent only when the host asks for them, to it and to the token service it names.
The token is of this pull only. When a transfer breaks off, or nothing comes for too long, it is
taken up again where it broke, as often as that brings it further; what comes in the end has to be
verified by the receiver all the same.
Source: OCI distribution-spec; RFC 9110 §10.2.3 (Retry-After), §14 (ranges).
"""

import asyncio
import hashlib
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Final
from urllib.parse import urlencode

import msgspec
from yarl import URL

from pycri.errors import CorruptImage, Denied, NotFound, PycriError, RegistryUnavailable
from pycri.images.authorization import (
    TokenRequest,
    basic_header,
    parse_challenges,
    parse_token,
    plan_token_request,
)
from pycri.images.content import Document
from pycri.images.credentials import Credentials
from pycri.images.hosts import RegistryHost
from pycri.images.manifest import INDEX_TYPES, MANIFEST_TYPES, Descriptor, parse_document
from pycri.images.reference import Reference
from pycri.images.retrying import BUSY, pause_s
from pycri.images.transport import Link, Response, read_body, read_pieces
from pycri.logs import Log
from pycri.model.ids import Digest, is_digest

_ACCEPT: Final = ", ".join((*MANIFEST_TYPES, *INDEX_TYPES))
_MANIFEST_LIMIT: Final = 8 * 1024 * 1024
_TOKEN_LIMIT: Final = 1024 * 1024
_COMPLAINT_LIMIT: Final = 64 * 1024
_WORTH_IT: Final = 64 * 1024
"""Bytes that a connection must bring, or it counts as one that brought nothing."""
_MOST_CHALLENGES: Final = 2
_CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]+)-[0-9]+/([0-9]+|\*)")

_log = Log("images")


class _Complaint(msgspec.Struct, frozen=True):
    code: str = ""
    message: str = ""


class _Complaints(msgspec.Struct, frozen=True):
    """The body of an error (OCI distribution-spec, "Error Codes")."""

    errors: list[_Complaint] = []


class Endpoint:
    """A host, with the rights and the token of one pull.

    find_credentials: called once the host asks for any; a helper may take its time.
    """

    def __init__(
        self,
        host: RegistryHost,
        link: Link,
        reference: Reference,
        find_credentials: Callable[[], Awaitable[Credentials]],
    ) -> None:
        self.host = host
        self._link = link
        self._reference = reference
        self._find_credentials = find_credentials
        self._credentials = Credentials()
        self._authorizations: dict[URL, str] = {}
        self._authorizing = asyncio.Lock()

    async def manifest(self, target: str) -> Document:
        """Return the manifest or index with a tag or digest; verified, if promised by digest.

        Raises: NotFound, Denied, RegistryUnavailable, CorruptImage.
        """
        broken, heard_s = 0, time.monotonic()
        while True:
            async with self._open("GET", f"manifests/{target}") as response:
                try:
                    return _document(target, response, await read_body(response, _MANIFEST_LIMIT))
                except RegistryUnavailable:
                    broken += 1
                    pause = self._pause_s(broken, heard_s)
                    if pause is None:
                        raise
            await asyncio.sleep(pause)

    async def resolve(self, tag: str) -> Digest:
        """Return what a tag stands for, without fetching it where the host can say so.

        Raises: NotFound, Denied, RegistryUnavailable, CorruptImage.
        """
        async with self._open("HEAD", f"manifests/{tag}") as response:
            digest = response.headers.get("Docker-Content-Digest", "")
        return Digest(digest) if is_digest(digest) else (await self.manifest(tag)).digest

    async def blob(self, descriptor: Descriptor, offset: int) -> AsyncGenerator[bytes, None]:
        """Yield the bytes of a blob from `offset` on, not verified, but as many as promised.

        Raises: NotFound, Denied, RegistryUnavailable, CorruptImage.
        """
        what, size = f"blobs/{descriptor.digest}", descriptor.size
        at, fruitless, heard_s = offset, 0, time.monotonic()
        while True:
            began, answered = at, False
            try:
                async with self._open("GET", what, at) as response:
                    answered = True
                    async with aclosing(_rest(response, at, size)) as pieces:
                        async for piece in pieces:
                            at += len(piece)
                            yield piece
                            # Not before: a taker with a slow disk is no silence.
                            heard_s = time.monotonic()
                if at >= size:
                    return
                problem = RegistryUnavailable(f"{self.host.url} breaks off within a blob")
            except RegistryUnavailable as error:
                problem = error
            fruitless = 0 if at - began >= _WORTH_IT else fruitless + 1
            pause = self._pause_s(fruitless, heard_s)
            if pause is None or not (answered or at > offset):
                raise problem
            _log.info("transfer broken off", url=self.host.url, at=at, error=str(problem))
            await asyncio.sleep(pause)

    def _pause_s(self, fruitless: int, heard_s: float) -> float | None:
        """Return how long to wait before a transfer goes on here; None to leave it to the next.

        A mirror is worth it as long as it brings something; the registry is also given time, but
        no third connection where nothing came on two. heard_s: when the last byte came.
        """
        silent = time.monotonic() - heard_s >= 2 * self._link.stall_timeout_s
        if silent or (fruitless and not self.host.is_server):
            return None
        return pause_s(max(0, fruitless - 1), None)

    @asynccontextmanager
    async def _open(self, method: str, what: str, offset: int = 0) -> AsyncIterator[Response]:
        query = f"?{urlencode({'ns': self.host.namespace})}" if self.host.namespace else ""
        url = f"{self.host.url}/{self._reference.path}/{what}{query}"
        headers = {"Accept": _ACCEPT if what.startswith("manifests/") else "*/*"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        response = await self._patiently(lambda: self._authorized(method, url, headers))
        async with response:
            if response.status not in (200, 206):
                raise await self._refusal(response)
            yield response

    async def _patiently(self, ask: Callable[[], Awaitable[Response]]) -> Response:
        """Return the answer; of the last host to ask, ask again while it is too busy."""
        tries = 0
        while True:
            response = await ask()
            pause = pause_s(tries, response.headers.get("Retry-After"))
            if response.status not in BUSY or not self.host.is_server or pause is None:
                return response
            response.release()
            _log.info("registry busy", url=self.host.url, status=response.status, pause_s=pause)
            await asyncio.sleep(pause)
            tries += 1

    async def _authorized(self, method: str, url: str, headers: dict[str, str]) -> Response:
        answered: set[URL] = set()
        while True:
            used = dict(self._authorizations)
            response = await self._link.send(method, url, headers, used)
            origin = response.url.origin()
            # The host itself, and one that it redirects to, have one answer each.
            if response.status != 401 or origin in answered or len(answered) == _MOST_CHALLENGES:
                return response
            answered.add(origin)
            asked = response.headers.getall("WWW-Authenticate", [])
            response.release()
            async with self._authorizing:
                # Another layer's request may have been told the same, and have a new token by now.
                if self._authorizations.get(origin) == used.get(origin):
                    self._authorizations[origin] = await self._authorize(asked, origin)

    async def _authorize(self, asked: list[str], origin: URL) -> str:
        """Return a new Authorization header that answers one of the challenges of an origin.

        What the host redirects to may ask for what it likes: our credentials are not for it, and
        it is answered as by anyone.
        """
        own = self._link.is_host(origin)
        if own and not self._credentials.source:
            self._credentials = await self._find_credentials()
        credentials = self._credentials if own else Credentials()
        auth = credentials.auth
        token = f"Bearer {auth.registry_token}" if auth.registry_token else ""
        for challenge in parse_challenges(asked):
            if challenge.scheme == "bearer" and token and token != self._authorizations.get(origin):
                return token
            if challenge.scheme == "bearer" and not token:
                request = plan_token_request(challenge, auth, self.host, self._reference.path)
                return "Bearer " + await self._fetch_token(request, credentials)
            if challenge.scheme == "basic" and auth.username:
                return basic_header(auth)
        raise Denied(
            f"{origin} asks for credentials for {self._reference}; "
            + (f"{credentials} does not fit" if credentials.source else "none were given")
        )

    async def _fetch_token(self, request: TokenRequest, credentials: Credentials) -> str:
        response = await self._patiently(
            lambda: self._link.ask(request.url, request.authorization, request.form)
        )
        async with response:
            body = await read_body(response, _TOKEN_LIMIT)
        origin = response.url.origin()
        if response.status in (400, 401, 403):
            raise Denied(
                f"the token service {origin} denies {credentials} "
                f"{self._reference}{_complaint(body)}"
            )
        if response.status != 200:
            raise RegistryUnavailable(
                f"the token service {origin} answers {response.status}{_complaint(body)}"
            )
        try:
            return parse_token(body)
        except ValueError as error:  # msgspec.DecodeError is one
            raise RegistryUnavailable(f"the token service {origin}: {error}") from error

    async def _refusal(self, response: Response) -> PycriError:
        status, name = response.status, str(self._reference)
        try:
            said = _complaint(await read_body(response, _COMPLAINT_LIMIT))
        except PycriError:
            said = ""
        if status == 404:
            error: PycriError = NotFound("image", name)
            error.add_note(f"{self.host.url} does not have it{said}")
            return error
        if status in (401, 403):
            return Denied(
                f"{self.host.url} denies {self._credentials} the image {name} (status "
                f"{status}{said}): it does not exist, or the credentials are missing or wrong"
            )
        reason = "too many requests" if status == 429 else response.reason
        if again := response.headers.get("Retry-After"):
            reason = f"{reason}, retry after {again[:40]}"
        origin = response.url.origin()
        return RegistryUnavailable(f"{origin} answers {status} ({reason}{said}) for {name}")


def _document(target: str, response: Response, body: bytes) -> Document:
    digest = Digest("sha256:" + hashlib.sha256(body).hexdigest())
    promised = target if ":" in target else response.headers.get("Docker-Content-Digest")
    if promised not in (None, digest):
        raise CorruptImage(f"the manifest {target} is {digest}, promised was {promised}")
    # What is none, like the page of a gateway that asks to log in, is this host's failure.
    parse_document(body, response.content_type)
    return Document(body=body, media_type=response.content_type, digest=digest)


async def _rest(response: Response, at: int, size: int) -> AsyncGenerator[bytes, None]:
    """Yield a blob's bytes from `at` on, of an answer that begins there, or at its start."""
    skipped = _check_part(response, at, size)
    async with aclosing(read_pieces(response)) as pieces:
        async for piece in pieces:
            if skipped < len(piece):
                yield piece[skipped:] if skipped else piece
            skipped = max(0, skipped - len(piece))


def _check_part(response: Response, at: int, size: int) -> int:
    """Return how many bytes in front are to be skipped. Raises: CorruptImage."""
    if response.status == 206:
        found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if not found or int(found[1]) != at or found[2] not in ("*", str(size)):
            raise CorruptImage(f"{response.url.origin()} resumes a blob at another place")
        return 0
    if response.content_length not in (None, size):
        raise CorruptImage(
            f"{response.url.origin()} has a blob of {response.content_length} bytes, "
            f"promised were {size}"
        )
    return at


def _complaint(body: bytes) -> str:
    """Return what an error's body says, in a few words that are safe to print; or ""."""
    try:
        errors = msgspec.json.decode(body, type=_Complaints).errors
    except msgspec.DecodeError:
        return ""
    said = "; ".join(error.message or error.code for error in errors)[:200]
    return f": {said!a}" if said else ""
