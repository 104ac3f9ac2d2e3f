# SPDX-License-Identifier: Apache-2.0
"""The programs of this package: started as processes beside the daemon, and what they answer.

    unpack   a layer's blob to its folder
    settle   what a layer claims of those beneath it
    pack     a layer's folder to its archive

Each prints one JSON object and ends with status 0; a bad layer is an answer, not a failure.
"""

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

import pycri
from pycri.errors import CorruptImage, OutOfResources, SetupFailed

# The process takes our search path as it is, and spends no time on finding one (-S). Where this
# package comes from is said, because an editable install may tell only an import hook.
_PACKAGE_ROOT: Final = str(Path(pycri.__file__).parents[1])
_SEARCH_PATH: Final = os.pathsep.join(map(os.path.abspath, (_PACKAGE_ROOT, *sys.path)))


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a program answers; kind: "" for success, "corrupt", "full" or "failed"."""

    size_bytes: int = 0
    inodes: int = 0
    fingerprint: int = 0
    claims: str = ""
    tree: str = ""
    kind: str = ""
    message: str = ""


async def start(
    program: str, *arguments: str, stdin: int = asyncio.subprocess.DEVNULL, fds: Sequence[int] = ()
) -> asyncio.subprocess.Process:
    """Start a program; its answer comes from `stdout`. fds: further ones that it gets, borrowed."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-S", "-P", "-X", "utf8", "-m", f"pycri.images.{program}", *arguments),
        stdin=stdin,
        stdout=asyncio.subprocess.PIPE,
        pass_fds=fds,
        env={"PYTHONPATH": _SEARCH_PATH},
    )


def read_verdict(program: str, answer: bytes, status: int) -> Verdict:
    """Return the answer of a program that ended with `status`.

    Raises: CorruptImage, OutOfResources, SetupFailed.
    """
    verdict = msgspec.json.decode(answer or b"{}", type=Verdict)
    match verdict.kind:
        case "corrupt":
            raise CorruptImage(verdict.message)
        case "full":
            raise OutOfResources(f"no room to {program} a layer: {verdict.message}")
    if status != 0 or verdict.kind:
        reason = verdict.message or f"the {program} process ended with status {status}"
        raise SetupFailed(f"{program} a layer", 0, reason)
    return verdict


async def run(program: str, *arguments: str, fds: Sequence[int] = ()) -> Verdict:
    """Run a program to its end; killed if the caller is cancelled. Raises: as `read_verdict`."""
    process = await start(program, *arguments, fds=fds)
    try:
        answer, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return read_verdict(program, answer, process.returncode or 0)
