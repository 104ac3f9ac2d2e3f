# SPDX-License-Identifier: Apache-2.0
"""What the tests of the CRI's server share."""

import os
import tempfile
from collections.abc import Iterator

import pytest


@pytest.fixture
def path() -> Iterator[str]:
    """A short path: sun_path holds 108 bytes."""
    with tempfile.TemporaryDirectory(prefix="pycri-") as folder:
        yield f"{folder}/pycri.sock"
        assert not os.listdir(folder), "the server left something behind"
