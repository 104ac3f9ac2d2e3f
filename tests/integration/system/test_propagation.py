# SPDX-License-Identifier: Apache-2.0
"""Mount propagation between host and container, as the CRI's Mount.propagation asks for it."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycri.cri.api import runtime_v1_pb2 as cri
from tests.world.daemon import Node
from tests.world.images import Images


@pytest.fixture
def shared_mount(tmp_path: Path) -> Iterator[Path]:
    """A mount of the host that is shared, as systemd makes all of them."""
    subprocess.run(["mount", "-t", "tmpfs", "shared", tmp_path], check=True)
    subprocess.run(["mount", "--make-shared", tmp_path], check=True)
    (tmp_path / "inner").mkdir()
    yield tmp_path
    subprocess.run(["umount", "--recursive", tmp_path], check=True)


def run(node: Node, image: str, source: Path, propagation: cri.MountPropagation.ValueType) -> str:
    return node.run_container(
        node.run_pod("mounts", security={"privileged": True}),
        image,
        command=["sleep", "60"],
        mounts=[{"container_path": "/data", "host_path": str(source), "propagation": propagation}],
        security={"privileged": True},
    )


def mount_inner(source: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "inner", source / "inner"], check=True)


@pytest.mark.parametrize(
    ("propagation", "seen"),
    [
        (cri.PROPAGATION_PRIVATE, False),
        (cri.PROPAGATION_HOST_TO_CONTAINER, True),
        (cri.PROPAGATION_BIDIRECTIONAL, True),
    ],
    ids=["private", "host to container", "bidirectional"],
)
def test_a_later_mount_of_the_host_is_seen_if_asked_for(
    propagation: cri.MountPropagation.ValueType,
    seen: bool,
    node: Node,
    images: Images,
    shared_mount: Path,
) -> None:
    container = run(node, images["busybox"], shared_mount, propagation)
    mount_inner(shared_mount)
    assert ("/data/inner" in node.shell(container, "cat /proc/mounts")) is seen


@pytest.mark.parametrize(
    ("propagation", "seen"),
    [(cri.PROPAGATION_HOST_TO_CONTAINER, False), (cri.PROPAGATION_BIDIRECTIONAL, True)],
    ids=["host to container", "bidirectional"],
)
def test_a_later_mount_of_the_container_is_seen_if_asked_for(
    propagation: cri.MountPropagation.ValueType,
    seen: bool,
    node: Node,
    images: Images,
    shared_mount: Path,
) -> None:
    container = run(node, images["busybox"], shared_mount, propagation)
    node.shell(container, "mount -t tmpfs made /data/inner")
    assert (shared_mount / "inner").is_mount() is seen
