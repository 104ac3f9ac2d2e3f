# SPDX-License-Identifier: Apache-2.0
"""A file system of one's own, ext4 with a journal in a file, as a node has it.

The host's may be another: ext4 without a journal makes files some twenty times slower for five
minutes after others were removed, which would be measured, or waited for, instead.
"""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def own_disk(file: Path, folder: Path, size_bytes: int) -> Iterator[None]:
    """Make a file system in `file`, which has holes, and mount it on `folder`."""
    with open(file, "wb") as image:
        image.truncate(size_bytes)
    # All of it is made now, not by a thread of the kernel while we measure.
    options = "lazy_itable_init=0,lazy_journal_init=0"
    subprocess.run(["mkfs.ext4", "-q", "-E", options, file], check=True)
    subprocess.run(["mount", "-o", "loop", file, folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)
        file.unlink()
