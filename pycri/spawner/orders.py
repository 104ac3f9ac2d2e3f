# SPDX-License-Identifier: Apache-2.0
"""What a child is to do, and the child that was forked before anybody asked.

A fork of the spawner and the first steps of its child, each of which copies pages, take longer than
what there is to do. So one child waits, warmed up, for the next order (`Nursery.prepare`).
"""

import os
from collections.abc import Sequence

from pycri.kernel import process
from pycri.kernel.pages import Span, make_own
from pycri.model.ids import TaskId
from pycri.spawner.enter import start_exec
from pycri.spawner.init import start_container
from pycri.spawner.report import Report
from pycri.spawner.sandbox import start_sandbox
from pycri.spawner.surroundings import Surroundings
from pycri.wire.channel import Channel
from pycri.wire.messages import TO_CHILD, Exec, Order, StartContainer, StartSandbox


def target_of(order: Order) -> TaskId | None:
    """Return the task that lives in the pid namespace which the order's process is to join."""
    match order:
        case StartSandbox():
            return None
        case StartContainer():
            return order.plan.pid_target
        case Exec():
            return order.plan.container


def perform(
    order: Order, stdio: tuple[int, int, int], target: int, around: Surroundings, report: Report
) -> None:
    """Do what is asked, in the child. Returns for a sandbox only.

    stdio: the child's ends. target: pidfd of who is in the pid namespace to be joined, or -1.
    """
    match order:
        case StartSandbox():
            start_sandbox(order.plan, around, report)
        case StartContainer():
            start_container(order.plan, target, stdio, around, report)
        case Exec():
            start_exec(order.plan, target, stdio, around, report)


def await_order(
    channel: Channel, around: Surroundings, report: Report, written: Sequence[Span]
) -> None:
    """Wait for one order and perform it; the end of the connection, which is `report`'s too, is
    that of the spawner. written: memory that others have written to on this way."""
    process.hide_from_tracing()
    process.set_name("pycri-waiting")
    make_own(written)
    received = channel.receive(TO_CHILD)
    if received is None:
        os._exit(0)
    process.set_name("pycri-child")
    order, (stdin, stdout, stderr, *targets) = received
    perform(order, (stdin, stdout, stderr), targets[0] if targets else -1, around, report)
