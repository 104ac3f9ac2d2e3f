# SPDX-License-Identifier: Apache-2.0
"""Manifests, indexes and image configs: typed parsing, and the choice of a platform. Pure.

    index ──one descriptor per platform──▶ manifest ──▶ config (its digest is the image's id)
                                              └──────▶ layers, bottom first

Docker's "manifest list" and "schema 2 manifest" are the same documents under other media types.
Source: OCI image-spec (image-index.md, manifest.md, config.md), Docker image manifest v2 schema 2.
"""

import re
from collections.abc import Collection
from typing import Final, TypeVar

import msgspec

from pycri.errors import CorruptImage, NotFound, Unsupported
from pycri.model.ids import Digest, ImageId, is_digest
from pycri.model.image import ImageConfig

T = TypeVar("T")

INDEX_TYPES: Final = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MANIFEST_TYPES: Final = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_CONFIG_TYPES: Final = (
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
)
_LAYER_TYPES: Final = frozenset(
    {
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
    }
)
_ELSEWHERE: Final = (
    "application/vnd.oci.image.layer.nondistributable.",
    "application/vnd.docker.image.rootfs.foreign.",
)
"""Layers that registries do not have: their licences want them fetched from where they are made."""
_VARIANT: Final = re.compile(r"v([0-9]{1,3})(?:\.([0-9]{1,3}))?")
Rank = tuple[int, int, int]
_LONGEST_ANNOTATIONS: Final = 64 * 1024
MOST_LAYERS: Final = 500
"""What an overlay mount can stack (Linux, OVL_MAX_STACK)."""


class Platform(msgspec.Struct, frozen=True, kw_only=True):
    """What an image is for, in Go's words. variant: "v7" and the like, or ""."""

    os: str = ""
    architecture: str = ""
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


_RUNS: Final = {
    "amd64": Platform(os="linux", architecture="386"),
    "arm64": Platform(os="linux", architecture="arm", variant="v8"),
}
"""Architectures that run programs of another, which is taken where there is nothing else."""

_MACHINES: Final = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", "v8"),
    "armv8l": ("arm", "v8"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "armv5tel": ("arm", "v5"),
    "armv5tejl": ("arm", "v5"),
    "i386": ("386", ""),
    "i586": ("386", ""),
    "i686": ("386", ""),
    "loongarch64": ("loong64", ""),
}
"""Machines of uname(2) whose names Go does not share: architecture and variant."""

_LEVEL_FLAGS: Final = (
    frozenset({"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"}),
    frozenset({"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"}),
    frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}),
)
"""What makes an amd64 v2, v3, v4, in the kernel's words (abm is LZCNT, pni SSE3).

Source: x86-64 psABI, "Micro-Architecture Levels"; GOAMD64.
"""
_LAST_OF_V8: Final = 9


class Descriptor(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A pointer to content: its type, digest and size in bytes."""

    media_type: str = ""
    digest: Digest
    size: int
    platform: Platform | None = None
    annotations: dict[str, str] | None = None


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """One image for one platform; layers bottom first. annotations: none if they are too long."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: dict[str, str] = {}


class Index(msgspec.Struct, frozen=True, kw_only=True):
    """Manifests (or further indexes), usually one a platform."""

    manifests: tuple[Descriptor, ...]


class ConfigFile(msgspec.Struct, frozen=True, kw_only=True):
    """An image configuration, as far as it matters here. diff_ids: bottom first."""

    id: ImageId
    platform: Platform
    created: str
    config: ImageConfig
    diff_ids: tuple[Digest, ...]


class _Document(msgspec.Struct, frozen=True, rename="camel"):
    schema_version: int
    media_type: str = ""
    config: Descriptor | None = None
    layers: tuple[Descriptor, ...] | None = None
    manifests: tuple[Descriptor, ...] | None = None
    annotations: dict[str, str] | None = None
    fs_layers: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _RootFs(msgspec.Struct, frozen=True):
    type: str = "layers"
    diff_ids: tuple[Digest, ...] | None = None


class _RawConfig(msgspec.Struct, frozen=True, rename="pascal"):
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    env: tuple[str, ...] | None = None
    working_dir: str | None = None
    user: str | None = None
    volumes: dict[str, msgspec.Raw] | None = None
    stop_signal: str | None = None
    labels: dict[str, str] | None = None


class _RawConfigFile(msgspec.Struct, frozen=True):
    architecture: str = ""
    os: str = ""
    variant: str = ""
    created: str | None = None
    config: _RawConfig | None = None
    rootfs: _RootFs | None = None


def parse_document(body: bytes, media_type: str) -> Manifest | Index:
    """Return the manifest or index in `body`.

    media_type: what the registry said; it and the document's own must agree with the content, so
        that no two readers can see two images in it (CVE-2021-41190).
    Raises: CorruptImage, Unsupported.
    """
    document = _decode(body, _Document, "manifest")
    if document.schema_version == 1 or document.fs_layers is not msgspec.UNSET:
        raise Unsupported("the image has a Docker schema 1 manifest; push it again as schema 2")
    kind = document.media_type or media_type
    if document.manifests is not None:
        if document.layers is not None or document.config is not None or kind in MANIFEST_TYPES:
            raise CorruptImage("the manifest claims to be an index and an image at once")
        return Index(manifests=_checked(document.manifests))
    if document.config is None or document.layers is None or kind in INDEX_TYPES:
        raise CorruptImage("the manifest lacks its config, its layers or its manifests")
    return _image_manifest(document.config, document.layers, document.annotations or {})


def _image_manifest(
    config: Descriptor, layers: tuple[Descriptor, ...], annotations: dict[str, str]
) -> Manifest:
    if config.media_type not in _CONFIG_TYPES:
        raise Unsupported(f"not a container image: its config is {config.media_type!r}")
    for layer in layers:
        _check_layer_type(layer.media_type)
    if len(layers) > MOST_LAYERS:
        raise Unsupported(f"the image has {len(layers)} layers; overlay can mount {MOST_LAYERS}")
    # They are in every list of images.
    if sum(len(key) + len(value) for key, value in annotations.items()) > _LONGEST_ANNOTATIONS:
        annotations = {}
    return Manifest(config=_checked((config,))[0], layers=_checked(layers), annotations=annotations)


def _check_layer_type(media_type: str) -> None:
    if media_type in _LAYER_TYPES:
        return
    reason = "cannot be unpacked"
    if media_type.startswith(_ELSEWHERE):
        reason = "are not in registries (foreign, not distributable) and are not fetched elsewhere"
    elif "encrypted" in media_type:
        reason = "are encrypted, which is not supported"
    raise Unsupported(f"layers of type {media_type!r} {reason}")


def _checked(descriptors: tuple[Descriptor, ...]) -> tuple[Descriptor, ...]:
    for descriptor in descriptors:
        if not is_digest(descriptor.digest):
            raise CorruptImage(f"the manifest names {descriptor.digest!r}, not a sha256 digest")
        if descriptor.size < 0:
            raise CorruptImage(f"the manifest gives {descriptor.digest} a negative size")
    return descriptors


def parse_config(body: bytes, digest: Digest, layer_count: int) -> ConfigFile:
    """Return the image configuration in `body`; it must name `layer_count` diff ids.

    Raises: CorruptImage.
    """
    raw = _decode(body, _RawConfigFile, "config")
    diff_ids = (raw.rootfs.diff_ids if raw.rootfs else None) or ()
    if len(diff_ids) != layer_count:
        raise CorruptImage(f"the config names {len(diff_ids)} layers, the manifest {layer_count}")
    for diff_id in diff_ids:
        if not is_digest(diff_id):
            raise CorruptImage(f"the config names {diff_id!r}, not a sha256 digest")
    return ConfigFile(
        id=ImageId(digest),
        platform=Platform(os=raw.os, architecture=raw.architecture, variant=raw.variant),
        created=raw.created or "",
        config=_image_config(raw.config or _RawConfig()),
        diff_ids=diff_ids,
    )


def _image_config(raw: _RawConfig) -> ImageConfig:
    # Docker writes null for whatever was not set.
    return ImageConfig(
        entrypoint=raw.entrypoint or (),
        cmd=raw.cmd or (),
        env=raw.env or (),
        working_dir=raw.working_dir or "",
        user=raw.user or "",
        volumes=tuple(raw.volumes or ()),
        stop_signal=raw.stop_signal or "",
        labels=raw.labels or {},
    )


def _decode(body: bytes, kind: type[T], what: str) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CorruptImage(f"the image's {what} cannot be read: {error}") from error


def host_platform(machine: str, cpu_flags: Collection[str] = ()) -> Platform:
    """Return the platform of a node.

    machine: of uname(2). cpu_flags: as in /proc/cpuinfo of x86; they tell the level of an amd64.
    """
    architecture, variant = _MACHINES.get(machine, (machine, ""))
    if architecture == "amd64":
        level = 1
        while level - 1 < len(_LEVEL_FLAGS) and _LEVEL_FLAGS[level - 1].issubset(cpu_flags):
            level += 1
        variant = f"v{level}" if level > 1 else ""
    return Platform(os="linux", architecture=architecture, variant=variant)


def choose_platform(index: Index, host: Platform, name: str) -> Descriptor:
    """Return the entry of `index` that suits `host` best; `name` is for the error.

    The nearest variant wins, then the first in the index; 386 serves on amd64 and arm on arm64
    where there is nothing else, as containerd has it; an entry without a platform comes last.
    Raises: NotFound if none suits.
    """
    ranked = [
        (rank, place)
        for place, entry in enumerate(index.manifests)
        if (rank := rank_platform(entry.platform, host)) is not None
    ]
    if not ranked:
        offered = ", ".join(str(entry.platform) for entry in index.manifests if entry.platform)
        raise NotFound("image", f"{name} for {host} (there is: {offered or 'nothing'})")
    return index.manifests[min(ranked)[1]]


def suits(platform: Platform, host: Platform) -> bool:
    """Tell whether an image whose config names `platform` runs on `host`; "" suits all."""
    if not platform.architecture:
        return True
    return rank_platform(platform, host) is not None


def rank_platform(platform: Platform | None, host: Platform) -> Rank | None:
    """Return a rank that is the less the better the match, None for no match."""
    if platform is None:
        return (9, 0, 0)
    if (platform.os or "linux") != host.os:
        return None
    others = 0
    if platform.architecture != host.architecture:
        runs = _RUNS.get(host.architecture)
        if runs is None or runs.architecture != platform.architecture:
            return None
        others, host = 1, runs
    offered = _level(platform)
    # What was built for an older variant runs on a newer one, never the other way.
    return (others, -offered[0], -offered[1]) if _runs_on(offered, _level(host)) else None


def _runs_on(offered: tuple[int, int], wanted: tuple[int, int]) -> bool:
    if (offered[0], wanted[0]) == (8, 9):
        # ARM v9.N has what v8.(N+5) has, up to v8.9.
        return offered[1] <= min(wanted[1] + 5, _LAST_OF_V8)
    return offered <= wanted


def _level(platform: Platform) -> tuple[int, int]:
    """Return N and M of variant vN.M; without one what the field takes: arm64 v8, arm v7, v1."""
    default = {"arm64": 8, "arm": 7}.get(platform.architecture, 1)
    parsed = _VARIANT.fullmatch(platform.variant)
    return (int(parsed[1]), int(parsed[2] or 0)) if parsed else (default, 0)
