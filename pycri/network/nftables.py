# SPDX-License-Identifier: Apache-2.0
"""Our table of nftables: the only user of the program `nft` (nft(8)).

    table ip NAME
      chain postrouting (nat)    what leaves the pod ranges gets the address of the way out

The table is ours alone and is replaced as a whole in one transaction of the kernel; no other table
is touched. A host whose own forward chains drop by default must let the bridge through itself.
"""

import asyncio
from collections.abc import Sequence
from ipaddress import IPv4Network
from typing import Final

from pycri import errors

NFT_TIMEOUT_S: Final = 30.0


def render_table(table: str, ranges: Sequence[IPv4Network]) -> str:
    """Return the script that puts the table in place of an older one, if there is one."""
    # "add" makes "delete" safe where there is no table yet: nft has no "delete if exists".
    # fully-random: two pods that send from the same port at once else race for one mapping, and
    # the loser's first packet (a DNS query, mostly) is dropped.
    pods = ", ".join(str(network) for network in ranges)
    return f"""\
add table ip {table}
delete table ip {table}
table ip {table} {{
    chain postrouting {{
        type nat hook postrouting priority srcnat;
        ip saddr {{ {pods} }} ip daddr != {{ {pods} }} masquerade fully-random
    }}
}}
"""


async def write_table(table: str, ranges: Sequence[IPv4Network]) -> None:
    """Masquerade what leaves `ranges`. Raises: Unavailable if nft is missing or refuses."""
    await _run_nft(render_table(table, ranges))


async def remove_table(table: str) -> None:
    """Remove the table; absent is fine. Raises: Unavailable if nft is missing or refuses."""
    await _run_nft(f"add table ip {table}\ndelete table ip {table}\n")


async def _run_nft(script: str) -> None:
    try:
        process = await asyncio.create_subprocess_exec(
            "nft",
            "-f",
            "-",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as error:
        raise errors.Unavailable(f"the program nft (nftables) cannot run: {error}") from error
    try:
        async with asyncio.timeout(NFT_TIMEOUT_S):
            _, complaint = await process.communicate(script.encode())
    except BaseException:
        process.kill()
        await process.wait()
        raise
    if process.returncode != 0:
        text = complaint.decode(errors="replace").strip()
        raise errors.Unavailable(f"nft failed with status {process.returncode}: {text}")
