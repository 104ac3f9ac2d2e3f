# SPDX-License-Identifier: Apache-2.0
"""Keyrings, which no namespace separates (keyrings(7), namespaces(7))."""

import ctypes
import os
import subprocess
from pathlib import Path

from tests.world.daemon import Node
from tests.world.hostile import push_image
from tests.world.oci import Layer
from tests.world.registry import Registry

KEY = "pycri-test-secret"
SOURCE = Path(__file__).parents[2] / "world/find_key.c"
ADD_KEY = {"x86_64": 248, "aarch64": 217}[os.uname().machine]
KEYCTL = {"x86_64": 250, "aarch64": 219}[os.uname().machine]
JOIN_SESSION_KEYRING = 1
SESSION_KEYRING = -3


def put_key_in_session(secret: bytes) -> None:
    """Give this thread, and what it starts, a new session keyring that holds a key."""
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    assert syscall(KEYCTL, JOIN_SESSION_KEYRING, None) >= 0, os.strerror(ctypes.get_errno())
    added = syscall(ADD_KEY, b"user", KEY.encode(), secret, len(secret), SESSION_KEYRING)
    assert added >= 0, os.strerror(ctypes.get_errno())


def test_no_key_of_the_host_is_in_a_container_s_session(
    unstarted_node: Node, registry: Registry, tmp_path: Path
) -> None:
    """The runtime is started by a service manager whose session holds keys; a container that
    inherits the session keyring possesses them, whatever its user."""
    program = tmp_path / "find-key"
    subprocess.run(["gcc", "-Os", "-static", "-s", "-o", program, SOURCE], check=True)
    put_key_in_session(b"of the host")
    shown = subprocess.run([program, KEY], capture_output=True, text=True, check=True).stdout
    assert shown == "key: of the host\n", "the key is not where the attack looks for it"
    layer = Layer().file("find-key", program.read_bytes(), mode=0o755)
    image = push_image(registry, "find-key", layer)
    node = unstarted_node.start()
    pod = node.run_pod("keys")
    for user in (0, 1000):
        container = node.run_container(
            pod,
            image,
            name=f"user{user}",
            command=f"/find-key {KEY}; sleep 60",
            security={"run_as_user": {"value": user}},
        )
        assert node.wait_log(container, "key")[0].content == "no key"
        assert node.exec(container, "/find-key", KEY).stdout == b"no key\n"
