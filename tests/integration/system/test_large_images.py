# SPDX-License-Identifier: Apache-2.0
"""Images of real size, which skopeo pushed: whole, and in bounded memory whatever their size."""

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pycri.cri.api import runtime_v1_pb2 as cri
from tests.world import large_images, leaks, session
from tests.world.daemon import Node, wait_until
from tests.world.disks import own_disk
from tests.world.registry import Registry

MOST_DAEMON_BYTES = 100_000_000
MOST_PROCESS_BYTES = 60_000_000
_DISK_BYTES = 8 * 1024**3
_TIMEOUT_S = 300.0 * session.TIME_FACTOR

pytestmark = [pytest.mark.slow, pytest.mark.registry, pytest.mark.timeout(900)]


def read_peak(pid: int) -> int:
    """Return VmHWM in bytes; 0 for a process that has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    _, found, rest = status.partition("VmHWM:")
    return int(rest.split()[0]) * 1024 if found else 0


@contextmanager
def watched_children(pid: int) -> Iterator[dict[int, int]]:
    """Yield the peaks of a daemon's unpack processes, by pid; filled until the block ends."""
    peaks: dict[int, int] = {}
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.05):
            shown = ["pgrep", "--parent", str(pid), "--full", "pycri.images.unpack"]
            for child in subprocess.run(shown, capture_output=True, text=True).stdout.split():
                peaks[int(child)] = max(peaks.get(int(child), 0), read_peak(int(child)))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield peaks
    finally:
        ended.set()
        watcher.join()


@pytest.fixture
def node(scope: leaks.Scope, tmp_path: Path) -> Iterator[Node]:
    """A node whose state is on a file system of its own."""
    node = Node(scope)
    node.state_dir.mkdir()
    try:
        with own_disk(tmp_path / "disk.img", node.state_dir, _DISK_BYTES):
            node.start()
            try:
                yield node
            finally:
                node.stop()
    finally:
        node.close()


@pytest.mark.parametrize(
    ("name", "layers", "files", "size"),
    [
        ("small-files", 1, 20_000, 200e6),
        ("one-gigabyte", 1, 5_000, 1e9),
        ("ten-layers", 10, 5_000, 300e6),
    ],
)
def test_a_large_image_is_pulled_in_bounded_memory(
    name: str, layers: int, files: int, size: float, node: Node, registry: Registry
) -> None:
    reference = large_images.push_layout(registry, large_images.build_layout(name), name)
    image = cri.ImageSpec(image=reference)
    daemon = node.pid_of("daemon")
    with watched_children(daemon) as peaks:
        node.images.PullImage(cri.PullImageRequest(image=image), timeout=_TIMEOUT_S)
    status = node.images.ImageStatus(cri.ImageStatusRequest(image=image), timeout=_TIMEOUT_S)
    usage = node.images.ImageFsInfo(cri.ImageFsInfoRequest()).image_filesystems[0]
    assert usage.inodes_used.value > files
    assert status.image.size > size
    assert read_peak(daemon) < MOST_DAEMON_BYTES
    assert len(peaks) == layers and max(peaks.values()) < MOST_PROCESS_BYTES, peaks
    node.images.RemoveImage(cri.RemoveImageRequest(image=image), timeout=_TIMEOUT_S)
    folder = node.state_dir / "images/layers"
    wait_until(lambda: not [*folder.iterdir()], what="the layers are gone", timeout_s=_TIMEOUT_S)
