# SPDX-License-Identifier: Apache-2.0
"""Labels under Debian's kernel with SELinux in place of AppArmor, enforcing. Only with --vm."""

import pytest

from tests.vm.guest import pass_in_guest

GUEST_TIMEOUT_S = 900


@pytest.mark.vm
@pytest.mark.root
@pytest.mark.timeout(GUEST_TIMEOUT_S + 60)
def test_containers_are_confined_by_their_labels() -> None:
    pass_in_guest(
        "system/test_selinux.py",
        timeout_s=GUEST_TIMEOUT_S,
        guest=("--kernel-option=security=selinux",),
    )
