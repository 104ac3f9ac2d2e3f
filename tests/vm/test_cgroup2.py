# SPDX-License-Identifier: Apache-2.0
"""Our own tests under Debian's kernel, in an emulated guest with version 2 of cgroups alone.

That kernel, 6.1, is also older than much that pycri has a second way for: overlay's "lowerdir+"
(6.8), exit codes by pidfd (6.15). Only with --vm: each module takes minutes.
"""

import pytest

from tests.vm.guest import pass_in_guest

MODULES = (
    "faults/test_kill.py",
    "kernel/test_device_filter.py",
    "kernel/test_overlay.py",
    "system/test_cgroup2.py",
    "system/test_exec.py",
    "system/test_lifecycle.py",
    "system/test_metrics.py",
    "system/test_namespaces.py",
    "system/test_propagation.py",
    "system/test_resources.py",
    "system/test_stats.py",
    "system/test_stop.py",
)
GUEST_TIMEOUT_S = 1200


@pytest.mark.vm
@pytest.mark.root
@pytest.mark.timeout(GUEST_TIMEOUT_S + 60)
@pytest.mark.parametrize("module", MODULES)
def test_the_tests_of_a_module_pass_under_debian_s_kernel(
    module: str, request: pytest.FixtureRequest
) -> None:
    seed = f"--seed={request.config.option.seed}"
    pass_in_guest(module, timeout_s=GUEST_TIMEOUT_S, options=(seed,))
