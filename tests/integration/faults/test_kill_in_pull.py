# SPDX-License-Identifier: Apache-2.0
"""The daemon is killed in the middle of PullImage: the next one has whole images only, or none."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from pycri.cri.api import runtime_v1_pb2 as cri
from tests.world.daemon import CALL_TIMEOUT_S, Node, wait_until
from tests.world.oci import Layer, build_image
from tests.world.registry import Registry

LAYERS = 6


@pytest.fixture(scope="module")
def reference(registry: Registry) -> str:
    """An image whose layers have one large and many small files, none of which compress."""
    archives = []
    for number in range(LAYERS):
        layer = Layer().file(f"large-{number}", os.urandom(4_000_000))
        for name in range(100):
            layer.file(f"small-{number}-{name}", os.urandom(1000))
        archives.append(layer.tar())
    registry.push(build_image(archives, {}), "tests/killed")
    return registry.reference("tests/killed")


def whole(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


def is_unpacking(folder: Path) -> bool:
    return any(os.listdir(path) for path in folder.glob(".partial-*"))


STEPS: dict[str, Callable[[Path], bool]] = {
    "a layer has its first file": is_unpacking,
    "a layer has its name": lambda folder: bool(whole(folder)),
    "half of the layers have their names": lambda folder: len(whole(folder)) >= LAYERS // 2,
    "all layers have their names": lambda folder: len(whole(folder)) == LAYERS,
}


def unpack_processes(node: Node) -> list[str]:
    """Return the command lines of the processes that unpack on this node."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_text().split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if "pycri.images.unpack" in words and any(str(node.state_dir) in word for word in words):
            found.append(" ".join(words))
    return found


@pytest.mark.registry
@pytest.mark.parametrize("step", list(STEPS))
def test_a_daemon_killed_in_a_pull_leaves_whole_images_only(
    step: str, own_node: Node, reference: str
) -> None:
    node = own_node
    folder = node.state_dir / "images/layers"
    image = cri.ImageSpec(image=reference)
    request = cri.PullImageRequest(image=image)
    with ThreadPoolExecutor(1) as beside:
        pulling = beside.submit(node.images.PullImage, request, timeout=CALL_TIMEOUT_S)
        wait_until(lambda: STEPS[step](folder), what=step)
        node.kill("daemon")
        error = pulling.exception(CALL_TIMEOUT_S)
    # Once all layers are there, the answer may have been on its way.
    assert error is None or isinstance(error, grpc.RpcError)
    wait_until(lambda: not unpack_processes(node), what="what unpacked has ended by itself")
    node.start()
    listed = node.images.ListImages(cri.ListImagesRequest(), timeout=CALL_TIMEOUT_S).images
    assert len(listed) == (error is None) or step.startswith("all")
    wait_until(lambda: not [*folder.glob(".*")], what="what was half done is gone")
    assert len(whole(folder)) == (LAYERS if listed else 0)
    node.images.PullImage(request, timeout=CALL_TIMEOUT_S)
    assert len(whole(folder)) == LAYERS
    assert all(len(os.listdir(layer)) == 101 for layer in whole(folder))
