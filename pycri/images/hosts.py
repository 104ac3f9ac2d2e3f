# SPDX-License-Identifier: Apache-2.0
"""hosts.toml, containerd's description of where a registry's images are asked for. Pure.

    server = "https://registry-1.docker.io"     asked last; without it, the registry itself
    ca = "upstream.pem"                         keys up here belong to the server

    [host."https://mirror.example:5000"]        asked before it, in the order of the file
      capabilities = ["pull", "resolve"]        "resolve": trusted to say what a tag stands for
      ca = "mirror.pem"                         or a list; in addition to the system's
      client = [["mirror.cert", "mirror.key"]]  or one file that holds both, or a list of such
      skip_verify = false
      override_path = false                     true: the URL's path is the API's root, without /v2
      dial_timeout = "5s"
      proxy = "http://proxy.example:3128"
      [host."https://mirror.example:5000".header]
        x-site = "four"                         or a list of values

Files are named relative to the folder of hosts.toml. Unlike containerd, which goes on without a
file it cannot read, an unknown key or a value that makes no sense is an error.
Source: containerd, docs/hosts.md; where that is silent, core/remotes/docker/config/hosts.go.
"""

import ipaddress
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import SplitResult, urlsplit

import msgspec

from pycri.config import check_keys, convert_table
from pycri.errors import InvalidSettings
from pycri.images.reference import DEFAULT_HOST

DEFAULT_DIAL_TIMEOUT_S: Final = 30.0
_HUB: Final = "registry-1.docker.io"
_HUB_NAMES: Final = frozenset({DEFAULT_HOST, "index.docker.io", _HUB})
_DURATION: Final = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h)")
_UNIT_S: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")

Capability = Literal["pull", "resolve", "push"]
_CAPABILITIES: Final[tuple[Capability, ...]] = ("pull", "resolve", "push")


class RegistryHost(msgspec.Struct, frozen=True, kw_only=True):
    """One place that is asked for the images of a registry.

    url: what `/REPOSITORY/manifests/...` is put behind. registry: as images name it. is_server: the
    registry itself, or what hosts.toml names in its place; else a mirror. client: certificate and
    key, "" if the certificate's file has it. headers: sent to this host only.
    """

    url: str
    registry: str
    is_server: bool = True
    capabilities: frozenset[Capability] = frozenset(_CAPABILITIES)
    ca: tuple[str, ...] = ()
    client: tuple[str, str] | None = None
    skip_verify: bool = False
    headers: tuple[tuple[str, str], ...] = ()
    dial_timeout_s: float = DEFAULT_DIAL_TIMEOUT_S
    proxy: str = ""

    @property
    def address(self) -> str:
        """The host of the URL, with its port if it has one."""
        return urlsplit(self.url).netloc

    @property
    def is_secure(self) -> bool:
        """Whether TLS is used."""
        return self.url.startswith("https:")

    @property
    def namespace(self) -> str:
        """What a mirror is told as `ns`: the registry it stands in for; "" for that itself."""
        return "" if same_registry(self.address, self.registry) else self.registry


class _HostTable(msgspec.Struct, frozen=True, kw_only=True):
    capabilities: tuple[str, ...] = ()
    ca: str | tuple[str, ...] = ()
    client: str | tuple[str | tuple[str, str], ...] = ()
    skip_verify: bool | None = None
    header: dict[str, str | tuple[str, ...]] = {}
    override_path: bool = False
    dial_timeout: str = ""
    proxy: str = ""


class _File(_HostTable, frozen=True, kw_only=True):
    server: str = ""
    host: dict[str, dict[str, Any]] = {}


def same_registry(one: str, other: str) -> bool:
    """Tell whether two addresses mean one registry: Docker Hub has several names."""
    return _family(one) == _family(other)


def _family(address: str) -> str:
    return DEFAULT_HOST if address in _HUB_NAMES else address.lower()


def is_loopback(name: str | None) -> bool:
    """Tell whether a host's name, without a port, is this machine's own."""
    try:
        return name == "localhost" or ipaddress.ip_address(name or "").is_loopback
    except ValueError:
        return False


def folder_names(registry: str) -> tuple[str, ...]:
    """Return the names that a registry's folder may have; the first one that exists counts."""
    name, colon, port = registry.rpartition(":")
    if not colon or registry.endswith("]"):
        return registry, "_default"
    return f"{name}_{port}_", registry, "_default"


def parse_hosts(table: dict[str, Any], file: Path, registry: str) -> tuple[RegistryHost, ...]:
    """Return what a hosts.toml says of a registry: the hosts to ask, in their order.

    Raises: InvalidSettings, naming the file and the key.
    """
    check_keys(file, table, _File)
    top = convert_table(file, table, _File)
    hosts: list[RegistryHost] = []
    for url, inner in top.host.items():
        place = _Place(file, f'host."{url}".')
        check_keys(file, inner, _HostTable, place.prefix)
        host = convert_table(file, inner, _HostTable, place.prefix)
        hosts += place.hosts(host, place.parse_url(url, ""), registry, is_server=False)
    place = _Place(file, "")
    server = place.parse_url(top.server, "server") if top.server else None
    hosts += place.hosts(top, server, registry, is_server=True)
    return tuple(hosts)


def certificate_hosts(
    registry: str, ca: tuple[str, ...], clients: tuple[tuple[str, str], ...]
) -> tuple[RegistryHost, ...]:
    """Return the registry itself with what a folder of certificates says, in Docker's layout."""
    url = f"{_default_scheme(registry, has_tls=bool(ca or clients))}://{_default_address(registry)}"
    plain = RegistryHost(url=f"{url}/v2", registry=registry, ca=ca)
    return tuple(_each_client(plain, clients))


def _default_address(registry: str) -> str:
    return _HUB if registry == DEFAULT_HOST else registry


def _default_scheme(registry: str, *, has_tls: bool) -> str:
    """Return how a registry is asked that no file describes: TLS, but on this machine.

    There a port of its own means plain HTTP, unless certificates are there to be used.
    """
    parts = urlsplit(f"//{registry}")
    if has_tls or not is_loopback(parts.hostname) or parts.port in (None, 443):
        return "https"
    return "http"


class _Place:
    """Where in a file we are: turns what stands there into hosts, and errors into messages."""

    def __init__(self, file: Path, prefix: str) -> None:
        self._file = file
        self.prefix = prefix

    def hosts(
        self, table: _HostTable, url: SplitResult | None, registry: str, *, is_server: bool
    ) -> Iterator[RegistryHost]:
        """Yield one host, or several where it may be asked in several ways."""
        clients = tuple(self._clients(table.client))
        authorities = [table.ca] if isinstance(table.ca, str) else table.ca
        ca = tuple(self._absolute("ca", path) for path in authorities)
        has_tls = bool(ca or clients or table.skip_verify is not None)
        if url is None:
            scheme = _default_scheme(registry, has_tls=has_tls)
            url = urlsplit(f"{scheme}://{_default_address(registry)}")
        path = url.path.rstrip("/")
        if not table.override_path and not path.endswith("/v2"):
            path += "/v2"
        host = RegistryHost(
            url=f"{url.scheme}://{url.netloc}{path}",
            registry=registry,
            is_server=is_server,
            capabilities=self._capabilities(table.capabilities or _CAPABILITIES),
            ca=ca,
            skip_verify=bool(table.skip_verify),
            headers=tuple(self._headers(table.header)),
            dial_timeout_s=self._seconds(table.dial_timeout),
            proxy=self._proxy(table.proxy),
        )
        if url.scheme == "http" and has_tls and url.port != 80:
            # What TLS is to be like says that there may be some: containerd tries it first, too.
            secure = msgspec.structs.replace(host, url=host.url.replace("http:", "https:", 1))
            yield from _each_client(secure, clients)
            yield msgspec.structs.replace(host, ca=(), skip_verify=False)
        else:
            yield from _each_client(host, clients if url.scheme == "https" else ())

    def parse_url(self, text: str, key: str) -> SplitResult:
        """Return a host's URL; without a scheme it is https."""
        try:
            url = urlsplit(text if "://" in text else f"https://{text}")
            _ = url.port  # raises, if it is no number
        except ValueError as error:
            raise self._error(key, f"{text!r} is not a URL: {error}") from error
        if url.scheme not in ("http", "https") or not url.hostname:
            raise self._error(key, f"{text!r} is not the http or https URL of a host")
        if url.query or url.fragment or "@" in url.netloc:
            raise self._error(key, f"{text!r} has more than a host, a port and a path")
        return url

    def _capabilities(self, words: Iterable[str]) -> frozenset[Capability]:
        found = {word.lower() for word in words}
        if unknown := found.difference(_CAPABILITIES):
            raise self._error("capabilities", f"{min(unknown)!r} is none of pull, resolve, push")
        return frozenset(known for known in _CAPABILITIES if known in found)

    def _clients(
        self, client: str | tuple[str | tuple[str, str], ...]
    ) -> Iterator[tuple[str, str]]:
        for one in [client] if isinstance(client, str) else client:
            certificate, key = (one, "") if isinstance(one, str) else one
            yield self._absolute("client", certificate), key and self._absolute("client", key)

    def _headers(self, header: dict[str, str | tuple[str, ...]]) -> Iterator[tuple[str, str]]:
        for name, values in header.items():
            for value in [values] if isinstance(values, str) else values:
                if not _HEADER_NAME.fullmatch(name) or not value.isprintable():
                    raise self._error(f"header.{name}", "is not a header that HTTP can carry")
                yield name, value

    def _seconds(self, text: str) -> float:
        parts = _DURATION.findall(text)
        if "".join(number + unit for number, unit in parts) != text:
            raise self._error("dial_timeout", f'{text!r} is not a time like "5s", "500ms", "1m30s"')
        seconds = sum(float(number) * _UNIT_S[unit] for number, unit in parts)
        return seconds or DEFAULT_DIAL_TIMEOUT_S

    def _proxy(self, text: str) -> str:
        if not text:
            return ""
        try:
            parts = urlsplit(text)
            usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            # Not quoted: it may hold a password.
            raise self._error("proxy", "is not an http or https URL; socks is not supported")
        return text

    def _absolute(self, key: str, path: str) -> str:
        if not path or "\0" in path:
            raise self._error(key, f"{path!r} is not the name of a file")
        return os.path.join(self._file.parent, path)

    def _error(self, key: str, reason: str) -> InvalidSettings:
        where = f"{self.prefix}{key}".rstrip(".")
        return InvalidSettings(f"{self._file}: {where}: {reason}")


def _each_client(
    host: RegistryHost, clients: tuple[tuple[str, str], ...]
) -> Iterator[RegistryHost]:
    """Yield the host once for each client certificate: which one it takes is found by trying."""
    for client in clients or (None,):
        yield msgspec.structs.replace(host, client=client)
