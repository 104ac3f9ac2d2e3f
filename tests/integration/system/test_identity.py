# SPDX-License-Identifier: Apache-2.0
"""Who a container runs as: names, groups, home, what the status shows, user files that lie."""

from typing import Any

import grpc
import pytest

from pycri.cri.api import runtime_v1_pb2 as cri
from tests.world.daemon import Node, refused
from tests.world.hostile import push_image
from tests.world.images import Images
from tests.world.oci import Layer
from tests.world.registry import Registry

LOOK = "echo $(id -u):$(id -g) $(grep Groups: /proc/self/status) $HOME"
KIM: dict[str, Any] = {"run_as_username": "kim"}


def look(node: Node, image: str, **security: Any) -> tuple[str, cri.LinuxContainerUser]:
    container = node.run_container(node.run_pod("who"), image, command=LOOK, security=security)
    assert node.wait_exited(container).exit_code == 0, node.log(container)
    return node.output(container).strip(), node.status(container).user.linux


@pytest.mark.parametrize(
    ("security", "seen", "shown"),
    [
        ({}, "0:0 Groups: 0 /root", (0, 0, [0])),
        (KIM, "1000:1000 Groups: 4 29 1000 /home/kim", (1000, 1000, [4, 29, 1000])),
        (
            {"run_as_user": {"value": 1000}},
            "1000:1000 Groups: 4 29 1000 /home/kim",
            (1000, 1000, [4, 29, 1000]),
        ),
        (
            {"run_as_user": {"value": 4242}, "run_as_group": {"value": 42}},
            "4242:42 Groups: 42 /",
            (4242, 42, [42]),
        ),
        (
            KIM | {"supplemental_groups": [7, 29]},
            "1000:1000 Groups: 4 7 29 1000 /home/kim",
            (1000, 1000, [4, 7, 29, 1000]),
        ),
        (
            KIM | {"supplemental_groups": [7], "supplemental_groups_policy": cri.Strict},
            "1000:1000 Groups: 7 1000 /home/kim",
            (1000, 1000, [7, 1000]),
        ),
        (
            KIM | {"supplemental_groups_policy": cri.Strict, "run_as_group": {"value": 33}},
            "1000:33 Groups: 33 /home/kim",
            (1000, 33, [33]),
        ),
    ],
)
def test_the_status_shows_the_identity_the_process_has(
    security: dict[str, Any],
    seen: str,
    shown: tuple[int, int, list[int]],
    node: Node,
    images: Images,
) -> None:
    output, user = look(node, images["busybox"], **security)
    assert output == seen
    assert (user.uid, user.gid, sorted(user.supplemental_groups)) == shown


def test_the_home_of_the_request_or_the_image_comes_first(node: Node, images: Images) -> None:
    container = node.run_container(
        node.run_pod("who"),
        images["busybox"],
        command=LOOK,
        security=KIM,
        env={"HOME": "/elsewhere"},
    )
    node.wait_exited(container)
    assert node.output(container).endswith("/elsewhere\n")


def test_a_group_without_a_user_is_refused(node: Node, images: Images) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "run_as_group"):
        look(node, images["busybox"], run_as_group={"value": 7})


def test_an_unknown_name_is_refused_by_field(node: Node, images: Images) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "security_context.run_as_username", "nobody-"):
        look(node, images["busybox"], run_as_username="nobody-knows")


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("proc link", "link that leads nowhere"),
        ("loop", "symbolic links"),
        ("huge", "larger than"),
        ("fifo", "not a regular file"),
    ],
)
@pytest.mark.parametrize("file", ["passwd", "group"])
def test_a_user_file_that_is_no_such_file_is_refused_by_name(
    kind: str, problem: str, file: str, node: Node, registry: Registry
) -> None:
    layer = Layer().directory("etc")
    match kind:
        case "proc link":
            layer.symlink(f"etc/{file}", "/proc/self/environ")
        case "loop":
            layer.symlink(f"etc/{file}", file)
        case "huge":
            layer.file(f"etc/{file}", b"a:x:1:1::/:/bin/sh\n" * 100_000)
        case "fifo":
            layer.fifo(f"etc/{file}")
    image = push_image(registry, f"{file}-{kind.replace(' ', '-')}", layer)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "config.image", f"/etc/{file}", problem):
        look(node, image, run_as_user={"value": 1000})


def test_user_files_behind_links_into_another_layer_are_read(
    node: Node, registry: Registry
) -> None:
    layer = Layer().directory("etc").directory("usr").directory("usr/lib")
    layer.symlink("etc/passwd", "../usr/lib/passwd").symlink("etc/group", "/usr/lib/group")
    layer.file("usr/lib/passwd", "lee:x:77:78:Lee:/home/lee:/bin/sh\n")
    layer.file("usr/lib/group", "crew:x:79:lee\n")
    image = push_image(registry, "linked-users", layer)
    output, user = look(node, image, run_as_username="lee")
    assert output == "77:78 Groups: 78 79 /home/lee"
    assert sorted(user.supplemental_groups) == [78, 79]


def test_an_opaque_folder_hides_the_users_of_lower_layers(node: Node, registry: Registry) -> None:
    layer = Layer().directory("etc").opaque("etc")
    image = push_image(registry, "opaque-etc", layer)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "run_as_username"):
        look(node, image, **KIM)
    assert look(node, image, run_as_user={"value": 1000})[0] == "1000:0 Groups: 0 /"
