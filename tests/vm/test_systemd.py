# SPDX-License-Identifier: Apache-2.0
"""Our own tests where systemd is process 1, as on most nodes: beside its groups. Only with --vm."""

import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent.parent
TESTS = (
    "faults/test_kill.py::test_a_service_manager_s_restart_ends_nothing",
    "system/test_cgroup2.py",
    "system/test_life.py::test_a_slice_is_systemd_s_to_make",
    "system/test_lifecycle.py",
)
GUEST_TIMEOUT_S = 900


@pytest.mark.vm
@pytest.mark.root
@pytest.mark.timeout(GUEST_TIMEOUT_S + 60)
def test_pods_live_beside_systemd() -> None:
    options = ["-q", "--color=no", "--timeout=400", "-p", "no:cacheprovider"]
    tests = [str(CHECKOUT / "tests/integration" / test) for test in TESTS]
    done = subprocess.run(
        [CHECKOUT / "scripts/vm", f"--timeout={GUEST_TIMEOUT_S}", "--systemd",
         sys.executable, "-m", "pytest", *options, *tests],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.returncode}: {done.stdout}{done.stderr}"
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
