# SPDX-License-Identifier: Apache-2.0
"""What registries ask for and how it is answered: challenges parsed, requests made. Pure.

    401 WWW-Authenticate: Basic realm="..."                          ──▶ user and password
    401 WWW-Authenticate: Bearer realm="URL",service="S",scope="..." ──▶ a token, fetched from URL:
        GET URL?service=S&scope=...   with user and password, or as nobody
        POST URL                      grant_type=refresh_token, with an identity token

Source: RFC 9110 §11 (challenges), RFC 7617 (Basic), distribution's token and OAuth2 authentication.
"""

import base64
import re
from typing import Final
from urllib.parse import urlencode, urlsplit

import msgspec

from pycri.errors import Denied, RegistryUnavailable
from pycri.images.hosts import RegistryHost, is_loopback
from pycri.model.image import RegistryAuth

_SCHEME = re.compile(r"(?:^|,)\s*(Basic|Bearer)(?=\s|,|$)", re.IGNORECASE)
_PARAMETER = re.compile(r'([A-Za-z_]+)\s*=\s*(?:"((?:\\.|[^"\\])*)"|([^\s,"]+))')
_CLIENT_ID: Final = "pycri"


class Challenge(msgspec.Struct, frozen=True, kw_only=True):
    """What a registry asks for with status 401. scheme: "basic" or "bearer"."""

    scheme: str
    realm: str = ""
    service: str = ""
    scope: str = ""


class TokenRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What to ask a token service. form: for a POST; None for a GET."""

    url: str
    authorization: str = ""
    form: dict[str, str] | None = None


class _Token(msgspec.Struct, frozen=True):
    token: str = ""
    access_token: str = ""


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


def basic_header(auth: RegistryAuth) -> str:
    """Return the Authorization header of a user and password."""
    pair = f"{auth.username}:{auth.password}".encode()
    return "Basic " + base64.b64encode(pair).decode()


def split_basic(text: str) -> tuple[str, str]:
    """Return user and password of base64("user:password"). Raises: ValueError, without quoting."""
    try:
        plain = base64.b64decode(text + "=" * (-len(text) % 4), validate=True).decode()
    except ValueError:  # binascii.Error and UnicodeDecodeError are
        plain = ""
    username, colon, password = plain.rstrip("\0").partition(":")
    if not colon:
        raise ValueError("is not base64 of user:password")
    return username, password


def plan_token_request(
    challenge: Challenge, auth: RegistryAuth, host: RegistryHost, repository: str
) -> TokenRequest:
    """Return how the token is asked for that a challenge of `host` names.

    Raises: Denied if the token service would be asked in the open; RegistryUnavailable.
    """
    _check_realm(challenge.realm, host)
    service = {"service": challenge.service} if challenge.service else {}
    scope = challenge.scope or f"repository:{repository}:pull"
    if auth.identity_token:
        form = {
            "grant_type": "refresh_token",
            "refresh_token": auth.identity_token,
            "client_id": _CLIENT_ID,
            "scope": scope,
        }
        return TokenRequest(url=challenge.realm, form=service | form)
    query = [*service.items(), *(("scope", one) for one in scope.split())]
    return TokenRequest(
        url=challenge.realm + ("&" if "?" in challenge.realm else "?") + urlencode(query),
        authorization=basic_header(auth) if auth.username else "",
    )


def _check_realm(realm: str, host: RegistryHost) -> None:
    """Refuse a token service in the open, unless the registry itself is asked in the open there."""
    try:
        url = urlsplit(realm)
        name = url.hostname
    except ValueError:
        name = None
    if not name or url.scheme not in ("http", "https"):
        raise RegistryUnavailable(f"{host.url} names no token service but {realm[:200]!r}")
    asked = urlsplit(host.url).hostname
    # A registry elsewhere has no business with what listens on this machine.
    local = is_loopback(asked) and is_loopback(name)
    if url.scheme != "https" and not local and (host.is_secure or name != asked):
        raise Denied(f"{host.url} names an unsafe token service: {realm[:200]!r}")


def parse_token(body: bytes) -> str:
    """Return the token in a token service's answer. Raises: ValueError if there is none."""
    answer = msgspec.json.decode(body, type=_Token)
    token = answer.token or answer.access_token
    if not token or not token.isascii() or not token.isprintable():
        raise ValueError("the answer holds no token")
    return token
