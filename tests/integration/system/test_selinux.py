# SPDX-License-Identifier: Apache-2.0
"""Labels of SELinux on a kernel that has it, under a policy of ours that confines containers."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from pycri.cri.api import runtime_v1_pb2 as cri
from pycri.kernel.features import probe_host
from tests.world.daemon import Node, refused
from tests.world.images import Images

SELINUX = Path("/sys/fs/selinux")
POLICY = Path(__file__).parent / "selinux.conf"
LEVEL = "s0:c1,c2"
FILES = f"system_u:object_r:container_file_t:{LEVEL}"
ASKED: dict[str, Any] = {"selinux_options": {"level": LEVEL}}
SLEEP = ["sleep", "600"]

pytestmark = pytest.mark.skipif(
    not (SELINUX / "class").is_dir() or shutil.which("checkpolicy") is None,
    reason="needs SELinux in the kernel, without a policy yet, and checkpolicy",
)


@pytest.fixture(scope="module", autouse=True)
def policy(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Load the policy, for as long as the guest lives: there is no way back."""
    if any((SELINUX / "class").iterdir()):
        pytest.skip("this host has a policy of its own")
    compiled = tmp_path_factory.mktemp("policy") / "policy"
    version = (SELINUX / "policyvers").read_text()
    command = ["checkpolicy", "-M", "-U", "allow", "-c", version, "-o", str(compiled), str(POLICY)]
    subprocess.run(command, check=True, capture_output=True)
    (SELINUX / "load").write_bytes(compiled.read_bytes())
    (SELINUX / "enforce").write_text("1")


@pytest.fixture
def labelled(node: Node, images: Images, policy: None, tmp_path: Path) -> Iterator[str]:
    """A container with a label, with volumes that are relabelled and not."""
    for name in ("own", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("content\n")
        (tmp_path / name / "link").symlink_to("/etc/passwd")
    pod = node.run_pod("labelled")
    yield node.run_container(
        pod,
        images["busybox"],
        command=SLEEP,
        security=ASKED,
        mounts=[
            {"container_path": "/own", "host_path": f"{tmp_path}/own", "selinux_relabel": True},
            {"container_path": "/other", "host_path": f"{tmp_path}/other"},
        ],
    )


def label_of(path: Path | str) -> str:
    return os.getxattr(path, "security.selinux", follow_symlinks=False).rstrip(b"\0").decode()


def test_a_container_and_an_exec_in_it_have_the_label(node: Node, labelled: str) -> None:
    wanted = f"system_u:system_r:container_t:{LEVEL}"
    shown = Path(f"/proc/{node.pid(labelled)}/attr/current").read_text()
    assert shown.rstrip("\0\n") == wanted
    assert node.shell(labelled, "cat /proc/self/attr/current").rstrip("\0\n") == wanted


def test_what_is_the_containers_own_it_may_use(node: Node, labelled: str) -> None:
    script = """
        set -e
        cat /etc/passwd /etc/hosts /etc/resolv.conf /own/file >/dev/null
        for folder in / /dev /dev/shm /tmp /own; do echo new >$folder/new; cat $folder/new; done
        ls /dev/mqueue
    """
    assert node.shell(labelled, script) == "new\n" * 5


def test_what_is_the_hosts_it_may_not_use(node: Node, labelled: str, tmp_path: Path) -> None:
    denied = node.exec(labelled, "cat", "/other/file")
    assert denied.exit_code != 0
    assert b"Permission denied" in denied.stderr
    assert label_of(tmp_path / "other/file") != FILES


def test_a_volume_is_relabelled_but_not_what_its_links_lead_to(
    node: Node, labelled: str, tmp_path: Path
) -> None:
    for name in ("own", "own/file", "own/link"):
        assert label_of(tmp_path / name) == FILES
    assert label_of("/etc/passwd") != FILES


def test_a_container_of_another_level_may_not_read_the_volume(
    node: Node, labelled: str, images: Images, tmp_path: Path
) -> None:
    pod = node.run_pod("other", security={"selinux_options": {"level": "s0:c3"}})
    output = node.run_to_end(
        pod,
        images["busybox"],
        command="cat /etc/hosts >/dev/null && cat /own/file 2>&1; true",
        mounts=[{"container_path": "/own", "host_path": f"{tmp_path}/own"}],
    )
    assert "Permission denied" in output


def test_a_privileged_container_has_the_hosts_label(node: Node, images: Images) -> None:
    privileged = {"privileged": True}
    pod = node.run_pod("privileged", security=privileged)
    output = node.run_to_end(
        pod, images["busybox"], command="cat /proc/self/attr/current", security=privileged | ASKED
    )
    assert "host_t" in output


def test_a_label_that_the_policy_does_not_know_is_named(node: Node, images: Images) -> None:
    pod = node.run_pod("unknown")
    label = {"selinux_options": {"type": "no_such_t"}}
    container = node.create_container(pod, images["busybox"], security=label)
    with refused(grpc.StatusCode.INTERNAL, "no_such_t"):
        node.start_container(container)


def test_a_folder_of_the_hosts_own_keeps_its_labels(node: Node, images: Images) -> None:
    pod = node.run_pod("own")
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "config.mounts[0].selinux_relabel", "/etc"):
        node.create_container(
            pod,
            images["busybox"],
            security=ASKED,
            mounts=[{"container_path": "/x", "host_path": "/etc", "selinux_relabel": True}],
        )


@pytest.mark.skipif(not probe_host().user_namespaces, reason="needs user namespaces for pods")
def test_a_labelled_pod_with_a_user_namespace_may_use_its_own(node: Node, images: Images) -> None:
    mapping = {"host_id": 300_000, "container_id": 0, "length": 65_536}
    own = {"mode": cri.POD, "uids": [mapping], "gids": [mapping]}
    pod = node.run_pod("mapped", namespaces={"userns_options": own}, security=ASKED)
    output = node.run_to_end(
        pod,
        images["busybox"],
        command="cat /etc/passwd >/new && cat /etc/hosts >/dev/null && id -u",
    )
    assert output == "0\n"
