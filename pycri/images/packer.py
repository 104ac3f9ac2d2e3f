# SPDX-License-Identifier: Apache-2.0
"""The daemon's side of the pack process: have a layer's archive made again, or compared."""

import asyncio
import sys
from pathlib import Path
from typing import Final

import msgspec

from pycri.errors import CorruptImage, OutOfResources, SetupFailed
from pycri.images.unpacker import SEARCH_PATH
from pycri.model.ids import Digest

_PROGRAM: Final = "pycri.images.pack"


class _Verdict(msgspec.Struct, frozen=True):
    size_bytes: int = 0
    kind: str = ""
    message: str = ""


async def write_archive(folder: Path, recipe: Path, diff_id: Digest, output_fd: int) -> int:
    """Write the archive of a layer to `output_fd`, borrowed; return its size in bytes.

    Raises: CorruptImage if the layer is not what was unpacked, with part of it written;
        OutOfResources, SetupFailed.
    """
    return await _run((str(folder), str(recipe), diff_id, str(output_fd)), (output_fd,))


async def check_layer(folder: Path, recipe: Path, diff_id: Digest) -> None:
    """Compare a layer with its archive.

    Raises: CorruptImage, naming the first difference; SetupFailed.
    """
    await _run((str(folder), str(recipe), diff_id, "check"), ())


async def _run(arguments: tuple[str, ...], fds: tuple[int, ...]) -> int:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-S", "-P", "-X", "utf8", "-m", _PROGRAM, *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        pass_fds=fds,
        env={"PYTHONPATH": SEARCH_PATH},
    )
    try:
        answer, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    verdict = msgspec.json.decode(answer or b"{}", type=_Verdict)
    if verdict.kind == "corrupt":
        raise CorruptImage(verdict.message)
    if verdict.kind == "full":
        raise OutOfResources(f"no room for the archive: {verdict.message}")
    if process.returncode != 0 or verdict.kind:
        reason = verdict.message or f"the pack process ended with status {process.returncode}"
        raise SetupFailed("pack a layer", 0, reason)
    return verdict.size_bytes
