# SPDX-License-Identifier: Apache-2.0
"""The daemon's side of the settle process."""

from pathlib import Path

from pycri.images import programs
from pycri.model.ids import Digest
from pycri.model.image import LayerRow, chain_ids


async def settle_layer(
    stack: tuple[Digest, ...], folder: Path, claims: Path, layers: tuple[str, ...]
) -> LayerRow:
    """Do what the last layer of `stack`, bottom first, claims of the others; `folder` is empty.

    layers: their folders for an overlay mount, topmost first.
    What was made is synced on return; after a failure the folder holds remains.
    Raises: CorruptImage, OutOfResources, SetupFailed.
    """
    verdict = await programs.run("settle", str(folder), str(claims), *layers)
    return LayerRow(
        digest=chain_ids(stack)[-1],
        size_bytes=verdict.size_bytes,
        inodes=verdict.inodes,
        fingerprint=verdict.fingerprint,
        stack=stack,
    )
