# SPDX-License-Identifier: Apache-2.0
"""Who pulls images under measurement: a runtime by its CRI, or skopeo and GNU tar."""

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Protocol

import grpc

from pycri.cri.api import runtime_v1_pb2 as cri
from pycri.cri.api import runtime_v1_pb2_grpc as cri_grpc
from tests.performance.contestants import Contestant
from tests.world.large_images import skopeo

_TIMEOUT_S = 600.0
_LOOK_EVERY_S = 0.02


class Puller(Protocol):
    """Someone who gets an image from a registry, unpacked."""

    name: str

    def pull(self, reference: str) -> None:
        """Get an image, of which nothing is there."""

    def remove(self, reference: str) -> None:
        """Remove all of it."""

    def watched(self) -> AbstractContextManager[dict[str, int]]:
        """Watch the memory of what works within the block."""

    def read_peaks(self) -> dict[str, int]:
        """Return the peak in bytes of what stays between pulls."""


class CriPuller:
    """A runtime. What it starts for a pull are the children of its daemon."""

    def __init__(self, contestant: Contestant) -> None:
        self.name = contestant.name.removesuffix("+runc")
        self._daemon = contestant.daemons["daemon"]
        channel = grpc.insecure_channel(f"unix:{contestant.socket}")
        self._images = cri_grpc.ImageServiceStub(channel)

    def pull(self, reference: str) -> None:
        """Call PullImage."""
        request = cri.PullImageRequest(image=cri.ImageSpec(image=reference))
        self._images.PullImage(request, timeout=_TIMEOUT_S)

    def remove(self, reference: str) -> None:
        """Call RemoveImage."""
        request = cri.RemoveImageRequest(image=cri.ImageSpec(image=reference))
        self._images.RemoveImage(request, timeout=_TIMEOUT_S)

    @contextmanager
    def watched(self) -> Iterator[dict[str, int]]:
        """Look at the daemon's children again and again; forget the daemon's former peak."""
        Path(f"/proc/{self._daemon}/clear_refs").write_text("5")
        before = _list_children(self._daemon)
        peaks = {"processes of a pull": 0}
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(_LOOK_EVERY_S):
                working = _list_children(self._daemon) - before
                total = sum(_read_peak(pid) for pid in working)
                peaks["processes of a pull"] = max(peaks["processes of a pull"], total)

        watcher = threading.Thread(target=look)
        watcher.start()
        try:
            yield peaks
        finally:
            ended.set()
            watcher.join()

    def read_peaks(self) -> dict[str, int]:
        """Return the daemon's peak."""
        return {"daemon": _read_peak(self._daemon)}


class SkopeoAndTar:
    """`skopeo copy` into a folder, and `tar -x` of each layer into a folder of its own."""

    name = "skopeo and tar"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def pull(self, reference: str) -> None:
        """Copy, then unpack layer by layer."""
        blobs = self._folder / "blobs"
        blobs.mkdir(parents=True)
        skopeo("copy", "--src-tls-verify=false", f"docker://{reference}", f"dir:{blobs}")
        manifest = json.loads((blobs / "manifest.json").read_bytes())
        for number, layer in enumerate(manifest["layers"]):
            target = self._folder / str(number)
            target.mkdir()
            blob = blobs / layer["digest"].removeprefix("sha256:")
            subprocess.run(["tar", "-C", target, "-xpzf", blob, "--numeric-owner"], check=True)

    def remove(self, _: str) -> None:
        """Remove the folders."""
        shutil.rmtree(self._folder)

    @contextmanager
    def watched(self) -> Iterator[dict[str, int]]:
        """Nothing to watch: no daemon."""
        yield {}

    def read_peaks(self) -> dict[str, int]:
        """Nothing stays."""
        return {}


def read_skopeo_version() -> str:
    """Return the version."""
    return skopeo("--version").split()[-1]


def _list_children(pid: int) -> set[int]:
    """Return the children of a process, of all its threads."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError):  # the thread has ended
            found |= {int(child) for child in (task / "children").read_text().split()}
    return found


def _read_peak(pid: int) -> int:
    """Return VmHWM in bytes, 0 for what has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    _, found, rest = status.partition("VmHWM:")
    return int(rest.split()[0]) * 1024 if found else 0
