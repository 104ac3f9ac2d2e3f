# SPDX-License-Identifier: Apache-2.0
"""Images: what is stored on this node, and the part of the OCI image config that matters."""

import hashlib
from collections.abc import Mapping
from functools import lru_cache

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
    layers: diff ids, bottom first. size_bytes: unpacked layers plus config. annotations: of the
    manifest that it came by last.
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
    annotations: dict[str, str] = {}


@lru_cache(1024)
def chain_ids(layers: tuple[Digest, ...]) -> tuple[Digest, ...]:
    """Return for each layer, bottom first, what stands for it on those beneath: its ChainID.

    That of the bottom layer is its diff id. Source: OCI image-spec, config.md, "Layer ChainID".
    """
    chains = list(layers[:1])
    for layer in layers[1:]:
        text = f"{chains[-1]} {layer}".encode()
        chains.append(Digest("sha256:" + hashlib.sha256(text).hexdigest()))
    return tuple(chains)


def layer_keys(layers: tuple[Digest, ...]) -> frozenset[Digest]:
    """Return what a stack of layers, bottom first, may have in the store: each one's diff id, and
    the ChainID of what is settled for it."""
    return frozenset((*layers, *chain_ids(layers)))


class LayerRow(msgspec.Struct, frozen=True, kw_only=True):
    """A folder of files in the store: a layer, or what was settled for it on those beneath.

    digest: diff id of a layer, ChainID of a settlement. size_bytes, inodes: what it occupies.
    fingerprint: of the tree (kernel/trees.py); None for a layer of a version that took none.
    tree: digest of all it holds (images/tree_digest.py) if a layer's archive cannot be made again.
    claims: what a layer says of layers beneath that it cannot do alone (images/claims.py): "" is
    nothing. stack: of a settlement, the layers it is for, bottom first, its own the last.
    """

    digest: Digest
    size_bytes: int
    inodes: int
    fingerprint: int | None = None
    tree: str = ""
    claims: str = ""
    stack: tuple[Digest, ...] = ()


def stack_keys(layers: tuple[Digest, ...], rows: Mapping[Digest, LayerRow]) -> tuple[Digest, ...]:
    """Return what is mounted, topmost first, for layers, given bottom first.

    A settlement lies above its layer; one that holds nothing is left out. Overlay refuses a folder
    twice: of a layer that is there twice the lower one is left out, as all it says, whiteouts too,
    is said again above.
    """
    keys: dict[Digest, None] = {}
    for layer, chain in zip(reversed(layers), reversed(chain_ids(layers)), strict=True):
        row = rows.get(chain)
        if row is not None and row.stack and row.fingerprint:
            keys[chain] = None
        keys.setdefault(layer)
    return tuple(keys)


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
