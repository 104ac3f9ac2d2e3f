# SPDX-License-Identifier: Apache-2.0
"""Labels under Debian's kernel with SELinux in place of AppArmor, enforcing. Only with --vm."""

import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent.parent
TESTS = CHECKOUT / "tests/integration/system/test_selinux.py"
GUEST_TIMEOUT_S = 900


@pytest.mark.vm
@pytest.mark.root
@pytest.mark.timeout(GUEST_TIMEOUT_S + 60)
def test_containers_are_confined_by_their_labels() -> None:
    options = ["-q", "--color=no", "--timeout=400", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [CHECKOUT / "scripts/vm", f"--timeout={GUEST_TIMEOUT_S}",
         "--kernel-option=security=selinux", sys.executable, "-m", "pytest", *options, TESTS],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.returncode}: {done.stdout}{done.stderr}"
    assert " passed" in done.stdout
