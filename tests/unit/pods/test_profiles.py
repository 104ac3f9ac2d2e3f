# SPDX-License-Identifier: Apache-2.0
"""Which profile a security context means, on a node without AppArmor; what is compiled twice."""

import pytest

from pycri.errors import Unsupported
from pycri.model.security import ContainerSecurity, ProfileType, SecurityProfile
from pycri.pods.profiles import Profiles
from tests.unit.plan.samples import host_v2

DEFAULT = SecurityProfile(type=ProfileType.RUNTIME_DEFAULT)
LOCALHOST = SecurityProfile(type=ProfileType.LOCALHOST, localhost_ref="/p.json")
ALLOWING = b'{"defaultAction": "SCMP_ACT_ALLOW"}'


@pytest.fixture
def profiles() -> Profiles:
    return Profiles(host_v2(architecture="amd64"))


def test_a_program_is_compiled_once_for_a_profile_and_its_capabilities(profiles: Profiles) -> None:
    security = ContainerSecurity(seccomp=DEFAULT)
    program = profiles.seccomp(security, b"")
    assert program is not None
    assert profiles.seccomp(security, b"") is program
    admin = ContainerSecurity(seccomp=DEFAULT, add_capabilities=("SYS_ADMIN",))
    other = profiles.seccomp(admin, b"")
    assert other is not None
    assert other.instructions != program.instructions
    own = profiles.seccomp(ContainerSecurity(seccomp=LOCALHOST), ALLOWING)
    assert own not in (program, other, None)


def test_nothing_filters_a_privileged_container_or_one_that_asks_for_none(
    profiles: Profiles,
) -> None:
    unconfined = SecurityProfile(type=ProfileType.UNCONFINED)
    for security in (
        ContainerSecurity(),
        ContainerSecurity(seccomp=unconfined),
        ContainerSecurity(seccomp=DEFAULT, privileged=True),
    ):
        assert profiles.seccomp(security, b"") is None


def test_without_apparmor_only_a_profile_that_is_named_is_an_error(profiles: Profiles) -> None:
    assert profiles.apparmor(ContainerSecurity()) == ""
    assert profiles.apparmor(ContainerSecurity(apparmor=DEFAULT)) == ""
    with pytest.raises(Unsupported, match=r"apparmor\.localhost_ref"):
        profiles.apparmor(ContainerSecurity(apparmor=LOCALHOST))
