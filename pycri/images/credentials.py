# SPDX-License-Identifier: Apache-2.0
"""Pull secrets and what registries ask for: challenges parsed, headers made. Pure.

Source: RFC 9110 §11 (challenges), RFC 7617 (Basic), distribution's token authentication.
"""

import base64
import re
from typing import Final
from urllib.parse import urlsplit

import msgspec

from pycri.images.reference import DEFAULT_HOST
from pycri.model.image import RegistryAuth

_DOCKER_HUB: Final = frozenset({DEFAULT_HOST, "index.docker.io", "registry-1.docker.io"})
_SCHEME = re.compile(r"(?:^|,)\s*(Basic|Bearer)(?=\s|,|$)", re.IGNORECASE)
_PARAMETER = re.compile(r'([A-Za-z_]+)\s*=\s*(?:"((?:\\.|[^"\\])*)"|([^\s,"]+))')


class Challenge(msgspec.Struct, frozen=True, kw_only=True):
    """What a registry asks for with status 401. scheme: "basic" or "bearer"."""

    scheme: str
    realm: str = ""
    service: str = ""
    scope: str = ""


def parse_challenges(headers: list[str]) -> tuple[Challenge, ...]:
    """Return the Basic and Bearer challenges of WWW-Authenticate headers, in their order."""
    return tuple(challenge for header in headers for challenge in _parse_header(header))


def _parse_header(header: str) -> list[Challenge]:
    # The comma that separates challenges also separates parameters: cut before each known scheme.
    schemes = list(_SCHEME.finditer(header))
    ends = [*(scheme.start() for scheme in schemes), len(header)][1:]
    return [
        _parse_challenge(scheme[1].lower(), header[scheme.end() : end])
        for scheme, end in zip(schemes, ends, strict=True)
    ]


def _parse_challenge(scheme: str, rest: str) -> Challenge:
    values = {
        name.lower(): re.sub(r"\\(.)", r"\1", quoted) or plain
        for name, quoted, plain in _PARAMETER.findall(rest)
    }
    return Challenge(
        scheme=scheme,
        realm=values.get("realm", ""),
        service=values.get("service", ""),
        scope=values.get("scope", ""),
    )


def choose_credentials(auth: RegistryAuth | None, host: str) -> RegistryAuth:
    """Return what may be sent to the registry `host`: nothing if `auth` was made for another."""
    if auth is None:
        return RegistryAuth()
    if auth.server_address and _family(_server_host(auth.server_address)) != _family(host):
        return RegistryAuth()
    return auth


def _server_host(address: str) -> str:
    return urlsplit(address if "://" in address else f"//{address}").netloc.rpartition("@")[2]


def _family(host: str) -> str:
    return DEFAULT_HOST if host in _DOCKER_HUB else host.lower()


def basic_header(auth: RegistryAuth) -> str:
    """Return the Authorization header of a user and password."""
    pair = f"{auth.username}:{auth.password}".encode()
    return "Basic " + base64.b64encode(pair).decode()
