# SPDX-License-Identifier: Apache-2.0
"""What holds for all unit tests."""

import logging
import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

# How long an example takes says more about what else the host does than about the code.
settings.register_profile("pycri", deadline=None)
settings.register_profile("fuzz", deadline=None, max_examples=10_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "pycri"))


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Undo `logs.configure`, whose handler writes to the captured stderr of one test."""
    root, ours = logging.getLogger(), logging.getLogger("pycri")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])
