# SPDX-License-Identifier: Apache-2.0
"""Full disks and used-up address ranges: said clearly, undone wholly, gone when there is room."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc

from pycri.cri.api import runtime_v1_pb2 as cri
from tests.world.daemon import Node, refused
from tests.world.images import Images

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


@contextmanager
def small_disk(node: Node, size: str) -> Iterator[None]:
    """Put the node's state on a file system of `size`; the node does not run."""
    node.state_dir.mkdir(exist_ok=True)
    options = ["-o", f"size={size},mode=700"]
    subprocess.run(["mount", "-t", "tmpfs", *options, "none", node.state_dir], check=True)
    try:
        yield
    finally:
        node.wipe()
        subprocess.run(["umount", node.state_dir], check=True)


def test_a_pull_on_a_full_disk_is_undone(unstarted_node: Node, images: Images) -> None:
    node = unstarted_node
    with small_disk(node, "6m"):
        node.start()
        node.pull(images["busybox"])
        with refused(EXHAUSTED, "layer"):
            node.pull(images["nginx"])
        listed = node.images.ListImages(cri.ListImagesRequest()).images
        assert [image.repo_tags[0] for image in listed] == [images["busybox"]]
        pod = node.run_pod("small")
        output = node.run_to_end(pod, images["busybox"], command="echo still works")
        assert output == "still works\n"
        node.clear()


def test_an_address_range_that_is_used_up_is_refilled_by_removal(
    make_node: Callable[..., Node],
) -> None:
    # Eight addresses: the network's, the bridge's, five pods', the broadcast.
    node = make_node(prefix=29)
    pods = [node.run_pod(f"pod-{number}") for number in range(5)]
    addresses = {node.pod_ip(pod) for pod in pods}
    assert len(addresses) == 5
    with refused(EXHAUSTED, "address"):
        node.run_pod("one-too-many")
    assert len(node.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items) == 5
    freed = node.pod_ip(pods[2])
    node.stop_pod(pods[2])
    node.remove_pod(pods[2])
    assert node.pod_ip(node.run_pod("one-too-many")) == freed
