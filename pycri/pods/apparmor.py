# SPDX-License-Identifier: Apache-2.0
"""Load our AppArmor profile: the only user of the program `apparmor_parser` (apparmor(7)).

The kernel keeps a profile until it is removed or the machine is started anew. It is loaded at each
start of the daemon, in place of an older one; running containers go on under the new.
"""

import asyncio
import os
import shutil
from typing import Final

from pycri.errors import Unavailable
from pycri.plan.apparmor import render_default_profile

PARSER_TIMEOUT_S: Final = 30.0
_PATH = "/usr/sbin:/sbin"
_ABI = "/etc/apparmor.d/abi/3.0"


async def load_default_profile() -> None:
    """Load the profile RuntimeDefault. Raises: Unavailable if apparmor_parser is missing or
    refuses it."""
    text = await asyncio.to_thread(_read_text)
    program = shutil.which("apparmor_parser", path=_PATH)
    if program is None:
        raise Unavailable("the program apparmor_parser (package apparmor) is not installed")
    process = await asyncio.create_subprocess_exec(
        program,
        "--replace",
        "--skip-cache",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(PARSER_TIMEOUT_S):
            _, complaint = await process.communicate(text.encode())
    except BaseException:
        process.kill()
        await process.wait()
        raise
    if process.returncode != 0:
        words = complaint.decode(errors="replace").strip()
        raise Unavailable(f"apparmor_parser failed with status {process.returncode}: {words}")


def _read_text() -> str:
    return render_default_profile(abi=os.path.exists(_ABI))
