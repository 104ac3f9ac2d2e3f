# SPDX-License-Identifier: Apache-2.0
"""What is refused: with a code that the kubelet understands, a message that names the field or
the stage, and nothing left behind (the leak check sees to that).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from pycri.cri.api import runtime_v1_pb2 as cri
from tests.world.daemon import Node, refused, wait_until
from tests.world.images import Images, build_layered
from tests.world.oci import build_image, build_index
from tests.world.registry import PASSWORD, USERNAME, Registry

INVALID = grpc.StatusCode.INVALID_ARGUMENT
UNKNOWN_ID = "f" * 64


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"metadata": None}, "config.metadata"),
        ({"metadata": {"uid": "u", "namespace": "n"}}, "config.metadata.name"),
        ({"metadata": {"name": "n", "namespace": "n"}}, "config.metadata.uid"),
        ({"metadata": {"name": "n", "uid": "u"}}, "config.metadata.namespace"),
        ({"hostname": "no spaces allowed"}, "config.hostname"),
        ({"hostname": "x" * 65}, "config.hostname"),
        ({"log_directory": "relative/path"}, "config.log_directory"),
        ({"dns_config": {"servers": ["not an address"]}}, "config.dns_config.servers"),
        ({"linux": {"sysctls": {"kernel.panic": "1"}}}, "kernel.panic"),
        ({"linux": {"sysctls": {"net/../kernel.panic": "1"}}}, "sysctls"),
        ({"linux": {"cgroup_parent": "/up/../../out"}}, "cgroup_parent"),
        ({"security": {"run_as_group": {"value": 5}}}, "run_as_user"),
        ({"namespaces": {"pid": cri.TARGET, "target_id": UNKNOWN_ID}}, "pid"),
        ({"namespaces": {"network": 99}}, "network"),
    ],
)
def test_a_wrong_field_of_a_pod_is_named(fields: dict[str, Any], word: str, node: Node) -> None:
    with refused(INVALID, word):
        node.run_pod("wrong", **fields)


def test_a_pod_without_config_is_refused(node: Node) -> None:
    with refused(INVALID, "config"):
        node.runtime.RunPodSandbox(cri.RunPodSandboxRequest())


def test_an_unknown_handler_is_refused_and_the_known_ones_are_named(node: Node) -> None:
    with refused(INVALID, "runtime_handler", "no-such-handler"):
        node.run_pod("handler", handler="no-such-handler")


def test_a_sysctl_of_a_namespace_that_is_the_node_s_is_refused(node: Node) -> None:
    sysctls = {"net.ipv4.ip_unprivileged_port_start": "0"}
    with refused(INVALID, "net.ipv4.ip_unprivileged_port_start"):
        node.run_pod("host", namespaces={"network": cri.NODE}, linux={"sysctls": sysctls})


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"metadata": None}, "config.metadata"),
        ({"metadata": {"attempt": 1}}, "config.metadata.name"),
        ({"image": None}, "config.image"),
        ({"image": {"image": "Not A Reference!"}}, "config.image.image"),
        ({"working_dir": "relative"}, "config.working_dir"),
        ({"env": {"": "x"}}, "config.envs"),
        ({"env": {"A=B": "x"}}, "config.envs"),
        ({"log_path": "../up.log"}, "config.log_path"),
        ({"stop_signal": 999}, "config.stop_signal"),
        ({"mounts": [{"host_path": "/tmp"}]}, "container_path"),
        ({"mounts": [{"container_path": "/x"}]}, "host_path"),
        ({"mounts": [{"host_path": "/tmp", "container_path": "/"}]}, "container_path"),
        ({"security": {"run_as_group": {"value": 5}}}, "run_as_user"),
        ({"security": {"capabilities": {"add_capabilities": ["FLY"]}}}, "FLY"),
        ({"resources": {"memory_limit_in_bytes": -5}}, "memory_limit_in_bytes"),
        ({"resources": {"cpuset_cpus": "one"}}, "cpuset_cpus"),
        ({"resources": {"cpu_period": -1}}, "cpu_period"),
    ],
)
def test_a_wrong_field_of_a_container_is_named(
    fields: dict[str, Any], word: str, node: Node, images: Images
) -> None:
    pod = node.run_pod("wrong")
    node.pull(images["busybox"])
    words = {"name": "main", "image": images["busybox"], "command": ["true"]}
    config = node.container_config(**(words | fields))
    with refused(INVALID, word):
        node.create_config(pod, config)
    assert not node.runtime.ListContainers(cri.ListContainersRequest()).containers


def test_a_container_needs_a_pod_that_is_ready(node: Node, images: Images) -> None:
    pod = node.run_pod("stopped")
    created = node.create_container(pod, images["busybox"], name="first", command=["true"])
    node.stop_pod(pod)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, pod):
        node.create_container(pod, images["busybox"], command=["true"])
    with refused(grpc.StatusCode.FAILED_PRECONDITION):
        node.start_container(created)


def test_a_container_starts_once(node: Node, images: Images) -> None:
    container = node.run_container(node.run_pod("once"), images["busybox"], command=["true"])
    with refused(grpc.StatusCode.FAILED_PRECONDITION, container):
        node.start_container(container)
    node.wait_exited(container)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, container):
        node.start_container(container)


def create_in_unknown_pod(node: Node, images: Images) -> None:
    node.create_container(UNKNOWN_ID, images["busybox"], command=["true"])


@pytest.mark.parametrize(
    "call",
    [
        lambda node, _: node.pod_status(UNKNOWN_ID),
        lambda node, _: node.status(UNKNOWN_ID),
        lambda node, _: node.start_container(UNKNOWN_ID),
        lambda node, _: node.exec(UNKNOWN_ID, "true"),
        create_in_unknown_pod,
    ],
    ids=["pod status", "status", "start", "exec", "create"],
)
def test_an_unknown_id_is_not_found(
    call: Callable[[Node, Images], object], node: Node, images: Images
) -> None:
    with refused(grpc.StatusCode.NOT_FOUND, UNKNOWN_ID):
        call(node, images)


def test_an_image_that_is_not_here_is_not_found(node: Node) -> None:
    pod = node.run_pod("no-image")
    with refused(grpc.StatusCode.NOT_FOUND, "example.test/absent:1"):
        node.create_config(pod, node.container_config("main", "example.test/absent:1"))


def test_a_user_that_the_image_lacks_is_named(node: Node, images: Images) -> None:
    pod = node.run_pod("no-user")
    with pytest.raises(grpc.RpcError, match="nosuchuser"):
        container = node.create_container(
            pod, images["busybox"], command=["true"], security={"run_as_username": "nosuchuser"}
        )
        node.start_container(container)


def test_a_privileged_container_needs_a_privileged_pod(node: Node, images: Images) -> None:
    pod = node.run_pod("plain")
    with refused(INVALID, "privileged"):
        node.create_container(
            pod, images["busybox"], command=["true"], security={"privileged": True}
        )


@pytest.mark.parametrize(
    ("command", "word"),
    [
        (["/no/such/program"], "/no/such/program"),
        (["no-such-program"], "no-such-program"),
        (["/etc/passwd"], "/etc/passwd"),
        (["/home"], "/home"),
    ],
    ids=["absent", "not in PATH", "not executable", "a folder"],
)
def test_a_command_that_cannot_run_fails_the_start_and_the_status_says_why(
    command: list[str], word: str, node: Node, images: Images
) -> None:
    pod = node.run_pod("command")
    container = node.create_container(pod, images["busybox"], command=command)
    with pytest.raises(grpc.RpcError, match=word):
        node.start_container(container)
    status = node.status(container)
    assert (status.state, status.reason) == (cri.CONTAINER_EXITED, "StartError")
    assert status.exit_code in (126, 127, 128)
    assert status.finished_at > 0
    assert word in status.message
    node.remove_container(container)


def test_a_volume_whose_target_is_a_file_fails_with_the_step(node: Node, images: Images) -> None:
    pod = node.run_pod("volume")
    mounts = [{"host_path": str(node.folder), "container_path": "/etc/passwd/below"}]
    container = ""
    with pytest.raises(grpc.RpcError, match="/etc/passwd"):
        container = node.create_container(pod, images["busybox"], command=["true"], mounts=mounts)
        node.start_container(container)
    if container:
        assert node.status(container).reason == "StartError"


# images


def stored(node: Node) -> set[str]:
    """Return every file that the image store keeps."""
    return {str(path) for path in (node.state_dir / "images").rglob("*") if path.is_file()}


def test_a_registry_that_is_down_is_named(node: Node) -> None:
    # Port 1 of loopback: nobody listens.
    with refused(grpc.StatusCode.UNKNOWN, "RegistryUnavailable", "127.0.0.1:1"):
        node.pull("127.0.0.1:1/tests/busybox:latest")


@pytest.mark.parametrize("name", ["tests/busybox:no-such-tag", "tests/no-such-name:latest"])
def test_an_image_that_the_registry_lacks_is_not_found(
    name: str, node: Node, images: Images, registry: Registry
) -> None:
    assert images["busybox"]
    with refused(grpc.StatusCode.NOT_FOUND, name.split(":")[0]):
        node.pull(f"{registry.address}/{name}")


def test_credentials_are_asked_for_and_checked(node: Node, tmp_path: Path) -> None:
    with Registry.start(tmp_path, auth=True) as guarded:
        guarded.push(build_layered(), "guarded")
        reference = guarded.reference("guarded")
        with refused(grpc.StatusCode.PERMISSION_DENIED, guarded.address):
            node.pull(reference)
        with refused(grpc.StatusCode.PERMISSION_DENIED):
            node.pull(reference, username=USERNAME, password="wrong")
        assert node.pull(reference, username=USERNAME, password=PASSWORD)
    remove_image(node, reference)


def remove_image(node: Node, reference: str) -> None:
    node.images.RemoveImage(cri.RemoveImageRequest(image=cri.ImageSpec(image=reference)))


@pytest.mark.parametrize("spoil", ["layer", "config", "manifest", "cut short"])
def test_content_that_is_not_what_its_digest_says_is_refused(
    spoil: str, node: Node, tmp_path: Path
) -> None:
    image = build_layered()
    before = stored(node)
    with Registry.start(tmp_path) as own:
        own.push(image, "spoiled")
        digest = {
            "layer": image.layers[1],
            "config": image.config,
            "manifest": image.root.digest,
            "cut short": image.layers[2],
        }[spoil]
        file = own.blob_file(digest)
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content[:-20] if spoil == "cut short" else content)
        reference = f"{own.address}/spoiled"
        by_digest = f"{reference}@{image.root.digest}" if spoil == "manifest" else reference
        with pytest.raises(grpc.RpcError) as caught:
            node.pull(by_digest)
        assert caught.value.code() is grpc.StatusCode.UNKNOWN
    request = cri.ImageStatusRequest(image=cri.ImageSpec(image=reference))
    assert not node.images.ImageStatus(request).HasField("image")
    wait_until(lambda: stored(node) <= before, what="nothing of the image is kept")


def test_an_image_for_other_platforms_only_is_refused(
    node: Node, registry: Registry, images: Images
) -> None:
    assert images["busybox"]
    foreign = build_image([], {}, architecture="s390x")
    registry.push(build_index([foreign]), "tests/foreign")
    with pytest.raises(grpc.RpcError, match=r"amd64|arm64"):
        node.pull(registry.reference("tests/foreign"))


def test_asking_for_an_image_that_is_not_here_is_no_error(node: Node) -> None:
    spec = cri.ImageSpec(image="example.test/absent:1")
    answer = node.images.ImageStatus(cri.ImageStatusRequest(image=spec))
    assert not answer.HasField("image")
    node.images.RemoveImage(cri.RemoveImageRequest(image=spec))


@pytest.mark.parametrize("image", ["", "Upper/Case", "host/name:tag:tag", "name@sha256:short"])
def test_a_reference_that_is_none_is_refused(image: str, node: Node) -> None:
    with refused(INVALID, "image"):
        node.pull(image)


# RPCs of later versions


def test_a_checkpoint_is_not_there_yet_and_says_so(node: Node) -> None:
    with refused(grpc.StatusCode.UNIMPLEMENTED):
        node.runtime.CheckpointContainer(cri.CheckpointContainerRequest())
