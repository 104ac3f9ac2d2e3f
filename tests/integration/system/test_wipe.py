# SPDX-License-Identifier: Apache-2.0
"""`pycri wipe` is over when nothing of the node is left but its images."""

import os
import subprocess

from tests.integration.faults.test_waiting_child import wait_for_child
from tests.world.daemon import Node, is_running
from tests.world.images import Images


def test_after_a_wipe_nothing_runs_and_the_file_system_of_the_run_folder_is_free(
    unstarted_node: Node, images: Images
) -> None:
    node = unstarted_node
    node.run_dir.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", node.run_dir], check=True)
    try:
        node.start()
        container = node.run_container(
            node.run_pod("wiped"), images["busybox"], command="sleep 1000"
        )
        assert node.exec(container, "true").exit_code == 0
        processes = [node.pid_of("spawner"), node.pid_of("monitor"), wait_for_child(node)]
        processes.append(node.pid(container))
        node.wipe()
        assert not [pid for pid in processes if is_running(pid)]
        assert os.listdir(node.run_dir) == []
    finally:
        subprocess.run(["umount", node.run_dir], check=True)
