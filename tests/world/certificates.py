# SPDX-License-Identifier: Apache-2.0
"""Authorities and certificates of a test's own, made by openssl(1)."""

import subprocess
from pathlib import Path


class Authority:
    """A certificate authority. certificate, key: its files; others are made beside them."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.certificate = folder / f"{name}.pem"
        self.key = folder / f"{name}.key"
        self._make(name, self.certificate, self.key, "CA:TRUE", signed_by=[])

    def issue(self, name: str, kind: str = "ec") -> tuple[Path, Path]:
        """Return certificate and key of a server on loopback, or of a client. kind: ec or rsa."""
        certificate, key = self._folder / f"{name}.cert", self._folder / f"{name}.key"
        signed_by = ["-CA", str(self.certificate), "-CAkey", str(self.key)]
        self._make(name, certificate, key, "CA:FALSE", signed_by=signed_by, kind=kind)
        return certificate, key

    def encrypt(self, key: Path) -> Path:
        """Return a copy of a key that needs a password."""
        locked = key.with_suffix(".locked")
        _openssl("pkey", "-in", str(key), "-aes128", "-passout", "pass:x", "-out", str(locked))
        return locked

    def _make(
        self,
        name: str,
        certificate: Path,
        key: Path,
        basic: str,
        *,
        signed_by: list[str],
        kind: str = "ec",
    ) -> None:
        option = {"ec": "ec_paramgen_curve:prime256v1", "rsa": "rsa_keygen_bits:2048"}[kind]
        made = ["-newkey", kind, "-pkeyopt", option, "-nodes"]
        names = "subjectAltName=IP:127.0.0.1,DNS:localhost"
        extensions = ["-addext", f"basicConstraints=critical,{basic}", "-addext", names]
        files = ["-keyout", str(key), "-out", str(certificate)]
        subject = ["-subj", f"/CN={name}", "-days", "2"]
        _openssl("req", "-x509", *made, *subject, *extensions, *signed_by, *files)


def sign(key: Path, text: bytes) -> bytes:
    """Return the signature of a text's SHA-256, by an RSA key as PKCS#1 has it."""
    command = ["openssl", "dgst", "-sha256", "-sign", str(key)]
    return subprocess.run(command, input=text, check=True, capture_output=True).stdout


def _openssl(*words: str) -> None:
    done = subprocess.run(["openssl", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
