# SPDX-License-Identifier: Apache-2.0
"""Images as volumes: what is in them, how they are read-only, what they keep on disk."""

import sqlite3
from pathlib import Path
from typing import Any

import grpc
import pytest

from pycri.cri.api import runtime_v1_pb2 as cri
from tests.world.daemon import Node, refused
from tests.world.images import Images
from tests.world.oci import Layer, build_image
from tests.world.registry import Registry

UNKNOWN = grpc.StatusCode.UNKNOWN


def data_layers() -> list[Layer]:
    """Return two layers: the upper one replaces and hides files of the lower."""
    lower = Layer().directory("data").file("data/kept", "kept\n").file("data/replaced", "first\n")
    lower.file("data/hidden", "hidden\n").file("run.sh", "#!/bin/sh\necho ran\n", mode=0o755)
    lower.symlink("absolute", "/data").symlink("out", "../../../../data").symlink("loop", "loop")
    lower.symlink("nowhere", "/etc/hostname")
    upper = Layer().directory("data").file("data/replaced", "second\n").whiteout("data/hidden")
    return [lower, upper]


@pytest.fixture(scope="module")
def data(registry: Registry) -> str:
    """An image of two layers without a shell."""
    registry.push(build_image([layer.tar() for layer in data_layers()], {}), "tests/data")
    return registry.reference("tests/data")


@pytest.fixture(scope="module")
def single(registry: Registry) -> str:
    """An image of one layer, which hides something that no layer below has."""
    layer = Layer().file("only", "only\n").whiteout("nothing")
    registry.push(build_image([layer.tar()], {}), "tests/single")
    return registry.reference("tests/single")


def volume(image: str, target: str = "/volume", **fields: Any) -> dict[str, Any]:
    return {"container_path": target, "image": {"image": image}, "readonly": True, **fields}


def test_an_image_is_a_volume_of_its_files(node: Node, images: Images, data: str) -> None:
    node.pull(data)
    pod = node.run_pod("volume")
    mounts_before = Path("/proc/self/mountinfo").read_text().count(node.name)
    container = node.run_container(
        pod, images["busybox"], command=["sleep", "600"], mounts=[volume(data)]
    )
    assert Path("/proc/self/mountinfo").read_text().count(node.name) == mounts_before
    script = "cd /volume; ls data; cat data/* absolute/kept 2>&1; ./run.sh"
    assert node.shell(container, script).splitlines() == [
        "kept", "replaced", "kept", "second", "cat: can't open 'absolute/kept': "
        "No such file or directory", "ran",
    ]  # fmt: skip


def test_nobody_can_write_to_an_image(node: Node, images: Images, single: str) -> None:
    node.pull(single)
    privileged = {"privileged": True}
    pod = node.run_pod("readonly", security=privileged)
    container = node.run_container(
        pod,
        images["busybox"],
        command=["sleep", "600"],
        security=privileged,
        mounts=[volume(single)],
    )
    script = "cd /volume; (mount -o remount,rw . ; touch new; echo x >only; rm only) 2>&1; cat only"
    assert node.shell(container, script).endswith("\nonly\n")
    # What the layer hides below itself is no file of the volume.
    assert node.shell(container, "ls -A /volume") == "only\n"


@pytest.mark.parametrize(
    ("sub_path", "command", "output"),
    [
        ("data", "cat /volume/replaced", "second\n"),
        ("data/", "ls /volume", "kept\nreplaced\n"),
        ("absolute", "ls /volume", "kept\nreplaced\n"),
        ("out", "ls /volume", "kept\nreplaced\n"),
        ("data/kept", "cat /volume", "kept\n"),
        ("./data/./kept", "cat /volume", "kept\n"),
    ],
)
def test_a_part_of_an_image_is_found_inside_it(
    sub_path: str, command: str, output: str, node: Node, images: Images, data: str
) -> None:
    node.pull(data)
    pod = node.run_pod("part")
    script = f"{command}; grep -c ' /volume ' /proc/self/mountinfo"
    mounts = [volume(data, image_sub_path=sub_path)]
    assert node.run_to_end(pod, images["busybox"], command=script, mounts=mounts) == f"{output}1\n"


@pytest.mark.parametrize(
    ("sub_path", "reason"),
    [
        ("missing", "No such file"),
        ("data/hidden", "No such file"),
        ("data/kept/below", "Not a directory"),
        ("loop", "Too many levels"),
        ("nowhere", "No such file"),
        ("..", "does not stay in the image"),
        ("data/../../etc", "does not stay in the image"),
        ("/data", "does not stay in the image"),
    ],
)
def test_a_part_that_is_not_there_fails_by_the_cris_name(
    sub_path: str, reason: str, node: Node, images: Images, data: str
) -> None:
    node.pull(data)
    pod = node.run_pod("nopart")
    with refused(UNKNOWN, f"config.mounts[0].image_sub_path: {sub_path!r}", reason):
        node.create_container(
            pod, images["busybox"], mounts=[volume(data, image_sub_path=sub_path)]
        )
    try:
        node.create_container(
            pod, images["busybox"], mounts=[volume(data, image_sub_path=sub_path)]
        )
    except grpc.RpcError as error:
        assert (error.details() or "").startswith("ImageVolumeMountFailed: ")
    listed = node.runtime.ListContainers(cri.ListContainersRequest())
    assert not listed.containers


def test_an_image_that_was_not_pulled_is_no_volume(node: Node, images: Images) -> None:
    pod = node.run_pod("unpulled")
    with refused(UNKNOWN, "ImageVolumeMountFailed: config.mounts[0].image", "is not on this node"):
        node.create_container(pod, images["busybox"], mounts=[volume("127.0.0.1:1/none:1")])


def test_a_writable_image_volume_is_refused(node: Node, images: Images, data: str) -> None:
    pod = node.run_pod("writable")
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "config.mounts[0].readonly"):
        node.create_container(pod, images["busybox"], mounts=[volume(data, readonly=False)])


def test_options_count_for_images_too(node: Node, images: Images, data: str) -> None:
    node.pull(data)
    pod = node.run_pod("noexec")
    container = node.run_container(
        pod,
        images["busybox"],
        command=["sleep", "600"],
        mounts=[volume(data, mount_options=["noexec"])],
    )
    with refused(grpc.StatusCode.INTERNAL, "/volume/run.sh", "Permission denied"):
        node.exec(container, "/volume/run.sh")
    assert node.shell(container, "cat /volume/data/kept") == "kept\n"


def test_the_status_tells_which_image_it_is(own_node: Node, images: Images, data: str) -> None:
    node = own_node
    image_id = node.pull(data)
    pod = node.run_pod("status")
    container = node.create_container(
        pod, images["busybox"], mounts=[{**volume(data), "image_sub_path": "data"}]
    )
    node.restart()
    (shown,) = node.status(container).mounts
    assert (shown.image.image, shown.image.image_ref) == (data, image_id)
    assert (shown.image_sub_path, shown.readonly, shown.host_path) == ("data", True, "")


@pytest.mark.parametrize("sub_path", ["", "data"])
def test_an_image_is_a_volume_in_a_user_namespace_too(
    sub_path: str, node: Node, images: Images, data: str
) -> None:
    node.pull(data)
    line = [{"host_id": 231072, "container_id": 0, "length": 65536}]
    own = {"mode": cri.POD, "uids": line, "gids": line}
    pod = node.run_pod("mapped", namespaces={"userns_options": own})
    container = node.run_container(
        pod,
        images["busybox"],
        command=["sleep", "600"],
        mounts=[volume(data, image_sub_path=sub_path)],
    )
    file = "/volume/kept" if sub_path else "/volume/data/kept"
    assert node.shell(container, f"cat {file}; stat -c %u:%g {file}") == "kept\n0:0\n"
    assert node.exec(container, "touch", "/volume/new").exit_code != 0


def layer_folders(node: Node) -> set[str]:
    return {p.name for p in (node.state_dir / "images/layers").iterdir() if p.name[0] != "."}


def test_an_image_in_use_as_a_volume_keeps_its_layers(
    own_node: Node, images: Images, data: str
) -> None:
    node = own_node
    node.pull(images["busybox"])
    others = layer_folders(node)
    node.pull(data)
    added = layer_folders(node) - others
    pod = node.run_pod("kept")
    container = node.create_container(
        pod,
        images["busybox"],
        command=["cat", "/volume/data/kept"],
        mounts=[volume(data)],
    )
    request = cri.RemoveImageRequest(image=cri.ImageSpec(image=data))
    node.images.RemoveImage(request)
    node.restart()
    assert added <= layer_folders(node)
    node.start_container(container)
    assert node.wait_exited(container).exit_code == 0
    assert node.output(container) == "kept\n"
    node.remove_container(container)
    # The collection of what nobody needs follows the removal of an image.
    node.pull(data)
    node.images.RemoveImage(request)
    with sqlite3.connect(f"file:{node.state_dir}/pycri.db?mode=ro", uri=True) as database:
        rows = {row[0] for row in database.execute("SELECT digest FROM layers")}
    database.close()
    assert not {f"sha256:{name}" for name in added} & rows
