# SPDX-License-Identifier: Apache-2.0
"""The profiles that confine a container: seccomp filters compiled and cached, AppArmor names.

Compiling takes milliseconds, so programs are kept, by profile and capabilities.
"""

import hashlib
import os
import stat

from pycri.errors import InvalidRequest, Unsupported
from pycri.kernel.lsm import read_apparmor_profiles
from pycri.kernel.seccomp_compiler import compile_filter
from pycri.model.host import HostFacts
from pycri.model.seccomp import SeccompProfile, SeccompProgram
from pycri.model.security import (
    CAPABILITY_NAMES,
    DEFAULT_APPARMOR,
    ContainerSecurity,
    ProfileType,
    SecurityProfile,
)
from pycri.plan.seccomp import parse_profile, select_rules
from pycri.plan.seccomp_default import default_profile
from pycri.plan.security import plan_capabilities

FILE_LIMIT = 1 << 20
_SECCOMP = "config.linux.security_context.seccomp.localhost_ref"
_APPARMOR = "config.linux.security_context.apparmor.localhost_ref"
_CACHED = 256


class Profiles:
    """Finds what a container's security context asks for."""

    def __init__(self, host: HostFacts) -> None:
        self._host = host
        # By the profile's digest (b"" is RuntimeDefault) and the capabilities in the bounding set.
        self._programs: dict[tuple[bytes, frozenset[str]], SeccompProgram] = {}

    def seccomp(self, security: ContainerSecurity, text: bytes) -> SeccompProgram | None:
        """Return the filter's program, None for an unconfined container. text: from
        `read_seccomp_text`, at the creation.

        Raises: InvalidRequest for a profile that is none.
        """
        wanted = security.seccomp
        if wanted is None or wanted.type is ProfileType.UNCONFINED or security.privileged:
            return None
        bounding = plan_capabilities(security, self._host).bounding
        capabilities = frozenset(CAPABILITY_NAMES[number] for number in bounding)
        is_default = wanted.type is ProfileType.RUNTIME_DEFAULT
        key = b"" if is_default else hashlib.sha256(text).digest(), capabilities
        program = self._programs.get(key)
        if program is None:
            profile = default_profile() if is_default else parse_profile(text, _SECCOMP)
            if len(self._programs) >= _CACHED:
                self._programs.clear()
            program = self._programs[key] = self._compile(profile, capabilities)
        return program

    def apparmor(self, security: ContainerSecurity) -> str:
        """Return the name of the profile to execute under, "" for none.

        A request that says nothing means RuntimeDefault, as to all runtimes. That is none where
        the kernel has no AppArmor, or the daemon could not load our profile.
        Raises: Unsupported, InvalidRequest for a profile that is not loaded.
        """
        wanted = security.apparmor or SecurityProfile(type=ProfileType.RUNTIME_DEFAULT)
        if wanted.type is ProfileType.UNCONFINED or security.privileged:
            return ""
        if wanted.type is ProfileType.LOCALHOST and not self._host.apparmor:
            raise Unsupported(f"{_APPARMOR}: this kernel has no AppArmor, or it is turned off")
        if not self._host.apparmor:
            return ""
        name = wanted.localhost_ref or DEFAULT_APPARMOR
        if name in read_apparmor_profiles():
            return name
        if wanted.type is ProfileType.LOCALHOST:
            raise InvalidRequest(_APPARMOR, f"no profile {name!r} is loaded")
        return ""

    def _compile(self, profile: SeccompProfile, capabilities: frozenset[str]) -> SeccompProgram:
        rules = select_rules(profile, capabilities, self._host.architecture, self._host.kernel)
        try:
            return compile_filter(rules)
        except ValueError as error:
            raise InvalidRequest(_SECCOMP, f"seccomp profile: {error}") from error


def read_seccomp_text(security: ContainerSecurity) -> bytes:
    """Return the text of the node's profile that is asked for, b"" if none is. May block.

    Raises: InvalidRequest for a file that is missing, not readable, not plain, or too large.
    """
    wanted = security.seccomp
    if wanted is None or wanted.type is not ProfileType.LOCALHOST:
        return b""
    path = wanted.localhost_ref
    try:
        text = _read(path)
    except OSError as error:
        raise InvalidRequest(_SECCOMP, f"{path}: {error.strerror}") from error
    if len(text) > FILE_LIMIT:
        raise InvalidRequest(_SECCOMP, f"{path}: is larger than {FILE_LIMIT} bytes")
    return text


def _read(path: str) -> bytes:
    # O_NONBLOCK: a pipe must not hold up everybody else.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(22, "is not a plain file", path)
        return file.read(FILE_LIMIT + 1)
