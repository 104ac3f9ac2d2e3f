# SPDX-License-Identifier: Apache-2.0
"""`pycri plan` on a node: what it says of an image that is there, against what then happens."""

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from pycri.cri.api import runtime_v1_pb2 as cri
from tests.world.daemon import Node
from tests.world.images import Images


def plan(node: Node, image: str, folder: Path, **words: Any) -> list[str]:
    """Return the steps for a container of `image` in a pod of its own."""
    request = cri.CreateContainerRequest(
        config=node.container_config("main", image, **words),
        sandbox_config=node.pod_config("planned"),
    )
    file = folder / "request.json"
    file.write_text(json_format.MessageToJson(request, preserving_proto_field_name=True))
    return node.command("plan", str(file)).splitlines()


def test_an_image_of_the_node_fills_in_what_the_request_leaves_open(
    node: Node, images: Images, tmp_path: Path
) -> None:
    node.pull(images["configured"])
    lines = plan(node, images["configured"], tmp_path, args=["given"])
    assert lines[-1] == "exec /bin/echo entry given"
    assert "user 1000:1000 groups [1000, 4, 29]" in lines
    assert "cwd /home/kim/made" in lines
    assert "directory /volume 0755" in lines
    container = node.run_container(node.run_pod("planned"), images["configured"], args=["given"])
    node.wait_exited(container)
    assert node.output(container) == "entry given\n"
    assert list(node.status(container).user.linux.supplemental_groups) == [1000, 4, 29]


def test_a_name_in_an_image_that_is_not_there_cannot_be_planned(node: Node, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"run_as_username.*absent:1 is not on this node"):
        plan(node, "absent:1", tmp_path, command=["id"], security={"run_as_username": "kim"})


def test_a_plan_makes_nothing(node: Node, images: Images, tmp_path: Path) -> None:
    node.pull(images["busybox"])
    before = sorted(str(path) for path in node.state_dir.rglob("*") if "images" not in path.parts)
    assert plan(node, images["busybox"], tmp_path, command=["true"])[-1] == "exec true"
    after = sorted(str(path) for path in node.state_dir.rglob("*") if "images" not in path.parts)
    assert after == before
