# SPDX-License-Identifier: Apache-2.0
"""The verbs about images, as a person at the node uses them: a real daemon, a real registry."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.world import session
from tests.world.daemon import Node
from tests.world.images import Images, build_busybox
from tests.world.registry import PASSWORD, USERNAME, Registry


def start(node: Node, *words: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pycri", *words, "--socket", f"{node.run_dir}/pycri.sock"]
    environment = session.environment() | options.pop("env", {})
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen(command, env=environment, text=True, **streams)


def run(node: Node, *words: str, **options: Any) -> tuple[int, str, str]:
    """Run a verb; return its exit status, stdout and stderr."""
    process = start(node, *words, **options)
    stdout, stderr = process.communicate(timeout=60)
    return process.returncode, stdout, stderr


def succeed(node: Node, *words: str, **options: Any) -> str:
    status, stdout, stderr = run(node, *words, **options)
    assert status == 0, stderr
    return stdout


def test_a_pull_tells_a_log_which_layers_have_come(own_node: Node, images: Images) -> None:
    status, stdout, stderr = run(own_node, "pull", images["layered"])
    assert (status, stdout) == (0, images.image("layered").config + "\n")
    lines = sorted(stderr.splitlines())
    assert [line.split()[0] for line in lines] == sorted(
        digest.removeprefix("sha256:")[:12] for digest in images.image("layered").layers
    )
    assert all(re.fullmatch(r"[0-9a-f]{12} +\d+\.\d MB  done", line) for line in lines)


def test_a_pull_shows_a_terminal_a_bar_for_each_layer(own_node: Node, images: Images) -> None:
    leader, follower = pty.openpty()
    with os.fdopen(leader, "rb", buffering=0) as terminal:
        process = start(own_node, "pull", images["layered"], stderr=follower, env={"TERM": "linux"})
        os.close(follower)
        shown = b""
        try:
            while piece := terminal.read(4096):
                shown += piece
        except OSError:  # EIO: the other end is closed
            pass
        assert process.communicate()[0] == images.image("layered").config + "\n"
    for digest in images.image("layered").layers:
        assert digest.removeprefix("sha256:")[:12].encode() in shown
    assert b"done" in shown


def test_credentials_are_asked_for_and_used(own_node: Node, tmp_path: Path) -> None:
    with Registry.start(tmp_path, auth=True) as registry:
        registry.push(build_busybox(), "tests/private")
        reference = registry.reference("tests/private")
        status, _, stderr = run(own_node, "pull", reference)
        assert status == 1 and "PERMISSION_DENIED" in stderr
        environment = {"PYCRI_CREDENTIALS": f"{USERNAME}:{PASSWORD}"}
        pulled = succeed(own_node, "pull", reference, "--creds", env=environment)
        assert pulled.startswith("sha256:")
    assert PASSWORD not in own_node.daemon_log()
