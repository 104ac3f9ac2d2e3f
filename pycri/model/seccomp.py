# SPDX-License-Identifier: Apache-2.0
"""Seccomp: profiles as written down, and programs as the kernel takes them.

Source: OCI runtime-spec, config-linux.md "Seccomp"; `includes`, `excludes` and `archMap` are those
of the profiles that Docker, Podman and CRI-O ship.
"""

import enum

import msgspec


class SeccompAction(enum.Enum):
    """What becomes of a system call; values are the OCI's names."""

    ALLOW = "SCMP_ACT_ALLOW"
    ERRNO = "SCMP_ACT_ERRNO"
    KILL = "SCMP_ACT_KILL"
    KILL_THREAD = "SCMP_ACT_KILL_THREAD"
    KILL_PROCESS = "SCMP_ACT_KILL_PROCESS"
    LOG = "SCMP_ACT_LOG"
    NOTIFY = "SCMP_ACT_NOTIFY"
    TRACE = "SCMP_ACT_TRACE"
    TRAP = "SCMP_ACT_TRAP"


class SeccompOperator(enum.Enum):
    """How an argument is compared."""

    NE = "SCMP_CMP_NE"
    LT = "SCMP_CMP_LT"
    LE = "SCMP_CMP_LE"
    EQ = "SCMP_CMP_EQ"
    GE = "SCMP_CMP_GE"
    GT = "SCMP_CMP_GT"
    MASKED_EQ = "SCMP_CMP_MASKED_EQ"


class SeccompFlag(enum.Enum):
    """Flags of the filter; values are the OCI's names."""

    TSYNC = "SECCOMP_FILTER_FLAG_TSYNC"
    LOG = "SECCOMP_FILTER_FLAG_LOG"
    SPEC_ALLOW = "SECCOMP_FILTER_FLAG_SPEC_ALLOW"
    WAIT_KILLABLE_RECV = "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"


class SeccompArchitecture(enum.Enum):
    """Architectures a filter can be compiled for here; others' names are known and skipped."""

    X86_64 = "SCMP_ARCH_X86_64"
    X86 = "SCMP_ARCH_X86"
    X32 = "SCMP_ARCH_X32"
    AARCH64 = "SCMP_ARCH_AARCH64"
    ARM = "SCMP_ARCH_ARM"


class SeccompArgument(msgspec.Struct, frozen=True, kw_only=True):
    """A condition on argument `index`, 0 to 5.

    With MASKED_EQ `value` is the mask and `value_two` what the masked argument must be.
    """

    index: int
    operator: SeccompOperator
    value: int
    value_two: int = 0


class SeccompRule(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of some system calls, if all `arguments` hold.

    errno: what ERRNO returns, or the message of TRACE to its tracer.
    """

    names: tuple[str, ...]
    action: SeccompAction = SeccompAction.ALLOW
    errno: int = 1
    arguments: tuple[SeccompArgument, ...] = ()


class SeccompCondition(msgspec.Struct, frozen=True, kw_only=True):
    """When a rule counts. Empty parts say nothing.

    capabilities: names, CAP_SYS_ADMIN. architectures: as in HostFacts, "amd64".
    kernel: the least, (major, minor).
    """

    capabilities: frozenset[str] = frozenset()
    architectures: frozenset[str] = frozenset()
    kernel: tuple[int, int] | None = None


class ConditionalRule(msgspec.Struct, frozen=True, kw_only=True):
    """A rule that counts if all of `includes` holds and nothing of `excludes`."""

    rule: SeccompRule
    includes: SeccompCondition = SeccompCondition()
    excludes: SeccompCondition = SeccompCondition()


class SeccompProfile(msgspec.Struct, frozen=True, kw_only=True):
    """A profile as written down.

    architectures: further ones besides the host's. families: of each main architecture ("amd64")
    those that belong to it; a profile has either this or `architectures`.
    listener_path, listener_metadata: where NOTIFY sends its descriptor, and what goes with it.
    """

    default_action: SeccompAction
    default_errno: int = 1
    architectures: tuple[SeccompArchitecture, ...] = ()
    families: dict[str, tuple[SeccompArchitecture, ...]] = {}
    flags: tuple[SeccompFlag, ...] = ()
    rules: tuple[ConditionalRule, ...] = ()
    listener_path: str = ""
    listener_metadata: str = ""


class SeccompFilter(msgspec.Struct, frozen=True, kw_only=True):
    """What counts of a profile on one host for one set of capabilities: ready to be compiled."""

    default_action: SeccompAction
    default_errno: int
    architectures: tuple[SeccompArchitecture, ...]
    flags: tuple[SeccompFlag, ...]
    rules: tuple[SeccompRule, ...]
    listener_path: str = ""
    listener_metadata: str = ""


class SeccompProgram(msgspec.Struct, frozen=True, kw_only=True):
    """A compiled filter. instructions: of classic BPF, 8 bytes each. flags: of seccomp(2).

    listener_path: of the socket that gets the notification descriptor, or "".
    """

    instructions: bytes
    flags: int = 0
    listener_path: str = ""
    listener_metadata: str = ""
