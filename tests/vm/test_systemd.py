# SPDX-License-Identifier: Apache-2.0
"""Our own tests where systemd is process 1, as on most nodes: beside its groups. Only with --vm."""

import pytest

from tests.vm.guest import pass_in_guest

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
    assert "skipped" not in pass_in_guest(*TESTS, timeout_s=GUEST_TIMEOUT_S, guest=("--systemd",))
