# SPDX-License-Identifier: Apache-2.0
"""How urgent the calling thread's work is, for the scheduler and for the disk."""

import os
from contextlib import suppress
from typing import Final

from pycri.kernel.syscalls import ioprio_set

_LESS_URGENT: Final = 10
_BEST_EFFORT_LAST: Final = 2 << 13 | 7


def work_behind() -> None:
    """Let others go first where there is not enough for all; threads begun later do as well.

    nice 10 is a tenth of an ordinary process's share (sched(7)); ioprio_set(2): best-effort, 7.
    """
    os.setpriority(os.PRIO_PROCESS, 0, max(_LESS_URGENT, os.getpriority(os.PRIO_PROCESS, 0)))
    # A kernel without block devices' schedulers has nothing to set.
    with suppress(OSError):
        ioprio_set(_BEST_EFFORT_LAST)
