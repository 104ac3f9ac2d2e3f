# SPDX-License-Identifier: Apache-2.0
"""What other users of the node may not read: records hold environments, layers hold programs."""

import os
import subprocess
from pathlib import Path

import pytest

from pycri.cri.api import runtime_v1_pb2 as cri
from tests.world.daemon import Node, wait_until
from tests.world.images import Images

NOBODY = 65534
SECRET = "a-password-of-a-container"
SET_UID = "cp /bin/busybox /tmp/su && chmod 4755 /tmp/su && exec sleep 600"


def mode(path: Path) -> str:
    return oct(path.stat().st_mode & 0o7777)


@pytest.fixture
def pod_with_secrets(node: Node, images: Images) -> str:
    """A pod with a shared PID namespace and a container with a secret and a set-user-ID program."""
    pod = node.run_pod("secret", namespaces={"pid": cri.POD})
    container = node.run_container(
        pod, images["busybox"], command=SET_UID, env={"PASSWORD": SECRET}
    )
    found = ("sh", "-c", "test -u /tmp/su")
    wait_until(lambda: node.exec(container, *found).exit_code == 0, what="the program is there")
    return pod


@pytest.mark.usefixtures("pod_with_secrets")
def test_folders_of_the_node_are_closed_to_others(node: Node, images: Images) -> None:
    assert mode(node.state_dir) == "0o700"
    assert mode(node.run_dir / "spawner.log") == "0o600"
    for folder in ("containers", "pods"):
        (inner,) = (node.state_dir / folder).iterdir()
        assert (folder, mode(inner)) == (folder, "0o700")
    (pins,) = (node.run_dir / "ns").iterdir()
    assert mode(pins) == "0o700"
    for name in ("spawner.sock", "monitor.sock"):
        assert mode(node.run_dir / name) == "0o600"
    assert mode(node.run_dir / "pycri.sock") == "0o660"


@pytest.mark.usefixtures("pod_with_secrets")
def test_another_user_of_the_node_reaches_neither_records_nor_layers(node: Node) -> None:
    (upper,) = (node.state_dir / "containers").glob("*/upper")
    assert mode(upper / "tmp/su") == "0o4755"
    database = node.state_dir / "pycri.db"
    log = Path(f"{database}-wal")
    assert SECRET.encode() in database.read_bytes() + log.read_bytes()
    # So that the node's own folder, which the tests made, is not what keeps the other user out.
    node.folder.chmod(0o755)
    node.folder.parent.chmod(0o755)
    paths = [database, log, upper / "tmp/su", node.run_dir / "spawner.log"]
    done = subprocess.run(
        ["/bin/cat", *paths, node.config],
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        capture_output=True,
        check=False,
    )
    assert done.stderr.count(b"Permission denied") == len(paths)
    assert done.stdout == node.config.read_bytes(), "the folder above is open"


def test_an_administrator_s_mode_is_kept(node: Node) -> None:
    node.state_dir.chmod(0o750)
    try:
        node.run_pod("other")
        assert mode(node.state_dir) == "0o750"
    finally:
        os.chmod(node.state_dir, 0o700)
