# SPDX-License-Identifier: Apache-2.0
"""Whose rights a registry's host is asked with: a pod's pull secret, or what the node has.

A pull secret is for the registry that an image's name names, or that its `server_address` names:
hosts.toml's server gets it, mirrors do not. Where it does not fit, or there is none, the node's
file counts, in the format of Docker's config.json, by the name of the host that is asked:

    { "auths": { "quay.io":        {"auth": "<base64 of user:password>"},
                 "quay.io/team":   {"username": "...", "password": "..."},
                 "https://index.docker.io/v1/": {"identitytoken": "..."} },
      "credHelpers": { "aws.example": "ecr-login" },
      "credsStore": "pass" }

The longest of `auths` that an image's name begins with counts. A helper for the host goes before
`auths`, the store after it. Helpers are programs `docker-credential-NAME`: they are told the host
on stdin and answer JSON. The file is read anew at each pull; secrets are never logged or quoted.
Source: Docker, config.json and the protocol of docker-credential-helpers.
"""

import asyncio
import contextlib
import os
import re
import signal
from pathlib import Path
from typing import Final

import msgspec

from pycri.errors import Denied, InvalidSettings
from pycri.images.authorization import split_basic
from pycri.images.hosts import RegistryHost, same_registry
from pycri.images.reference import DEFAULT_HOST
from pycri.model.image import RegistryAuth

_HELPER_TIMEOUT_S: Final = 30.0
_LONGEST_ANSWER: Final = 1024 * 1024
_HELPER_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HUB_KEY: Final = "https://index.docker.io/v1/"
"""What Docker's tools and helpers call Docker Hub."""
_TOKEN_USER: Final = "<token>"  # noqa: S105 - what marks a token, none itself
_NOT_FOUND: Final = "credentials not found"
"""How a helper's complaint begins when it has nothing for a host, which is no failure."""


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """Rights, and where they come from in a person's words ("" where there are none)."""

    auth: RegistryAuth = RegistryAuth()
    source: str = ""

    def __str__(self) -> str:
        """Return whom the registry is told to deal with, and by what, without secrets."""
        kinds = {
            "a registry token": self.auth.registry_token,
            f"user {self.auth.username}": self.auth.username,
            "an identity token": self.auth.identity_token,
        }
        who = next((kind for kind, given in kinds.items() if given), "")
        return f"{who} of {self.source}" if who else "an anonymous user"


class _Entry(msgspec.Struct, frozen=True, kw_only=True):
    auth: str = ""
    username: str = ""
    password: str = ""
    identitytoken: str = ""
    registrytoken: str = ""


class _File(msgspec.Struct, frozen=True, kw_only=True):
    auths: dict[str, _Entry] = {}
    cred_helpers: dict[str, str] = msgspec.field(default_factory=dict, name="credHelpers")
    creds_store: str = msgspec.field(default="", name="credsStore")


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    username: str = msgspec.field(default="", name="Username")
    secret: str = msgspec.field(default="", name="Secret")


async def find_credentials(
    auth: RegistryAuth | None, file: Path, host: RegistryHost, repository: str
) -> Credentials:
    """Return the rights to ask a host for a repository with. Raises: as `node_credentials`."""
    return pull_secret(auth, host) or await node_credentials(file, host, repository)


def pull_secret(auth: RegistryAuth | None, host: RegistryHost) -> Credentials | None:
    """Return the rights that came with the pull, if they are for this host."""
    if auth is None or auth == RegistryAuth(server_address=auth.server_address):
        return None
    named = _strip(auth.server_address).partition("/")[0] or host.registry
    if same_registry(named, host.address) or (
        host.is_server and same_registry(named, host.registry)
    ):
        return Credentials(auth=auth, source="the pull secret")
    return None


async def node_credentials(file: Path, host: RegistryHost, repository: str) -> Credentials:
    """Return the rights that the node's file gives for a repository on a host.

    Raises: InvalidSettings, naming the file and the key; Denied if a helper fails.
    """
    found = await asyncio.to_thread(_read, file)
    names = [host.address, *([host.registry] if host.is_server and host.namespace else [])]
    for name in names:
        if credentials := await _look_up(found, file, name, repository):
            return credentials
    return Credentials()


async def _look_up(found: _File, file: Path, name: str, repository: str) -> Credentials | None:
    for key, helper in found.cred_helpers.items():
        if same_registry(_strip(key), name):
            return await _ask_helper(helper, name, f"{file}: credHelpers")
    entries = {key: entry for key, entry in found.auths.items() if entry != _Entry()}
    fitting = [key for key in entries if _fits(_strip(key), f"{name}/{repository}")]
    if fitting:
        key = max(fitting, key=lambda key: _strip(key).count("/"))
        where = f"{file}: auths.{key}"
        return Credentials(auth=_decode(entries[key], where), source=where)
    if found.creds_store:
        return await _ask_helper(found.creds_store, name, f"{file}: credsStore")
    return None


def _read(file: Path) -> _File:
    try:
        return msgspec.json.decode(file.read_bytes(), type=_File)
    except FileNotFoundError:
        return _File()
    except OSError as error:
        raise InvalidSettings(f"{file}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise InvalidSettings(f"{file}: {error}") from error


def _fits(key: str, name: str) -> bool:
    host, _, path = key.partition("/")
    name_host, _, name_path = name.partition("/")
    return same_registry(host, name_host) and f"{name_path}/".startswith(f"{path}/" if path else "")


def _strip(address: str) -> str:
    """Return `host/path` of an address, which may be a URL with the version of an API."""
    text = address.partition("://")[2] or address
    return re.sub(r"^([^/]*)/(v[12]/?)?$", r"\1", text)


def _decode(entry: _Entry, where: str) -> RegistryAuth:
    username, password = entry.username, entry.password
    if entry.auth and not username:
        try:
            username, password = split_basic(entry.auth)
        except ValueError as error:
            raise InvalidSettings(f"{where}.auth: {error}") from None
    if username == _TOKEN_USER:
        return RegistryAuth(identity_token=password)
    return RegistryAuth(
        username=username,
        password=password,
        identity_token=entry.identitytoken,
        registry_token=entry.registrytoken,
    )


async def _ask_helper(name: str, registry: str, where: str) -> Credentials | None:
    if not _HELPER_NAME.fullmatch(name):
        raise InvalidSettings(f"{where}: {name!r} is not the name of a helper")
    program = f"docker-credential-{name}"
    asked = _HUB_KEY if same_registry(registry, DEFAULT_HOST) else registry
    status, output = await _run(program, asked.encode())
    if status != 0:
        reason = output.decode(errors="replace").strip()
        if reason.startswith(_NOT_FOUND):
            return None
        raise Denied(f"{program} ({where}) has no credentials for {asked}: {reason[:200]!r}")
    try:
        answer = msgspec.json.decode(output, type=_Answer)
    except msgspec.DecodeError:
        raise Denied(f"{program} ({where}) does not answer with credentials for {asked}") from None
    if answer.username == _TOKEN_USER:
        auth = RegistryAuth(identity_token=answer.secret)
    else:
        auth = RegistryAuth(username=answer.username, password=answer.secret)
    return Credentials(auth=auth, source=f"{program} ({where})")


async def _run(program: str, question: bytes) -> tuple[int, bytes]:
    """Run a helper, in a session of its own so that all it starts can be ended with it."""
    pipe, null = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    try:
        process = await asyncio.create_subprocess_exec(
            program, "get", stdin=pipe, stdout=pipe, stderr=null, start_new_session=True
        )
    except OSError as error:
        raise Denied(f"{program} cannot be started: {error.strerror}") from error
    assert process.stdin and process.stdout
    try:
        async with asyncio.timeout(_HELPER_TIMEOUT_S):
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                process.stdin.write(question)
                await process.stdin.drain()
            process.stdin.close()
            output = b""
            while len(output) < _LONGEST_ANSWER and (piece := await process.stdout.read(65536)):
                output += piece
            return await process.wait(), output
    except BaseException as error:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        if isinstance(error, TimeoutError):
            limit = f"{_HELPER_TIMEOUT_S:.0f} s"
            raise Denied(f"{program} did not answer within {limit}") from None
        raise
