# SPDX-License-Identifier: Apache-2.0
"""Whether an image may come onto the node: the policy, and the programs it asks.

A verifier is any program in a folder, in containerd's protocol for image verifiers:

    PROGRAM -name REFERENCE -digest DIGEST -stdin-media-type application/vnd.oci.descriptor.v1+json
    stdin     the descriptor of what the reference was resolved to, JSON
    stdout    why, for people; stderr goes to the log
    exit 0    it may be pulled; all programs must say so

They run in the order of their names. Other than in containerd, where the policy asks for a
verification and there is no program, or more of them than may run, the image is refused.
Source: containerd docs/image-verification.md.
"""

import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from pycri.errors import SignatureRejected
from pycri.images.content import Document
from pycri.images.policy import ImagePolicy
from pycri.images.reference import Reference
from pycri.logs import Log

_MEDIA_TYPE: Final = "application/vnd.oci.descriptor.v1+json"
_OUTPUT_LIMIT: Final = 32 * 1024
_REASON_LIMIT: Final = 500
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PIPE: Final = asyncio.subprocess.PIPE

_log = Log("images")


class Verifiers:
    """The programs in `folder`, which is read each time. timeout_s: for each of them."""

    def __init__(self, folder: Path, *, most: int, timeout_s: float) -> None:
        self._folder = folder
        self._most = most
        self._timeout_s = timeout_s

    async def verify(self, reference: Reference, root: Document) -> None:
        """Ask all programs about what a reference was resolved to. Raises: SignatureRejected."""
        names = await asyncio.to_thread(_list_programs, self._folder)
        if not names or len(names) > self._most:
            raise SignatureRejected(
                f"{reference}: the policy asks for a verification, and {self._folder} holds "
                + (f"{len(names)} verifiers, over {self._most}" if names else "no verifier")
            )
        for name in names:
            await self._ask(name, reference, root)

    async def _ask(self, name: str, reference: Reference, root: Document) -> None:
        command = (
            str(self._folder / name),
            *("-name", str(reference)),
            *("-digest", root.digest),
            *("-stdin-media-type", _MEDIA_TYPE),
        )
        try:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=_PIPE, stdout=_PIPE, stderr=_PIPE,
                env={"PATH": _PATH}, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise SignatureRejected(f"{reference}: verifier {name}: {error.strerror}") from error
        try:
            async with asyncio.timeout(self._timeout_s):
                reason, complaint, status = await _converse(process, _describe(root))
        except BaseException as error:
            await _end(process)
            if isinstance(error, TimeoutError):
                raise SignatureRejected(
                    f"{reference}: verifier {name} did not answer within {self._timeout_s:g} s"
                ) from None
            raise
        _log.debug("verifier", name=name, image=str(reference), status=status, stderr=complaint)
        if status != 0:
            raise SignatureRejected(f"{reference}: verifier {name} (status {status}): {reason}")


class Admission:
    """The policy of a node with its verifiers."""

    def __init__(self, policy: ImagePolicy, verifiers: Verifiers) -> None:
        self._policy = policy
        self._verifiers = verifiers

    def check_name(self, reference: Reference) -> None:
        """Raises: SignatureRejected if the image is not to be pulled, whatever it is."""
        verdict, pattern = self._policy.judge(reference)
        if verdict == "reject":
            raise SignatureRejected(f"{reference}: the rule for {pattern!r} rejects it")

    async def check_content(self, reference: Reference, root: Document) -> None:
        """Raises: SignatureRejected if what the name was resolved to is not to be pulled."""
        if self._policy.judge(reference)[0] == "verify":
            await self._verifiers.verify(reference, root)


def _list_programs(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []


def _describe(root: Document) -> bytes:
    size = len(root.body)
    return msgspec.json.encode({"mediaType": root.media_type, "digest": root.digest, "size": size})


async def _converse(process: asyncio.subprocess.Process, said: bytes) -> tuple[str, str, int]:
    """Return the beginnings of what a program writes to stdout and stderr, and its status."""
    assert process.stdin and process.stdout and process.stderr
    # It need not read: a broken pipe is its right.
    with suppress(BrokenPipeError, ConnectionResetError):
        process.stdin.write(said)
        process.stdin.close()
    reason, complaint = await asyncio.gather(_read(process.stdout), _read(process.stderr))
    return reason[:_REASON_LIMIT], complaint, await process.wait()


async def _read(stream: asyncio.StreamReader) -> str:
    """Read to the end, keep the beginning; what is not kept is taken all the same."""
    kept = bytearray()
    while piece := await stream.read(_OUTPUT_LIMIT):
        kept += piece[: _OUTPUT_LIMIT - len(kept)]
    return " ".join(kept.decode("utf-8", "replace").split())


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill a program and what it has started, one of which still runs: the group's id is theirs."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
