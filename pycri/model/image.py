# SPDX-License-Identifier: Apache-2.0
"""Images: what is stored on this node, and the part of the OCI image config that matters."""

import msgspec

from pycri.model.ids import Digest, ImageId


class ImageConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The `config` object of an OCI image configuration (OCI image-spec, config.md)."""

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    working_dir: str = ""
    user: str = ""
    volumes: tuple[str, ...] = ()
    stop_signal: str = ""
    labels: dict[str, str] = {}


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """A whole image in the store.

    id: digest of the image config blob; equal to image_ref everywhere (CRI PullImageResponse).
    tags, digests: full references, `host/name:tag` and `host/name@sha256:...`.
    layers: diff ids, bottom first. size_bytes: unpacked layers plus config.
    """

    id: ImageId
    tags: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()
    layers: tuple[Digest, ...] = ()
    size_bytes: int
    config: ImageConfig
    architecture: str
    created: str = ""
    pinned: bool = False


class LayerRow(msgspec.Struct, frozen=True, kw_only=True):
    """One unpacked layer in the store. digest: its diff id; size_bytes, inodes: what it occupies.

    fingerprint: of the tree (kernel/trees.py); None for a layer of a version that took none.
    """

    digest: Digest
    size_bytes: int
    inodes: int
    fingerprint: int | None = None


class RegistryAuth(msgspec.Struct, frozen=True, kw_only=True):
    """CRI AuthConfig, decoded: `auth` (base64 of user:password) is already split."""

    username: str = ""
    password: str = ""
    server_address: str = ""
    identity_token: str = ""
    registry_token: str = ""


class FilesystemUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes and inodes used beneath one mount point, at a time in nanoseconds since the epoch."""

    timestamp_ns: int
    mountpoint: str
    used_bytes: int
    inodes_used: int
