# SPDX-License-Identifier: Apache-2.0
"""What holds for all unit tests."""

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Undo `logs.configure`, whose handler writes to the captured stderr of one test."""
    root, ours = logging.getLogger(), logging.getLogger("pycri")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])
