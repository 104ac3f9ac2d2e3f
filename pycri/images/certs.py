# SPDX-License-Identifier: Apache-2.0
"""The folder of registries' descriptions on disk, and the TLS that they ask for. Blocks.

    certs_dir/HOST_PORT_/         for "HOST:PORT"; or HOST:PORT/, or HOST/
    certs_dir/_default/           for every registry that has no folder
        hosts.toml                see hosts.py
        *.crt  *.cert  *.key      without a hosts.toml: authorities, client certificates, their keys

Read anew at each pull, so that no restart is needed; a context for TLS is made again only when a
file behind it has changed.
"""

import os
import ssl
from pathlib import Path
from typing import Final

import msgspec

from pycri.config import read_table
from pycri.errors import InvalidSettings
from pycri.images.hosts import RegistryHost, certificate_hosts, folder_names, parse_hosts

_MOST_CONTEXTS: Final = 64

_Stamp = tuple[str, int, int, int]


class Hosts(msgspec.Struct, frozen=True, kw_only=True):
    """The hosts to ask, in their order. source: the file or folder that says so; "" if none."""

    hosts: tuple[RegistryHost, ...]
    source: str = ""


def read_hosts(certs_dir: Path, registry: str) -> Hosts:
    """Return where a registry's images are asked for. Raises: InvalidSettings."""
    for name in folder_names(registry):
        folder = certs_dir / name
        if folder.is_dir():
            return _read_folder(folder, registry)
    return Hosts(hosts=certificate_hosts(registry, (), ()))


def _read_folder(folder: Path, registry: str) -> Hosts:
    file = folder / "hosts.toml"
    if file.exists() and (table := read_table(file)):
        return Hosts(hosts=parse_hosts(table, file, registry), source=str(file))
    names = sorted(os.listdir(folder))
    ca = tuple(str(folder / name) for name in names if name.endswith(".crt"))
    clients = tuple(_find_key(folder, name) for name in names if name.endswith(".cert"))
    return Hosts(hosts=certificate_hosts(registry, ca, clients), source=str(folder))


def _find_key(folder: Path, certificate: str) -> tuple[str, str]:
    key = folder / (certificate.removesuffix(".cert") + ".key")
    return str(folder / certificate), str(key) if key.exists() else ""


class TlsContexts:
    """Contexts for TLS by what they were made from: making one reads all authorities (20 ms)."""

    def __init__(self) -> None:
        self._contexts: dict[tuple[object, ...], ssl.SSLContext] = {}

    def context(self, host: RegistryHost) -> ssl.SSLContext:
        """Return the context for a host. Raises: InvalidSettings, naming the file."""
        system = ssl.get_default_verify_paths()
        files = [*host.ca, *filter(None, host.client or ())]
        # The system's authorities may change under a daemon that runs for months.
        stamps = (*map(_stamp, files), *_stamp_of_system(system))
        key = (host.ca, host.client, host.skip_verify, stamps)
        context = self._contexts.get(key)
        if context is None:
            if len(self._contexts) >= _MOST_CONTEXTS:
                self._contexts.clear()
            context = self._contexts[key] = _make_context(host)
        return context


def _stamp(path: str) -> _Stamp:
    try:
        status = os.stat(path)
    except OSError as error:
        raise InvalidSettings(f"{path}: {error.strerror}") from error
    return path, status.st_ino, status.st_size, status.st_mtime_ns


def _stamp_of_system(paths: ssl.DefaultVerifyPaths) -> list[_Stamp]:
    return [_stamp(path) for path in (paths.cafile, paths.capath) if path and os.path.exists(path)]


def _make_context(host: RegistryHost) -> ssl.SSLContext:
    context = ssl.create_default_context()
    for path in host.ca:
        try:
            context.load_verify_locations(cafile=path)
        except OSError as error:  # ssl.SSLError is one, too
            raise InvalidSettings(f"{path}: holds no certificates: {error.strerror}") from error
    if host.client:
        certificate, key = host.client
        try:
            context.load_cert_chain(certificate, key or None, password=_no_password)
        except (OSError, ValueError) as error:
            what = f"{certificate} and {key}" if key else certificate
            raise InvalidSettings(f"{what}: not a certificate and its key: {error}") from error
    if host.skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _no_password() -> str:
    # Without this OpenSSL would ask the terminal.
    raise ValueError("the key is encrypted")
