# SPDX-License-Identifier: Apache-2.0
"""Images in registries: which hosts are asked in which order, and what when one of them fails.

    RegistryClient ──source()──▶ RegistrySource ──one for each host──▶ Endpoint ──▶ Link
     one a node                   one a pull       (hosts.toml)

Mirrors come first, in the order of hosts.toml, the registry last. A host that fails, in whatever
way, is followed by the next; a transfer goes on there where it broke off. A mirror that does not
give the manifest, and any host that is out of order, is not asked again in this pull. What a tag
stands for is asked only of hosts that are trusted to say so ("resolve"); content by digest may come
from all others, too.
"""

from asyncio import Lock, to_thread
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from pycri.errors import CorruptImage, Denied, NotFound, PycriError, RegistryUnavailable
from pycri.images.certs import read_hosts
from pycri.images.content import Document
from pycri.images.credentials import find_credentials
from pycri.images.endpoint import Endpoint
from pycri.images.hosts import Capability
from pycri.images.manifest import Descriptor
from pycri.images.reference import Reference
from pycri.images.transport import Transport
from pycri.logs import Log
from pycri.model.ids import Digest
from pycri.model.image import RegistryAuth

V = TypeVar("V")

_PASSED_OVER: Final = (NotFound, Denied, RegistryUnavailable, CorruptImage)
"""Errors of one host after which the next is asked."""

_log = Log("images")


class RegistryClient:
    """The node's way to all registries.

    certs_dir: folders with a hosts.toml. credentials_file: the node's, in Docker's format. Both
    are read at each pull.
    """

    def __init__(
        self, certs_dir: Path, credentials_file: Path, *, progress_timeout_s: float
    ) -> None:
        self._certs_dir = certs_dir
        self._credentials_file = credentials_file
        self._transport = Transport(stall_timeout_s=progress_timeout_s)

    def source(self, reference: Reference, auth: RegistryAuth | None) -> "RegistrySource":
        """Return the image `reference` as its registry has it, read with the rights of `auth`."""
        return RegistrySource(self, reference, auth)

    async def endpoints(self, reference: Reference, auth: RegistryAuth | None) -> list[Endpoint]:
        """Return the hosts to ask for an image, in their order.

        Raises: InvalidSettings, naming file and key.
        """
        found = await to_thread(read_hosts, self._certs_dir, reference.host)
        file, path = self._credentials_file, reference.path
        return [
            Endpoint(
                host,
                await self._transport.link(host),
                reference,
                partial(find_credentials, auth, file, host, path),
            )
            for host in found.hosts
        ]

    async def close(self) -> None:
        """Close all connections."""
        await self._transport.close()


class RegistrySource:
    """One image in its registry and the mirrors of it: a ContentSource. Holds one pull's tokens."""

    def __init__(
        self, client: RegistryClient, reference: Reference, auth: RegistryAuth | None
    ) -> None:
        self._client = client
        self._reference = reference
        self._auth = auth
        self._endpoints: list[Endpoint] = []
        self._opening = Lock()
        self._given_up: set[Endpoint] = set()
        self._distrusted: dict[Digest, set[Endpoint]] = {}
        self._served: dict[Digest, set[Endpoint]] = {}

    async def root(self) -> Document:
        """Return the manifest or index that the reference names; verified if it is a digest.

        Raises: NotFound, Denied, RegistryUnavailable, CorruptImage, InvalidSettings.
        """
        target = self._reference.target
        if self._reference.digest:
            return await self.manifest(target)
        resolving, pulling = await self._able("resolve"), await self._able("pull")
        if resolving[:1] == pulling[:1]:
            return await self._first(resolving, lambda endpoint: endpoint.manifest(target))
        # A mirror that may not say what the tag is comes first: ask another, then fetch from it.
        return await self.manifest(
            await self._first(resolving, lambda endpoint: endpoint.resolve(target))
        )

    async def manifest(self, target: str) -> Document:
        """Return the manifest or index with this digest, verified. Raises: as `root`."""
        return await self._first(
            await self._able("pull"), lambda endpoint: endpoint.manifest(target)
        )

    async def blob(self, descriptor: Descriptor) -> AsyncIterator[bytes]:
        """Yield the pieces of a blob as they come, not verified. Raises: as `root`."""
        distrusted = self._distrusted.get(descriptor.digest, set())
        served = self._served[descriptor.digest] = set[Endpoint]()
        failures = _Failures(self._reference)
        at = 0
        for endpoint in await self._able("pull"):
            if endpoint in distrusted:
                continue
            try:
                async with aclosing(endpoint.blob(descriptor, at)) as pieces:
                    async for piece in pieces:
                        at += len(piece)
                        served.add(endpoint)
                        yield piece
                return
            except _PASSED_OVER as error:
                self._note(endpoint, error, failures)
        raise failures.to_tell()

    def distrust(self, digest: Digest) -> bool:
        """Take back a blob that proved wrong; tell whether another host may have it right."""
        doubted = self._distrusted.setdefault(digest, set())
        served = self._served.pop(digest, set()) - doubted
        if not served:
            return False
        doubted |= served
        return any(
            endpoint not in doubted and endpoint not in self._given_up
            for endpoint in self._endpoints
            if "pull" in endpoint.host.capabilities
        )

    async def _able(self, capability: Capability) -> list[Endpoint]:
        async with self._opening:
            if not self._endpoints:
                self._endpoints = await self._client.endpoints(self._reference, self._auth)
        able = [found for found in self._endpoints if capability in found.host.capabilities]
        return [found for found in able if found not in self._given_up] or able

    async def _first(self, endpoints: list[Endpoint], ask: Callable[[Endpoint], Awaitable[V]]) -> V:
        failures = _Failures(self._reference)
        for endpoint in endpoints:
            try:
                return await ask(endpoint)
            except _PASSED_OVER as error:
                self._note(endpoint, error, failures)
                self._given_up.add(endpoint)
        raise failures.to_tell()

    def _note(self, endpoint: Endpoint, error: PycriError, failures: "_Failures") -> None:
        url, name = endpoint.host.url, str(self._reference)
        failures.append(url, error)
        if isinstance(error, RegistryUnavailable):
            self._given_up.add(endpoint)
        # Mirrors need not have everything.
        log = _log.info if isinstance(error, NotFound) else _log.warning
        log("registry host failed", url=url, image=name, error=str(error))


class _Failures:
    """What the hosts of one image said, one after another."""

    def __init__(self, reference: Reference) -> None:
        self._reference = reference
        self._all: list[tuple[str, PycriError]] = []

    def append(self, url: str, error: PycriError) -> None:
        self._all.append((url, error))

    def to_tell(self) -> PycriError:
        """Return the last one, the registry's own, with those before it as notes."""
        if not self._all:
            return RegistryUnavailable(f"no host may be asked for {self._reference}")
        *before, (_, last) = self._all
        for url, error in before:
            last.add_note(f"before that, {url}: {error}")
        return last
