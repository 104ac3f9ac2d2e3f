# SPDX-License-Identifier: Apache-2.0
"""The processes that live as long as any pod need no more memory for what has come and gone.

Not so the daemon: when it collects what it has dropped is up to the interpreter.
"""

import re
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from tests.world.daemon import Node, refused
from tests.world.images import Images

ROUNDS = 100
LIMIT_BYTES = ROUNDS * 1000
"""An order that is kept takes 5,000 bytes (an exec) to 20,000 (a container)."""


def read_anonymous(node: Node) -> dict[str, int]:
    """Return the bytes of anonymous memory of each of them."""
    return {
        name: int(re.findall(r"^Anonymous: +(\d+) kB", _rollup(node.pid_of(name)), re.M)[0]) << 10
        for name in ("spawner", "monitor")
    }


def _rollup(pid: int) -> str:
    return Path(f"/proc/{pid}/smaps_rollup").read_text()


def run_pods(node: Node, image: str) -> Callable[[], object]:
    def live() -> None:
        pod = node.run_pod("passing")
        node.run_to_end(pod, image, command=["true"])
        node.remove_pod(pod)

    return live


def run_commands(node: Node, image: str) -> Callable[[], object]:
    container = start_sleeper(node, image)
    return lambda: node.exec(container, "true")


def run_what_is_not_there(node: Node, image: str) -> Callable[[], object]:
    container = start_sleeper(node, image)

    def fail() -> None:
        with refused(grpc.StatusCode.INTERNAL, "not-there"):
            node.exec(container, "not-there")

    return fail


def start_sleeper(node: Node, image: str) -> str:
    return node.run_container(node.run_pod("growth"), image, command=["sleep", "600"])


@pytest.mark.parametrize(
    "make", [run_pods, run_commands, run_what_is_not_there], ids=["pods", "execs", "failures"]
)
def test_what_has_come_and_gone_is_forgotten(
    make: Callable[[Node, str], Callable[[], object]], node: Node, images: Images
) -> None:
    act = make(node, images["busybox"])
    for _ in range(ROUNDS // 2):
        act()
    before = read_anonymous(node)
    for _ in range(ROUNDS):
        act()
    grown = {name: size - before[name] for name, size in read_anonymous(node).items()}
    assert {name: size for name, size in grown.items() if size > LIMIT_BYTES} == {}
