# SPDX-License-Identifier: Apache-2.0
"""The child that the spawner forks ahead: it is there, it may be lost, it ends with the spawner."""

import os
import signal
from pathlib import Path

from tests.world.daemon import Node, is_running, wait_until
from tests.world.images import Images

NAME = "pycri-waiting\n"


def waiting(node: Node) -> list[int]:
    """Return the pids of the spawner's children that wait."""
    spawner = node.pid_of("spawner")
    children = Path(f"/proc/{spawner}/task/{spawner}/children").read_text().split()
    return [pid for pid in map(int, children) if Path(f"/proc/{pid}/comm").read_text() == NAME]


def wait_for_child(node: Node, *, other_than: int = 0) -> int:
    """Wait until the one child waits, and return its pid."""

    def found() -> int | None:
        pids = waiting(node)
        return pids[0] if len(pids) == 1 and pids[0] != other_than else None

    return wait_until(found, what="a child that waits")


def kill(child: int) -> None:
    """Kill it and wait for its end: an order that is under way to it fails, "it was killed"."""
    os.kill(child, signal.SIGKILL)
    wait_until(lambda: not is_running(child), what="its end")


def test_an_order_goes_to_the_child_that_waits_and_another_takes_its_place(
    own_node: Node, images: Images
) -> None:
    node = own_node
    container = node.run_container(node.run_pod("ahead"), images["busybox"], command="sleep 1000")
    before = wait_for_child(node)
    assert node.exec(container, "echo", "done").stdout == b"done\n"
    wait_until(lambda: not is_running(before), what="the end of who began it")
    after = wait_for_child(node, other_than=before)
    assert node.exec(container, "sh", "-c", "exit 3").exit_code == 3
    wait_until(lambda: not is_running(after), what="the end of who began that")


def test_a_killed_child_that_waits_is_missed_by_nobody(own_node: Node, images: Images) -> None:
    node = own_node
    pod = node.run_pod("missed")
    container = node.run_container(pod, images["busybox"], command="sleep 1000")
    for kind in ("exec", "container", "pod"):
        kill(wait_for_child(node))
        match kind:
            case "exec":
                assert node.exec(container, "true").exit_code == 0
            case "container":
                node.run_to_end(pod, images["busybox"], name="two", command="true")
            case _:
                node.remove_pod(node.run_pod("other"))


def test_the_child_that_waits_ends_with_its_spawner(own_node: Node, images: Images) -> None:
    node = own_node
    container = node.run_container(node.run_pod("end"), images["busybox"], command="sleep 1000")
    child = wait_for_child(node)
    node.kill("spawner")
    wait_until(lambda: not is_running(child), what="its end")
    assert node.exec(container, "true").exit_code == 0


def test_the_child_that_waits_holds_nothing_of_a_container(own_node: Node, images: Images) -> None:
    node = own_node
    node.run_container(node.run_pod("open"), images["busybox"], command="sleep 1000", stdin=True)
    child = wait_for_child(node)
    links = [os.readlink(f"/proc/{child}/fd/{fd}") for fd in os.listdir(f"/proc/{child}/fd")]
    assert not [link for link in links if link.startswith("pipe:") or "pidfd" in link], links
    assert len(links) <= 6, links


def test_the_child_that_waits_has_copied_what_those_before_it_wrote_to(
    own_node: Node, images: Images
) -> None:
    node = own_node
    container = node.run_container(node.run_pod("warm"), images["busybox"], command="sleep 1000")

    def has_learnt() -> bool:
        before = wait_for_child(node)
        assert node.exec(container, "true").exit_code == 0
        wait_until(lambda: not is_running(before), what="the end of who began it")
        return own_bytes(wait_for_child(node, other_than=before)) > 1 << 20

    # On a busy machine the first one may have ended before it is looked at.
    wait_until(has_learnt, what="a child with memory of its own")


def own_bytes(child: int) -> int:
    """Return how much memory a child has that it shares with nobody."""
    for line in Path(f"/proc/{child}/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_Dirty:"):
            return int(line.split()[1]) << 10
    return 0
