# SPDX-License-Identifier: Apache-2.0
"""The image store through the CRI: names and ids, removal, images in use, pinned ones."""

import sqlite3
from collections.abc import Callable
from contextlib import closing

import pytest

from pycri.cri.api import runtime_v1_pb2 as cri
from tests.world.daemon import Node, wait_until
from tests.world.images import Images
from tests.world.registry import Registry


def status(node: Node, name: str) -> cri.Image | None:
    request = cri.ImageStatusRequest(image=cri.ImageSpec(image=name))
    answer = node.images.ImageStatus(request)
    return answer.image if answer.HasField("image") else None


def listed(node: Node, name: str = "") -> list[cri.Image]:
    request = cri.ListImagesRequest()
    if name:
        request.filter.image.image = name
    return list(node.images.ListImages(request).images)


def remove(node: Node, name: str) -> None:
    node.images.RemoveImage(cri.RemoveImageRequest(image=cri.ImageSpec(image=name)))


def layers_on_disk(node: Node) -> int:
    return sum(path.name[0] != "." for path in (node.state_dir / "images/layers").iterdir())


def layers_in_database(node: Node) -> int:
    file = f"file:{node.state_dir}/pycri.db?mode=ro"
    with closing(sqlite3.connect(file, uri=True)) as database:
        return int(database.execute("SELECT count(*) FROM layers").fetchone()[0])


def test_one_id_stands_for_an_image_everywhere(node: Node, images: Images) -> None:
    """The kubelet compares them, and since 1.36 the CRI says that they are equal."""
    image_ref = node.pull(images["busybox"])
    shown = status(node, images["busybox"])
    assert shown and shown.id == shown.spec.image == image_ref
    assert image_ref in {image.id for image in listed(node)}
    pod = node.run_pod("ids")
    for name in (images["busybox"], image_ref, shown.repo_digests[0]):
        container = node.create_container(pod, name, name=f"c{len(name)}", command=["true"])
        told = node.status(container)
        assert (told.image_ref, told.image_id) == (image_ref, image_ref)
        (item,) = node.runtime.ListContainers(
            cri.ListContainersRequest(filter=cri.ContainerFilter(id=container))
        ).containers
        assert (item.image_ref, item.image_id) == (image_ref, image_ref)


def test_an_image_is_found_by_every_form_of_its_names(node: Node, images: Images) -> None:
    image_ref = node.pull(images["busybox"])
    repository = images["busybox"].removesuffix(":latest")
    digest = images.image("busybox").root.digest
    for name in (
        repository,
        f"{repository}:latest",
        f"{repository}@{digest}",
        f"{repository}:anything@{digest}",
        image_ref,
        image_ref.removeprefix("sha256:"),
        image_ref[7:20],
        image_ref[:21],
    ):
        found = status(node, name)
        assert found and found.id == image_ref, name
        assert [image.id for image in listed(node, name)] == [image_ref], name
    for name in (f"{repository}:other", f"{repository}@sha256:{'0' * 64}", "sha256:" + "f" * 64):
        assert status(node, name) is None and not listed(node, name)


@pytest.mark.parametrize("form", ["tag", "other tag", "no tag", "digest", "id", "prefix"])
def test_a_removal_by_any_name_removes_all_of_them(
    form: str, node: Node, registry: Registry, images: Images
) -> None:
    built = images.image("layered")
    names = [registry.reference("tests/many-names", tag) for tag in ("latest", "other")]
    for name in names:
        registry.push(built, "tests/many-names", name.rpartition(":")[2])
        node.pull(name)
    repository = names[0].removesuffix(":latest")
    shown = status(node, repository)
    assert shown and set(names) <= set(shown.repo_tags)
    by = {
        "tag": names[0],
        "other tag": names[1],
        "no tag": repository,
        "digest": f"{repository}@{built.root.digest}",
        "id": built.config,
        "prefix": built.config[7:19],
    }
    remove(node, by[form])
    assert built.config not in {image.id for image in listed(node)}
    for name in by.values():
        assert status(node, name) is None, name
        remove(node, name)  # what is not there is fine


def test_an_image_in_use_is_unlisted_and_stays_until_its_last_container_goes(
    own_node: Node, images: Images
) -> None:
    node = own_node
    node.pull(images["layered"])
    pod = node.run_pod("user")
    running = node.run_container(pod, images["layered"], name="running", command=["sleep", "600"])
    created = node.create_container(pod, images["layered"], name="created", command=["/run.sh"])
    remove(node, images["layered"])
    assert status(node, images["layered"]) is None and not listed(node)
    assert node.shell(running, "cat /data/kept") == "kept\n"
    node.restart()
    assert not listed(node)
    node.start_container(created)
    assert node.wait_exited(created).exit_code == 0
    assert node.shell(running, "cat /data/replaced") == "second\n"
    node.remove_container(running)
    assert layers_on_disk(node) == 4
    node.remove_container(created)
    assert layers_in_database(node) == 0
    wait_until(lambda: not layers_on_disk(node), what="nothing is left of the image")


def test_an_image_that_is_pulled_again_while_its_container_runs_is_the_same(
    own_node: Node, images: Images
) -> None:
    node = own_node
    pod = node.run_pod("again")
    container = node.run_container(pod, images["busybox"], command=["sleep", "600"])
    before = layers_on_disk(node)
    remove(node, images["busybox"])
    assert node.pull(images["busybox"]) == node.status(container).image_ref
    assert layers_on_disk(node) == before
    node.remove_container(container)
    assert status(node, images["busybox"]) and layers_on_disk(node) == before


def test_settings_pin_images_and_name_them(make_node: Callable[..., Node], images: Images) -> None:
    host = images["busybox"].partition("/")[0]
    node = make_node(
        f'[images]\ndefault_prefix = "{host}/tests"\npinned = ["{host}/tests/bus*:latest"]\n'
        f'[images.aliases]\n"stacked" = "{host}/tests/layered"\n'
    )
    images["layered"]
    assert node.pull("busybox") == images.image("busybox").config
    assert node.pull("tests/busybox") == images.image("busybox").config
    assert node.pull("stacked") == images.image("layered").config
    pinned = {image.repo_tags[0]: image.pinned for image in listed(node)}
    assert pinned == {images["busybox"]: True, images["layered"]: False}
    assert status(node, "stacked:latest") and status(node, "tests/layered")
    pod = node.run_pod("short")
    assert node.run_to_end(pod, "stacked", command=["/run.sh"]) == "kept\nsecond\nonly\n"
    node.restart()
    shown = status(node, "busybox")
    assert shown and shown.pinned
