# SPDX-License-Identifier: Apache-2.0
"""Debian's docker-registry on loopback, and a client that pushes images to it.

The client is ours so that what is pushed is exactly what a test built, wrong digests included.
"""

import base64
import http.client
import os
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.world import session
from tests.world.certificates import Authority
from tests.world.oci import Descriptor, Image

USERNAME = "kim"
PASSWORD = "open-sesame"
_HTPASSWD = f"{USERNAME}:$2b$04$rgy5pCYoPLh7TcaZrhV35Okc3WXNjr1Qw1gGYup2MtOV75gav3DDm\n"
"""bcrypt of PASSWORD, the only kind that docker-registry takes."""

_CONFIG = """\
version: 0.1
log:
  level: warn
  accesslog:
    disabled: true
storage:
  filesystem:
    rootdirectory: {folder}/data
  delete:
    enabled: true
http:
  addr: {address}
"""
_TLS = """\
  tls:
    certificate: {certificate}
    key: {key}
"""
_CLIENTS = """\
    clientcas:
      - {authority}
"""
_AUTH = """\
auth:
  htpasswd:
    realm: tests
    path: {folder}/htpasswd
"""
_TOKENS = """\
auth:
  token:
    realm: {realm}
    service: tests
    issuer: tests
    rootcertbundle: {roots}
"""
_START_TIMEOUT_S = 20.0 * session.TIME_FACTOR


class Registry:
    """A running registry. address: "127.0.0.1:PORT"; folder: where it keeps its files."""

    def __init__(
        self,
        address: str,
        folder: Path,
        process: subprocess.Popen[bytes],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.address = address
        self.folder = folder
        self._process = process
        self._tls = tls
        self._authorization: dict[str, str] = {}

    @classmethod
    @contextmanager
    def start(
        cls,
        folder: Path,
        *,
        auth: bool = False,
        port: int = 0,
        authority: Authority | None = None,
        clients: bool = False,
        tokens: tuple[str, Path] | None = None,
    ) -> Iterator["Registry"]:
        """Start a registry with its files in `folder`; stop it at the end.

        auth: ask for USERNAME and PASSWORD. port: 0 for any free one. authority: serve TLS with a
        certificate of it; clients: only to those who have one, too. tokens: ask for a token of the
        service at this URL, signed by a key that these roots vouch for; push needs another start.
        """
        folder.mkdir(parents=True, exist_ok=True)
        address = f"127.0.0.1:{port or _find_free_port()}"
        config = _CONFIG.format(folder=folder, address=address)
        tls = None
        if authority:
            certificate, key = authority.issue("server")
            config += _TLS.format(certificate=certificate, key=key)
            config += _CLIENTS.format(authority=authority.certificate) if clients else ""
            tls = ssl.create_default_context(cafile=str(authority.certificate))
            tls.load_cert_chain(certificate, key)
        if auth:
            (folder / "htpasswd").write_text(_HTPASSWD)
            config += _AUTH.format(folder=folder)
        if tokens:
            config += _TOKENS.format(realm=tokens[0], roots=tokens[1])
        (folder / "config.yml").write_text(config)
        with open(folder / "log", "wb") as log:
            process = subprocess.Popen(
                ["docker-registry", "serve", str(folder / "config.yml")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=session.environment(),
            )
        registry = cls(address, folder, process, tls)
        if auth:
            token = base64.b64encode(f"{USERNAME}:{PASSWORD}".encode()).decode()
            registry._authorization = {"Authorization": f"Basic {token}"}
        try:
            registry._wait_ready()
            yield registry
        finally:
            process.send_signal(signal.SIGCONT)  # a test may have stopped it
            process.kill()
            process.wait()

    @property
    def pid(self) -> int:
        """The registry's process."""
        return self._process.pid

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no registry: {(self.folder / 'log').read_text()}")
            time.sleep(0.02)

    def _answers(self) -> bool:
        try:
            return self._request("GET", "/v2/")[0] in (200, 401)
        except OSError:
            return False

    def _request(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        host, port = self.address.split(":")
        connection = (
            http.client.HTTPSConnection(host, int(port), timeout=30, context=self._tls)
            if self._tls
            else http.client.HTTPConnection(host, int(port), timeout=30)
        )
        try:
            connection.request(method, path, body, self._authorization | (headers or {}))
            response = connection.getresponse()
            return response.status, dict(response.headers), response.read()
        finally:
            connection.close()

    def push(self, image: Image, name: str, tag: str = "latest") -> str:
        """Push an image or an index as `name:tag`.

        name: without the address. Returns: the digest of what the tag names.
        """
        for digest, content in image.blobs.items():
            if digest not in image.manifests:
                self.push_blob(name, digest, content)
        # Children before the index that names them.
        for descriptor in image.manifests.values():
            self.push_manifest(name, descriptor.digest, descriptor, image.blobs[descriptor.digest])
        self.push_manifest(name, tag, image.root, image.blobs[image.root.digest])
        return image.root.digest

    def push_blob(self, name: str, digest: str, content: bytes) -> None:
        """Push one blob, unless it is there."""
        if self._request("HEAD", f"/v2/{name}/blobs/{digest}")[0] == 200:
            return
        status, headers, text = self._request("POST", f"/v2/{name}/blobs/uploads/")
        assert status == 202, text
        location = "/" + headers["Location"].split("/", 3)[3]
        separator = "&" if "?" in location else "?"
        status, _, text = self._request(
            "PUT",
            f"{location}{separator}digest={digest}",
            content,
            {"Content-Type": "application/octet-stream"},
        )
        assert status == 201, text

    def push_manifest(
        self, name: str, reference: str, descriptor: Descriptor, content: bytes
    ) -> None:
        """Push a manifest or index under a tag or its digest."""
        status, _, text = self._request(
            "PUT",
            f"/v2/{name}/manifests/{reference}",
            content,
            {"Content-Type": descriptor.media_type},
        )
        assert status == 201, text

    def reference(self, name: str, tag: str = "latest") -> str:
        """Return what a client pulls: "127.0.0.1:PORT/name:tag"."""
        return f"{self.address}/{name}:{tag}"

    def blob_file(self, digest: str) -> Path:
        """Return the file with a blob's content, for tests that spoil it."""
        algorithm, value = digest.split(":")
        blobs = self.folder / "data/docker/registry/v2/blobs"
        return blobs / algorithm / value[:2] / value / "data"

    def pause(self) -> None:
        """Stop answering, without closing a connection."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Answer again."""
        os.kill(self.pid, signal.SIGCONT)


def _find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
