# SPDX-License-Identifier: Apache-2.0
"""Settings of the host's network below /proc/sys, of the daemon's network namespace.

Forwarding concerns the whole host. What it was before is recorded by the caller, to be put back
when pycri is removed from the host.
"""

import contextlib
import os
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

_ROOT: Final = "/proc/sys/"
_IPV4_FORWARDING: Final = "net/ipv4/ip_forward"
_IPV6_FORWARDING: Final = "net/ipv6/conf/all/forwarding"


class Change(msgspec.Struct, frozen=True):
    """A setting, and what it was and is to be."""

    name: str
    old: str
    new: str


def read(name: str) -> str | None:
    """Return a setting, or None if this kernel does not have it."""
    try:
        with open(_ROOT + name) as file:
            return file.read().strip()
    except FileNotFoundError:
        return None


def write(name: str, value: str) -> None:
    """Set it if it is another; one that this kernel lacks is left out."""
    with contextlib.suppress(FileNotFoundError), open(_ROOT + name, "r+") as file:
        if file.read().strip() != value:
            file.seek(0)
            file.write(value)


def plan_forwarding(versions: Iterable[int]) -> list[Change]:
    """Return what has to change so that the host forwards these IP versions, in order.

    An interface that listens to routers (accept_ra 1) would stop to when IPv6 is forwarded, and
    the host would lose its way out; 2 is "also then" (kernel's ip-sysctl.rst).
    """
    wanted = {}
    if 4 in versions:
        wanted[_IPV4_FORWARDING] = "1"
    if 6 in versions and read(_IPV6_FORWARDING) == "0":
        for name in sorted(os.listdir(f"{_ROOT}net/ipv6/conf")):
            setting = f"net/ipv6/conf/{name}/accept_ra"
            if name not in ("all", "lo") and read(setting) == "1":
                wanted[setting] = "2"
        wanted[_IPV6_FORWARDING] = "1"
    found = [(name, read(name), value) for name, value in wanted.items()]
    return [Change(name, old, new) for name, old, new in found if old is not None and old != new]


def apply(changes: Iterable[Change]) -> None:
    """Make the changes, in order."""
    for change in changes:
        write(change.name, change.new)


def restore(changes: Mapping[str, Change]) -> None:
    """Put back, last first, what is still as it was set."""
    for change in reversed(list(changes.values())):
        if read(change.name) == change.new:
            write(change.name, change.old)
