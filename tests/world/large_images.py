# SPDX-License-Identifier: Apache-2.0
"""Images of real size, from Debian's packages by GNU tar and skopeo; kept in the cache of packages.

small-files     one layer of at least 20,000 files, most of them small: sources and headers
one-gigabyte    one layer of at least 1 GB, most of it in large files: libraries
ten-layers      ten layers: interpreters, compilers, editors

Layers are gzip, as skopeo writes it.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.world import debian
from tests.world.oci import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, host_architecture
from tests.world.registry import Registry

LAYERS: dict[str, list[list[str]]] = {
    "small-files": [[r"libboost1\.\d+-dev", r"golang-1\.\d+-src"]],
    "one-gigabyte": [[r"llvm-\d+-dev"] * 4],
    "ten-layers": [
        [r"libpython3\.\d+-stdlib"],
        [r"perl-modules-5\.\d+"],
        [r"libperl5\.\d+"],
        ["git"],
        ["vim-runtime"],
        [r"libllvm\d+"],
        [r"gcc-\d+"],
        [r"cpp-\d+"],
        ["libc6-dev", r"libstdc\+\+-\d+-dev"],
        [r"libicu\d+"],
    ],
}
"""Per image and layer: patterns of names of packages. Each takes the newest that is not taken."""

_NAME = "image"


def build_layout(name: str) -> Path:
    """Return an OCI layout folder with the image `name`, built if it is not in the cache."""
    layers = _choose_packages(LAYERS[name])
    versions = debian.read_versions(sorted(package for layer in layers for package in layer))
    key = hashlib.sha256(json.dumps([layers, versions]).encode()).hexdigest()[:16]
    folder = debian.cache_folder() / f"image_{name}_{key}"
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=debian.cache_folder()) as scratch:
            plain, compressed = Path(scratch, "plain"), Path(scratch, "compressed")
            _write_plain_layout(plain, layers)
            skopeo("copy", f"oci:{plain}:{_NAME}", f"oci:{compressed}:{_NAME}")
            if not folder.exists():  # else another session was faster
                os.rename(compressed, folder)
    return folder


def push_layout(registry: Registry, layout: Path, name: str) -> str:
    """Push the image of a layout by skopeo; return its reference."""
    reference = registry.reference(name)
    target = f"docker://{reference}"
    skopeo("copy", "--dest-tls-verify=false", f"oci:{layout}:{_NAME}", target)
    return reference


def read_facts(layout: Path) -> str:
    """Return how many layers and bytes the image has, for people."""
    (root,) = json.loads((layout / "index.json").read_bytes())["manifests"]
    blob = layout / "blobs/sha256" / root["digest"].removeprefix("sha256:")
    sizes = [layer["size"] for layer in json.loads(blob.read_bytes())["layers"]]
    return f"layers: {len(sizes)}, compressed: {sum(sizes) / 1e6:.0f} MB"


def skopeo(*arguments: str) -> str:
    """Run skopeo, which takes what is signed by nobody, and return what it prints."""
    command = ["skopeo", "--insecure-policy", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _choose_packages(layers: list[list[str]]) -> list[list[str]]:
    listed = subprocess.run(["apt-cache", "pkgnames"], capture_output=True, text=True, check=True)
    names = sorted(listed.stdout.split(), key=_natural)
    taken: set[str] = set()

    def take(pattern: str) -> str:
        chosen = [name for name in names if re.fullmatch(pattern, name) and name not in taken][-1]
        taken.add(chosen)
        return chosen

    return [[take(pattern) for pattern in patterns] for patterns in layers]


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts 9 before 10."""
    return [(int(part or 0), text) for part, text in re.findall(r"(\d*)(\D*)", name)]


def _write_plain_layout(folder: Path, layers: list[list[str]]) -> None:
    """Write an OCI layout with uncompressed layers. layers: packages of each, lowest first."""
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True)

    def keep(content: bytes, media_type: str) -> dict[str, object]:
        digest = hashlib.sha256(content).hexdigest()
        (blobs / digest).write_bytes(content)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    kept = [_write_layer(blobs, debian.unpack(packages)) for packages in layers]
    config = {
        "os": "linux",
        "architecture": host_architecture(),
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in kept]},
    }
    manifest = {
        "schemaVersion": 2,
        "config": keep(json.dumps(config).encode(), OCI_CONFIG),
        "layers": kept,
    }
    root = keep(json.dumps(manifest).encode(), OCI_MANIFEST)
    root["annotations"] = {"org.opencontainers.image.ref.name": _NAME}
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [root]}
    (folder / "index.json").write_text(json.dumps(index))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def _write_layer(blobs: Path, folders: list[Path]) -> dict[str, object]:
    archive = blobs / "archive"
    # Members as Go's archive/tar writes them: plain ones, with PAX records where they are needed.
    options = ["--format=posix", "--pax-option=delete=atime,delete=ctime", "--sort=name"]
    with tempfile.TemporaryDirectory(dir=blobs) as tree:
        for folder in folders:
            shutil.copytree(folder, tree, symlinks=True, dirs_exist_ok=True)
        subprocess.run(["tar", "-C", tree, *options, "-cf", archive, "."], check=True)
    with open(archive, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    size = archive.stat().st_size
    os.rename(archive, blobs / digest)
    return {"mediaType": OCI_LAYER, "digest": f"sha256:{digest}", "size": size}
