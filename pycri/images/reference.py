# SPDX-License-Identifier: Apache-2.0
"""Image references: the names of images as users write them, and in full. Pure.

    busybox                        docker.io/library/busybox:latest
    node.local:5000/team/web:1.2   itself
    team/web@sha256:...            docker.io/team/web@sha256:...
    team/web:1.2@sha256:...        docker.io/team/web@sha256:...   the digest says all

The first part of a path is a registry's host if it holds a dot or a colon, or is "localhost"; else
the registry is docker.io, where a path of one part is below "library/". A node may have other
defaults for names without a host, and names of its own.
Source: distribution/reference (the grammar that the kubelet applies too).
"""

import ipaddress
import re
from collections.abc import Mapping
from typing import Final

import msgspec

from pycri.errors import InvalidRequest
from pycri.model.ids import Digest, is_digest

DEFAULT_HOST: Final = "docker.io"
DEFAULT_TAG: Final = "latest"
_LIBRARY: Final = f"{DEFAULT_HOST}/library"

_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_HOST = re.compile(
    rf"(?:{_LABEL}(?:\.{_LABEL})*|\[(?P<ip6>[0-9a-fA-F:]+)\])(?::(?P<port>[0-9]{{1,9}}))?"
)
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_LONGEST_NAME = 255
_HIGHEST_PORT = 65535


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """A full reference: either `tag` or `digest` is set.

    host: the registry, with its port if one was named. path: the repository there.
    """

    host: str
    path: str
    tag: str = ""
    digest: Digest | None = None

    @property
    def repository(self) -> str:
        """`host/path`."""
        return f"{self.host}/{self.path}"

    @property
    def target(self) -> str:
        """What a registry is asked for below `/manifests/`."""
        return self.digest or self.tag

    def with_digest(self, digest: Digest) -> str:
        """Return `host/path@digest`."""
        return f"{self.repository}@{digest}"

    def __str__(self) -> str:
        return self.with_digest(self.digest) if self.digest else f"{self.repository}:{self.tag}"


class NameDefaults(msgspec.Struct, frozen=True, kw_only=True):
    """What names without a registry's host stand for.

    prefix: `host/path`, before a name of one part; before one of several parts its host alone.
    aliases: short names, without tag, to repositories.
    """

    prefix: str = _LIBRARY
    aliases: Mapping[str, str] = {}


FIELD_DEFAULTS: Final = NameDefaults()


def parse_reference(text: str, defaults: NameDefaults = FIELD_DEFAULTS) -> Reference:
    """Return the full reference that a user means by `text`.

    Raises: InvalidRequest (field "image") if it cannot name an image in a registry.
    """
    name, at, digest = text.partition("@")
    if at and not is_digest(digest):
        raise _invalid(text, f"{digest!r} is not a sha256 digest")
    name, tag = _split_tag(name)
    if tag is not None and not _TAG.fullmatch(tag):
        raise _invalid(text, f"{tag!r} is not a tag")
    host, path = _split_host(defaults.aliases.get(name, name), defaults.prefix)
    if not _is_address(host):
        raise _invalid(text, f"{host!r} is not a registry host")
    if not _PATH.fullmatch(path):
        raise _invalid(text, f"{path!r} is not a repository (lower-case letters, digits, ._-/)")
    if len(host) + 1 + len(path) > _LONGEST_NAME:
        raise _invalid(text, f"the name is longer than {_LONGEST_NAME} characters")
    if at:
        return Reference(host=host, path=path, digest=Digest(digest))
    return Reference(host=host, path=path, tag=tag or DEFAULT_TAG)


def _split_tag(name: str) -> tuple[str, str | None]:
    head, colon, last = name.rpartition(":")
    # A colon before a slash belongs to the host's port.
    return (head, last) if colon and "/" not in last else (name, None)


def _split_host(name: str, prefix: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    if not (slash and _is_host(first)):
        base = prefix if not slash else prefix.partition("/")[0]
        first, _, rest = f"{base}/{name}".partition("/")
    host = _canonical_host(first)
    return host, _in_library(host, rest)


def _is_host(first: str) -> bool:
    return first == "localhost" or "." in first or ":" in first or first != first.lower()


def _is_address(host: str) -> bool:
    found = _HOST.fullmatch(host)
    if not found or int(found["port"] or 0) > _HIGHEST_PORT:
        return False
    try:
        return not found["ip6"] or bool(ipaddress.IPv6Address(found["ip6"]))
    except ValueError:
        return False


def _canonical_host(host: str) -> str:
    return DEFAULT_HOST if host == "index.docker.io" else host


def _in_library(host: str, path: str) -> str:
    return f"library/{path}" if host == DEFAULT_HOST and "/" not in path else path


def _invalid(text: str, reason: str) -> InvalidRequest:
    return InvalidRequest("image", f"{text!r} is not an image reference: {reason}")
