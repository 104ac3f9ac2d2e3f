# SPDX-License-Identifier: Apache-2.0
"""A node for the comparison with other runtimes."""

import os
from collections.abc import Iterator

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
