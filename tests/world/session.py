# SPDX-License-Identifier: Apache-2.0
"""Who this test session is: the mark that everything it makes carries.

Several sessions may run on one host at once. Each has an id of four hex digits, which is part of
the names of its bridges, tables, cgroups and folders, and is in the environment of its programs
(PYCRI_TEST). Claims (of the session's own existence, of an address range) are abstract unix
sockets: atomic, visible to all in /proc/net/unix, and gone with the process.
"""

import os
import secrets
import socket

MARK_VARIABLE = "PYCRI_TEST"
TIME_FACTOR = float(os.environ.get("PYCRI_TEST_TIME_FACTOR", "1"))
"""How much longer this host may take than a plain one; scripts/vm sets it for emulated guests."""

_CLAIM = "pycri-test"

session_id = secrets.token_hex(2)
_claims: dict[str, socket.socket] = {}


def claim(name: str) -> bool:
    """Claim `name` on this host until this process ends; False if another has it."""
    holder = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        holder.bind(f"\0{_CLAIM}/{name}")
    except OSError:
        holder.close()
        return False
    _claims[name] = holder
    return True


def release(name: str) -> None:
    """Give up a claim of this process."""
    _claims.pop(name).close()


def release_all() -> None:
    """Give up every claim of this process."""
    while _claims:
        _claims.popitem()[1].close()


def claimed(prefix: str) -> set[str]:
    """Return the claims of all sessions on this host that begin with `prefix`."""
    start = f"@{_CLAIM}/{prefix}"
    with open("/proc/net/unix") as table:
        paths = [line.split()[-1] for line in table]
    return {path.removeprefix(f"@{_CLAIM}/") for path in paths if path.startswith(start)}


def claim_session() -> None:
    """Claim this session's id, drawing another while it is taken."""
    global session_id
    while not claim(f"session/{session_id}"):
        session_id = secrets.token_hex(2)


def is_alone() -> bool:
    """Tell whether nothing else on this host makes what our tests make, as far as is known."""
    if "PYCRI_TEST_SHARED_HOST" in os.environ:
        return False
    return claimed("session/") <= {f"session/{session_id}"}


def claim_subnet() -> str:
    """Claim and return an unused /24 of 10.97.0.0/16, the range of test pods: "10.97.N.0/24"."""
    with open("/proc/net/route") as table:
        routed = {line.split()[1] for line in table}
    for number in range(1, 255):
        # /proc/net/route prints addresses as little-endian hex.
        if f"00{number:02X}610A" not in routed and claim(f"subnet/{number}"):
            return f"10.97.{number}.0/24"
    raise RuntimeError("every test address range is in use")


def release_subnet(subnet: str) -> None:
    """Give back what `claim_subnet` returned."""
    release(f"subnet/{subnet.split('.')[2]}")


def environment() -> dict[str, str]:
    """Return the environment for programs of this session: ours and the mark."""
    return {**os.environ, MARK_VARIABLE: session_id}
