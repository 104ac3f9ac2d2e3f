# SPDX-License-Identifier: Apache-2.0
"""Our AppArmor profile on a kernel that has AppArmor: loaded, entered, and what it denies."""

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from pycri.errors import InvalidRequest
from pycri.kernel import lsm
from pycri.kernel.features import probe_host
from pycri.kernel.process import fork
from pycri.model.security import (
    DEFAULT_APPARMOR,
    ContainerSecurity,
    ProfileType,
    SecurityProfile,
)
from pycri.plan.apparmor import render_default_profile
from pycri.pods.apparmor import load_default_profile
from pycri.pods.profiles import Profiles

pytestmark = pytest.mark.skipif(
    not probe_host().apparmor or shutil.which("apparmor_parser", path="/usr/sbin:/sbin") is None,
    reason="needs AppArmor in the kernel, and apparmor_parser",
)

DENIED = {
    "sysrq": "echo h >/proc/sysrq-trigger",
    "kcore": "head -c 1 /proc/kcore",
    "sysctl": "cat /proc/sys/net/ipv4/ip_forward >/proc/sys/net/ipv4/ip_forward",
    "core pattern": "cat /proc/sys/kernel/core_pattern >/proc/sys/kernel/core_pattern",
    "irq": "cat /proc/irq/default_smp_affinity >/proc/irq/default_smp_affinity",
    "uevent helper": "echo >/sys/kernel/uevent_helper",
    "securityfs": "cat /sys/kernel/security/apparmor/profiles",
    "mount": "mount --bind /proc /proc",
    "other profile": 'echo "changeprofile unconfined" >/proc/self/attr/current',
}
ALLOWED = {
    "pipe": "echo x | grep -q x",
    "own file of proc": "cat /proc/self/oom_score_adj >/proc/self/oom_score_adj",
    "sysctl of the ipc namespace": "cat /proc/sys/kernel/shmmax >/proc/sys/kernel/shmmax",
    "signal": "sleep 60 & kill $!; wait $!; test $? = 143",
}


@pytest.fixture(scope="module", autouse=True)
def _loaded() -> Iterator[None]:
    was_loaded = DEFAULT_APPARMOR in lsm.read_apparmor_profiles()
    asyncio.run(load_default_profile())
    yield
    if not was_loaded:
        text = render_default_profile(abi=False).encode()
        subprocess.run(["apparmor_parser", "--remove"], input=text, check=True)


def run_confined(script: str) -> int:
    def child() -> None:
        proc_fd = lsm.open_proc()
        lsm.set_apparmor_exec(proc_fd, DEFAULT_APPARMOR)
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        os.execve("/bin/busybox", ["sh", "-c", script], environment)

    _, status = os.waitpid(fork(child), 0)
    return os.waitstatus_to_exitcode(status)


def test_the_profile_is_entered_at_the_execve() -> None:
    assert run_confined(f"grep -q '^{DEFAULT_APPARMOR} (enforce)' /proc/self/attr/current") == 0


@pytest.mark.parametrize("name", DENIED)
def test_what_reaches_the_node_is_denied(name: str) -> None:
    assert run_confined(f"({DENIED[name]}) >/dev/null 2>&1") != 0


@pytest.mark.parametrize("name", ALLOWED)
def test_what_is_the_container_s_own_is_allowed(name: str) -> None:
    assert run_confined(f"({ALLOWED[name]}) >/dev/null 2>&1") == 0


def test_a_request_gets_the_profile_it_names_or_means() -> None:
    profiles = Profiles(probe_host())

    def chosen(kind: ProfileType, name: str = "", *, privileged: bool = False) -> str:
        asked = SecurityProfile(type=kind, localhost_ref=name)
        return profiles.apparmor(ContainerSecurity(apparmor=asked, privileged=privileged))

    assert profiles.apparmor(ContainerSecurity()) == DEFAULT_APPARMOR
    assert chosen(ProfileType.RUNTIME_DEFAULT) == DEFAULT_APPARMOR
    assert chosen(ProfileType.LOCALHOST, DEFAULT_APPARMOR) == DEFAULT_APPARMOR
    assert chosen(ProfileType.UNCONFINED) == ""
    assert chosen(ProfileType.RUNTIME_DEFAULT, privileged=True) == ""
    with pytest.raises(InvalidRequest, match="no profile 'nobody-s' is loaded"):
        chosen(ProfileType.LOCALHOST, "nobody-s")
