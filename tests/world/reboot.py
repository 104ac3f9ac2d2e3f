# SPDX-License-Identifier: Apache-2.0
"""A reboot of a node, as far as a node can tell."""

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess

from tests.world.daemon import Node


def reboot(node: Node) -> None:
    """Do to a node what a reboot does: no process, no mount, an empty run folder, another boot."""
    pids = [node.pid_of("spawner"), node.pid_of("monitor")]
    node.kill("daemon")
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    with open("/proc/self/mountinfo") as table:
        points = [line.split()[4] for line in table]
    for point in reversed([point for point in points if point.startswith(str(node.run_dir))]):
        subprocess.run(["umount", point], check=True)
    shutil.rmtree(node.run_dir)
    with contextlib.closing(sqlite3.connect(node.state_dir / "pycri.db")) as database, database:
        database.execute("UPDATE meta SET value = 'former' WHERE key = 'boot_id'")
    node.start()
