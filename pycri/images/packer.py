# SPDX-License-Identifier: Apache-2.0
"""The daemon's side of the pack process: have a layer's archive made again, or compared."""

from pathlib import Path

from pycri.images import programs
from pycri.model.ids import Digest


async def write_archive(folder: Path, recipe: Path, diff_id: Digest, output_fd: int) -> int:
    """Write the archive of a layer to `output_fd`, borrowed; return its size in bytes.

    Raises: CorruptImage if the layer is not what was unpacked, with part of it written;
        OutOfResources, SetupFailed.
    """
    arguments = (str(folder), str(recipe), diff_id, str(output_fd))
    return (await programs.run("pack", *arguments, fds=(output_fd,))).size_bytes


async def check_layer(folder: Path, recipe: Path, diff_id: Digest) -> None:
    """Compare a layer with its archive.

    Raises: CorruptImage, naming the first difference; SetupFailed.
    """
    await programs.run("pack", str(folder), str(recipe), diff_id, "check")


async def read_tree_digest(folder: Path) -> str:
    """Return the digest of all that a folder holds. Raises: SetupFailed."""
    return (await programs.run("pack", str(folder))).tree
