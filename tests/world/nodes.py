# SPDX-License-Identifier: Apache-2.0
"""Nodes for tests of the whole: one shared by a module, or one of a test's own."""

import os
from collections.abc import Callable, Generator, Iterator

import pytest

# The tests start programs from a process with gRPC threads; they never fork to go on in Python.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from tests.world import leaks
from tests.world.daemon import Node
from tests.world.images import Images


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the end of each running daemon's log with what failed."""
    report = yield
    for node in Node.open if report.failed else ():
        log = node.folder / "daemon.log"
        if log.exists():
            report.sections.append((f"end of the log of {node.name}", log.read_text()[-6000:]))
    return report


@pytest.fixture(scope="module")
def shared_node(scope: leaks.Scope, images: Images) -> Iterator[Node]:
    """A node for the tests of one module. Use `node`, which is empty at each test's start."""
    node = Node(scope)
    try:
        node.start()
        node.warm(images["busybox"])
        yield node
    finally:
        node.close()


@pytest.fixture
def node(shared_node: Node) -> Iterator[Node]:
    """A running node without pods; its images stay for the module."""
    yield shared_node
    shared_node.clear()


@pytest.fixture
def make_node(scope: leaks.Scope, images: Images) -> Iterator[Callable[..., Node]]:
    """Make and start a node of the test's own; its arguments are those of Node."""
    nodes: list[Node] = []

    def make(settings: str = "", prefix: int = 24) -> Node:
        nodes.append(Node(scope, settings=settings, prefix=prefix))
        return nodes[-1].start()

    yield make
    for node in nodes:
        node.close()


@pytest.fixture
def own_node(make_node: Callable[..., Node]) -> Node:
    """A running node of the test's own, for tests that end its processes."""
    return make_node()


@pytest.fixture
def unstarted_node(scope: leaks.Scope, images: Images) -> Iterator[Node]:
    """A node of the test's own that the test starts."""
    node = Node(scope)
    yield node
    node.close()
