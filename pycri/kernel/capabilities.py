# SPDX-License-Identifier: Apache-2.0
"""Identity and capability sets of the calling process (capabilities(7), credentials(7))."""

import os

import prctl

from pycri.kernel.syscalls import capset
from pycri.kernel.syscalls import prctl as raw_prctl

# python-prctl knows capabilities up to the headers it was built with; the kernel may have more,
# and one forgotten in the bounding set is one given away. So these go by number.
_PR_CAPBSET_READ = 23
_PR_CAPBSET_DROP = 24
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_PR_CAP_AMBIENT_CLEAR_ALL = 4


def read_last_capability() -> int:
    """Return the highest capability number this kernel knows."""
    with open("/proc/sys/kernel/cap_last_cap") as file:
        return int(file.read())


def read_bounding(last: int) -> frozenset[int]:
    """Return the numbers in the caller's bounding set."""
    return frozenset(n for n in range(last + 1) if raw_prctl(_PR_CAPBSET_READ, n))


def limit_bounding(keep: tuple[int, ...], last: int) -> None:
    """Drop every capability but `keep` from the bounding set, for good."""
    for number in range(last + 1):
        if number not in keep:
            raw_prctl(_PR_CAPBSET_DROP, number)


def switch_user(uid: int, gid: int, groups: tuple[int, ...]) -> None:
    """Become another user, keeping permitted capabilities for the set_capabilities that follows."""
    prctl.set_keepcaps(1)
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def set_capabilities(
    *,
    effective: tuple[int, ...],
    permitted: tuple[int, ...],
    inheritable: tuple[int, ...],
    ambient: tuple[int, ...],
) -> None:
    """Set the four sets of the caller; ambient ones must be permitted and inheritable too."""
    capset(_mask(effective), _mask(permitted), _mask(inheritable))
    raw_prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    for number in ambient:
        raw_prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, number)


def set_no_new_privileges() -> None:
    """No later exec gains privileges (prctl(2) PR_SET_NO_NEW_PRIVS)."""
    prctl.set_no_new_privs(1)


def _mask(numbers: tuple[int, ...]) -> int:
    return sum(1 << number for number in set(numbers))
