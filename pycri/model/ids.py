# SPDX-License-Identifier: Apache-2.0
"""Identifiers. Pods, containers and execs: 64 lower-case hex digits; images: "sha256:" and 64."""

import re
from typing import NewType

PodId = NewType("PodId", str)
ContainerId = NewType("ContainerId", str)
ImageId = NewType("ImageId", str)
Digest = NewType("Digest", str)
"""`algorithm:hex`, sha256 only (OCI image-spec, descriptor digests)."""
TaskId = NewType("TaskId", str)
"""What the spawner keeps: a container's id, a pod's id (its init), or an exec's id."""

_ID = re.compile(r"[0-9a-f]{64}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def is_id(text: str) -> bool:
    """Tell whether `text` has the form of a pod's, container's or exec's id."""
    return _ID.fullmatch(text) is not None


def is_digest(text: str) -> bool:
    """Tell whether `text` is a sha256 digest in OCI form."""
    return _DIGEST.fullmatch(text) is not None
