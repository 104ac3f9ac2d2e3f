# SPDX-License-Identifier: Apache-2.0
"""Debian packages as a source of real programs, unpacked into a cache.

The cache is keyed by package and version: $XDG_CACHE_HOME/pycri-tests, or
/var/cache/pycri-tests for root.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def _run(*command: str, cwd: str | None = None) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=cwd).stdout


def cache_folder() -> Path:
    """Return the folder that unpacked packages are kept in; made if missing."""
    if "XDG_CACHE_HOME" in os.environ or os.geteuid() != 0:
        parent = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    else:
        parent = Path("/var/cache")
    folder = parent / "pycri-tests"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def read_versions(packages: list[str]) -> dict[str, str]:
    """Return the version of each package that apt would install."""
    shown = _run("apt-cache", "show", "--no-all-versions", *packages)
    names = re.findall(r"^Package: (\S+)", shown, re.MULTILINE)
    versions = re.findall(r"^Version: (\S+)", shown, re.MULTILINE)
    return dict(zip(names, versions, strict=True))


def unpack(packages: list[str]) -> list[Path]:
    """Return a folder with the files of each package, downloaded and unpacked if need be."""
    folders = {
        package: cache_folder() / f"{package}_{version.replace(':', '%3a')}"
        for package, version in read_versions(packages).items()
    }
    missing = [package for package, folder in folders.items() if not folder.exists()]
    if missing:
        with tempfile.TemporaryDirectory(dir=cache_folder()) as scratch:
            # apt's own user cannot write to a folder that only we can.
            _run("apt-get", "download", "-qq", "-oAPT::Sandbox::User=root", *missing, cwd=scratch)
            for package in missing:
                (archive,) = Path(scratch).glob(f"{package}_*.deb")
                _unpack_archive(archive, folders[package])
    return list(folders.values())


def _unpack_archive(archive: Path, folder: Path) -> None:
    files = archive.with_suffix("")
    _run("dpkg-deb", "-x", str(archive), str(files))
    try:
        os.rename(files, folder)
    except OSError:
        if not folder.exists():  # else another session was faster
            raise


def list_libraries(package: str) -> list[str]:
    """Return the library packages that `package` itself depends on."""
    return read_dependencies(package, "lib", "zlib")


def read_dependencies(package: str, *prefixes: str) -> list[str]:
    """Return the packages that `package` itself depends on, of those whose names begin so."""
    listed = _run("apt-cache", "depends", "--no-recommends", "--no-suggests", package)
    names = re.findall(r"Depends: ([a-z0-9.+-]*)$", listed, re.MULTILINE)
    return sorted(name for name in names if name.startswith(prefixes))


@contextmanager
def staged(packages: list[str]) -> Iterator[Path]:
    """Yield a folder with the files of all `packages` in one tree, for as long as it is used."""
    with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
        for unpacked in unpack(packages):
            shutil.copytree(unpacked, folder, symlinks=True, dirs_exist_ok=True)
        yield Path(folder)


def find_shared_objects(tree: Path, program: str) -> dict[str, Path]:
    """Return the shared objects that `program` loads, its loader too.

    tree: a staged tree that has the program and its libraries; program: its path in there.
    Returns: path inside an image -> file, which may be behind a link.
    """
    (loader,) = (tree / "lib64").glob("ld-linux*")
    triplet = f"{os.uname().machine}-linux-gnu"
    places = [f"{tree}/lib/{triplet}", f"{tree}/usr/lib/{triplet}"]
    # The link is absolute, so it names the host's loader: take the package's own.
    objects = {str(loader.relative_to(tree)): Path(places[0], loader.name)}
    listed = _run(
        f"{places[0]}/{loader.name}", "--library-path", ":".join(places), "--list",
        f"{tree}/{program}",
    )  # fmt: skip
    for name, path in re.findall(r"(\S+) => (/\S+|not found)", listed):
        if not Path(path).is_relative_to(tree):
            raise LookupError(f"{program} needs {name}, which is in no package given: {path}")
        objects[str(Path(path).relative_to(tree))] = Path(path)
    return objects
