# SPDX-License-Identifier: Apache-2.0
"""Container images in memory: layers, configs, manifests, indexes; and the OCI layout folder.

    Image.root ─▶ manifest ─▶ config          index ─▶ manifest (platform) ─▶ ...
                     └──────▶ layers

Content is the same for the same input: times are 0, names are in the order given.
Source: OCI image-spec 1.1; Docker image manifest version 2, schema 2.
"""

import gzip
import hashlib
import io
import json
import os
import stat
import tarfile
from pathlib import Path
from typing import Any

import msgspec
import zstandard

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
"""uname -m to the architectures of an image's platform."""


def host_architecture() -> str:
    """Return this host's architecture in the words of the image-spec."""
    return ARCHITECTURES[os.uname().machine]


def digest_of(content: bytes) -> str:
    """Return the digest of `content`."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


class Layer:
    """A tar archive under construction. Paths are relative: "etc/passwd"."""

    def __init__(self) -> None:
        self._buffer = io.BytesIO()
        self._tar = tarfile.TarFile(fileobj=self._buffer, mode="w", format=tarfile.PAX_FORMAT)
        self._done: set[str] = set()

    def _add(self, member: tarfile.TarInfo, content: bytes = b"") -> None:
        member.size = len(content)
        self._tar.addfile(member, io.BytesIO(content))

    def directory(self, path: str, *, mode: int = 0o755, uid: int = 0, gid: int = 0) -> "Layer":
        member = tarfile.TarInfo(path)
        member.type, member.mode, member.uid, member.gid = tarfile.DIRTYPE, mode, uid, gid
        self._add(member)
        return self

    def file(
        self,
        path: str,
        content: bytes | str = b"",
        *,
        mode: int = 0o644,
        uid: int = 0,
        gid: int = 0,
        xattrs: dict[str, str] | None = None,
    ) -> "Layer":
        member = tarfile.TarInfo(path)
        member.mode, member.uid, member.gid = mode, uid, gid
        member.pax_headers = {
            f"SCHILY.xattr.{name}": value for name, value in (xattrs or {}).items()
        }
        self._add(member, content.encode() if isinstance(content, str) else content)
        return self

    def symlink(self, path: str, target: str) -> "Layer":
        member = tarfile.TarInfo(path)
        member.type, member.linkname, member.mode = tarfile.SYMTYPE, target, 0o777
        self._add(member)
        return self

    def hardlink(self, path: str, target: str) -> "Layer":
        """Add a second name for `target`, a file of this layer or one below."""
        member = tarfile.TarInfo(path)
        member.type, member.linkname = tarfile.LNKTYPE, target
        self._add(member)
        return self

    def fifo(self, path: str, *, mode: int = 0o644) -> "Layer":
        member = tarfile.TarInfo(path)
        member.type, member.mode = tarfile.FIFOTYPE, mode
        self._add(member)
        return self

    def whiteout(self, path: str) -> "Layer":
        """Hide what lower layers have at `path`."""
        parent, name = os.path.split(path)
        return self.file(os.path.join(parent, f".wh.{name}"))

    def opaque(self, path: str) -> "Layer":
        """Hide what lower layers have inside the directory `path`."""
        return self.file(f"{path}/.wh..wh..opq")

    def host_file(self, path: str, source: Path) -> "Layer":
        """Add a copy of a host file, following links, and its parents."""
        self.parents(path)
        return self.file(path, source.read_bytes(), mode=stat.S_IMODE(source.stat().st_mode))

    def parents(self, path: str) -> "Layer":
        """Add the directories above `path` that this layer lacks."""
        for parent in reversed(Path(path).parents[:-1]):
            if str(parent) not in self._done:
                self._done.add(str(parent))
                self.directory(str(parent))
        return self

    def tar(self) -> bytes:
        """Return the finished archive."""
        self._tar.close()
        return self._buffer.getvalue()


def compress(content: bytes, compression: str) -> bytes:
    """Compress a layer: "gzip", "zstd" or "" for none."""
    match compression:
        case "gzip":
            return gzip.compress(content, compresslevel=5, mtime=0)
        case "zstd":
            return zstandard.compress(content)
        case "":
            return content
    raise ValueError(compression)


class Descriptor(msgspec.Struct, frozen=True, kw_only=True):
    """A typed pointer to content."""

    media_type: str
    digest: str
    size: int
    platform: dict[str, str] | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the descriptor in JSON's terms."""
        plain = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        return plain | ({"platform": self.platform} if self.platform else {})


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """Content that belongs together.

    blobs: by digest. manifests: those of the blobs that a registry takes as manifests.
    layers: digests of the layers as compressed, lowest first. config: the config's digest, which
    is the image's id; "" for an index, as the platform chosen decides.
    """

    root: Descriptor
    blobs: dict[str, bytes]
    manifests: dict[str, Descriptor]
    layers: tuple[str, ...] = ()
    config: str = ""


def build_image(
    layers: list[bytes],
    settings: dict[str, Any],
    *,
    compression: str = "gzip",
    docker: bool = False,
    architecture: str = "",
    annotations: dict[str, str] | None = None,
) -> Image:
    """Build an image for one platform.

    layers: tar archives, lowest first. settings: the config's "config": Cmd, Env, User ...
    docker: Docker's media types instead of OCI's (gzip only). architecture: "" for the host's.
    annotations: of the manifest.
    """
    blobs: dict[str, bytes] = {}

    def keep(content: bytes, media_type: str) -> Descriptor:
        digest = digest_of(content)
        blobs[digest] = content
        return Descriptor(media_type=media_type, digest=digest, size=len(content))

    layer_type = DOCKER_LAYER if docker else OCI_LAYER + (f"+{compression}" if compression else "")
    kept = [keep(compress(layer, compression), layer_type) for layer in layers]
    platform = {"os": "linux", "architecture": architecture or host_architecture()}
    config = platform | {
        "created": "2024-01-01T00:00:00Z",
        "config": settings,
        "rootfs": {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]},
        "history": [{"created_by": f"layer {number}"} for number in range(len(layers))],
    }
    kept_config = keep(json.dumps(config).encode(), DOCKER_CONFIG if docker else OCI_CONFIG)
    manifest_type = DOCKER_MANIFEST if docker else OCI_MANIFEST
    manifest = {
        "schemaVersion": 2,
        "mediaType": manifest_type,
        "config": kept_config.as_json(),
        "layers": [layer.as_json() for layer in kept],
    } | ({"annotations": annotations} if annotations else {})
    root = msgspec.structs.replace(
        keep(json.dumps(manifest).encode(), manifest_type), platform=platform
    )
    return Image(
        root=root,
        blobs=blobs,
        manifests={root.digest: root},
        layers=tuple(layer.digest for layer in kept),
        config=kept_config.digest,
    )


def build_index(images: list[Image], *, docker: bool = False) -> Image:
    """Build an index (or Docker's manifest list) of images for several platforms."""
    media_type = DOCKER_LIST if docker else OCI_INDEX
    index = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "manifests": [image.root.as_json() for image in images],
    }
    content = json.dumps(index).encode()
    root = Descriptor(media_type=media_type, digest=digest_of(content), size=len(content))
    blobs = {root.digest: content}
    manifests: dict[str, Descriptor] = {}
    for image in images:
        blobs |= image.blobs
        manifests |= image.manifests
    return Image(root=root, blobs=blobs, manifests=manifests | {root.digest: root})


def write_layout(folder: Path, image: Image, reference: str) -> None:
    """Write an OCI layout folder with one image, named `reference`."""
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True)
    for digest, content in image.blobs.items():
        (blobs / digest.removeprefix("sha256:")).write_bytes(content)
    annotations = {"org.opencontainers.image.ref.name": reference}
    index = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [image.root.as_json() | {"annotations": annotations}],
    }
    (folder / "index.json").write_text(json.dumps(index))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
