# SPDX-License-Identifier: Apache-2.0
"""The daemon's side of the unpack process: feed it a blob, read its verdict, kill it if need be."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from pathlib import Path

from pycri.errors import CorruptImage
from pycri.images import programs
from pycri.images.manifest import Descriptor
from pycri.images.progress import BlobSource
from pycri.model.ids import Digest
from pycri.model.image import LayerRow


async def unpack_layer(
    source: BlobSource, blob: Descriptor, diff_id: Digest, folder: Path, recipe: Path
) -> LayerRow:
    """Fetch a layer's blob and unpack it into `folder`, which exists and is empty.

    recipe: the file to make for `recipes.py`, if that can be done; claims are beside it.
    What was made is verified and synced on return; after a failure the folder holds remains.
    Raises: CorruptImage, OutOfResources, SetupFailed; what the source raises.
    """
    arguments = (str(folder), blob.digest, diff_id, str(recipe))
    process = await programs.start("unpack", *arguments, stdin=asyncio.subprocess.PIPE)
    assert process.stdin and process.stdout
    try:
        whole = await _feed(process.stdin, source, blob)
        answer = await process.stdout.read()
        await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
        process.stdin.close()
        # Its end says whether all was taken, which the verdict says better.
        with suppress(BrokenPipeError, ConnectionResetError):
            await process.stdin.wait_closed()
        await process.wait()
    verdict = programs.read_verdict("unpack", answer, process.returncode or 0)
    if not whole:
        raise CorruptImage(f"the layer {blob.digest} is not of the promised {blob.size} bytes")
    return LayerRow(
        digest=diff_id,
        size_bytes=verdict.size_bytes,
        inodes=verdict.inodes,
        fingerprint=verdict.fingerprint,
        claims=verdict.claims,
        tree=verdict.tree,
    )


async def _feed(sink: asyncio.StreamWriter, source: BlobSource, blob: Descriptor) -> bool:
    """Pass the blob on as fast as it is taken; tell whether it has its promised size.

    A process that has seen enough of a bad layer closes its end: its verdict says why.
    """
    received = 0
    pieces: AsyncIterator[bytes] = source.blob(blob)
    async with aclosing(pieces):  # type: ignore[type-var]
        async for piece in pieces:
            received += len(piece)
            if received > blob.size:
                break
            try:
                sink.write(piece)
                await sink.drain()
            except (BrokenPipeError, ConnectionResetError):
                return True
    sink.close()
    return received == blob.size
