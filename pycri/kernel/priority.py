# SPDX-License-Identifier: Apache-2.0
"""How urgent the calling thread's work is, for the scheduler and for the disk."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from pycri.kernel.syscalls import ioprio_set

_LESS_URGENT: Final = 10
_BEST_EFFORT_LAST: Final = 2 << 13 | 7


def go_first() -> bool:
    """Let this thread run as soon as it is woken, before ordinary work; tell whether it may.

    SCHED_FIFO 1 (sched(7)), the lowest that does. Nothing inherits it, no thread and no child.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except OSError:  # no privilege, or a control group without a real-time budget
        return False
    return True


@contextmanager
def at_leisure() -> Iterator[None]:
    """Do in a thread that goes first what takes long: as ordinary work, in turns with others'."""
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def work_behind() -> None:
    """Let others go first where there is not enough for all; threads begun later do as well.

    nice 10 is a tenth of an ordinary process's share (sched(7)); ioprio_set(2): best-effort, 7.
    """
    os.setpriority(os.PRIO_PROCESS, 0, max(_LESS_URGENT, os.getpriority(os.PRIO_PROCESS, 0)))
    # A kernel without block devices' schedulers has nothing to set.
    with suppress(OSError):
        ioprio_set(_BEST_EFFORT_LAST)
