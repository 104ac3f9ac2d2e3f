# SPDX-License-Identifier: Apache-2.0
"""Nodes for tests of the whole: one shared by a module, or one of a test's own."""

import os
from collections.abc import Callable, Iterator

import pytest

# The tests start programs from a process with gRPC threads; they never fork to go on in Python.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from tests.world import leaks
from tests.world.daemon import Node
from tests.world.images import Images


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
