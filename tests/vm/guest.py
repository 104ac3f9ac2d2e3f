# SPDX-License-Identifier: Apache-2.0
"""Our own tests, run again in an emulated guest (`scripts/vm`)."""

import subprocess
import sys
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parent.parent.parent


def pass_in_guest(
    *tests: str, timeout_s: int, guest: tuple[str, ...] = (), options: tuple[str, ...] = ()
) -> str:
    """Run tests of tests/integration in a guest, assert that they pass, return what pytest printed.

    timeout_s: how long the guest may live. guest: options of scripts/vm. options: of pytest.
    """
    pytest = ["-m", "pytest", "-q", "--color=no", "--timeout=400", "-p", "no:cacheprovider"]
    paths = [str(_CHECKOUT / "tests/integration" / test) for test in tests]
    done = subprocess.run(
        [_CHECKOUT / "scripts/vm", f"--timeout={timeout_s}", *guest,
         sys.executable, *pytest, *options, *paths],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.returncode}: {done.stdout}{done.stderr}"
    assert " passed" in done.stdout
    return done.stdout
