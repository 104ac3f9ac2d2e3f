# SPDX-License-Identifier: Apache-2.0
"""The daemon's side of the unpack process: feed it a blob, read its verdict, kill it if need be."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Final

import msgspec

import pycri
from pycri.errors import CorruptImage, OutOfResources, PycriError, SetupFailed
from pycri.images.manifest import Descriptor
from pycri.images.progress import BlobSource
from pycri.model.ids import Digest
from pycri.model.image import LayerRow

_PIPE = asyncio.subprocess.PIPE
_PROGRAM: Final = "pycri.images.unpack"
# The process takes our search path as it is, and spends no time on finding one (-S). Where this
# package comes from is said, because an editable install may tell only an import hook.
_PACKAGE_ROOT: Final = str(Path(pycri.__file__).parents[1])
SEARCH_PATH: Final = os.pathsep.join(map(os.path.abspath, (_PACKAGE_ROOT, *sys.path)))


class _Verdict(msgspec.Struct, frozen=True):
    size_bytes: int = 0
    inodes: int = 0
    fingerprint: int = 0
    kind: str = ""
    message: str = ""


async def unpack_layer(
    source: BlobSource, blob: Descriptor, diff_id: Digest, folder: Path, recipe: Path
) -> LayerRow:
    """Fetch a layer's blob and unpack it into `folder`, which exists and is empty.

    recipe: the file to make for `recipes.py`, if that can be done.
    What was made is verified and synced on return; after a failure the folder holds remains.
    Raises: CorruptImage, OutOfResources, SetupFailed; what the source raises.
    """
    process = await _start(str(folder), blob.digest, diff_id, str(recipe))
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
    verdict = msgspec.json.decode(answer or b"{}", type=_Verdict)
    if process.returncode != 0 or verdict.kind:
        raise _error(verdict, process.returncode or 0)
    if not whole:
        raise CorruptImage(f"the layer {blob.digest} is not of the promised {blob.size} bytes")
    return LayerRow(
        digest=diff_id,
        size_bytes=verdict.size_bytes,
        inodes=verdict.inodes,
        fingerprint=verdict.fingerprint,
    )


async def _start(*arguments: str) -> asyncio.subprocess.Process:
    command = (sys.executable, "-S", "-P", "-X", "utf8", "-m", _PROGRAM)
    environment = {"PYTHONPATH": SEARCH_PATH}
    return await asyncio.create_subprocess_exec(
        *command, *arguments, stdin=_PIPE, stdout=_PIPE, env=environment
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


def _error(verdict: _Verdict, status: int) -> PycriError:
    match verdict.kind:
        case "corrupt":
            return CorruptImage(verdict.message)
        case "full":
            return OutOfResources(f"no room for the layer: {verdict.message}")
        case "failed":
            return SetupFailed("unpack a layer", 0, verdict.message)
    return SetupFailed("unpack a layer", 0, f"the unpack process ended with status {status}")
