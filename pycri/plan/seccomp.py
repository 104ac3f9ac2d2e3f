# SPDX-License-Identifier: Apache-2.0
"""Seccomp profiles: from JSON to a typed profile, and from that to what counts on this host.

    text ── parse_profile ──▶ SeccompProfile ── select_rules ──▶ SeccompFilter ──▶ compiled

The JSON is that of OCI runtime-spec, config-linux.md "Seccomp", and of the wider form that Docker,
Podman and CRI-O read: `name` beside `names`, `archMap`, `includes` and `excludes`. As there, keys
that nobody knows are skipped. An action, operator or flag that nobody knows is an error: to guess
at it could let through what was to be stopped. Names of system calls are not judged here.
"""

import re

import msgspec

from pycri.errors import InvalidRequest
from pycri.model.seccomp import (
    ConditionalRule,
    SeccompAction,
    SeccompArchitecture,
    SeccompArgument,
    SeccompCondition,
    SeccompFilter,
    SeccompFlag,
    SeccompOperator,
    SeccompProfile,
    SeccompRule,
)

MAX_ERRNO = 4095
"""The kernel cuts a larger one down to it (seccomp(2), SECCOMP_RET_ERRNO)."""
_MAX_MESSAGE = 0xFFFF
"""SECCOMP_RET_DATA: what TRACE can tell its tracer."""
_EPERM = 1

NATIVE = {"amd64": SeccompArchitecture.X86_64, "arm64": SeccompArchitecture.AARCH64}
"""The host's own architecture, which every filter covers."""
_COMPATIBLE = {
    "amd64": {SeccompArchitecture.X86, SeccompArchitecture.X32},
    "arm64": {SeccompArchitecture.ARM},
}
_KERNEL = re.compile(r"([0-9]{1,4})\.([0-9]{1,4})")
_DELIVERY = "sendmsg"
"""How a container's first process hands over its notification descriptor, with the filter loaded
already: a descriptor comes only with the load."""


class _Argument(msgspec.Struct, rename="camel"):
    index: int
    op: SeccompOperator
    value: int
    value_two: int = 0


class _Condition(msgspec.Struct, rename="camel"):
    caps: list[str] | None = None
    arches: list[str] | None = None
    min_kernel: str = ""


class _Syscall(msgspec.Struct, rename="camel"):
    action: SeccompAction
    name: str = ""
    names: list[str] | None = None
    errno_ret: int | None = None
    args: list[_Argument] | None = None
    includes: _Condition | None = None
    excludes: _Condition | None = None


class _Family(msgspec.Struct, rename="camel"):
    architecture: str
    sub_architectures: list[str] | None = None


class _Document(msgspec.Struct, rename="camel"):
    default_action: SeccompAction
    default_errno_ret: int | None = None
    architectures: list[str] | None = None
    arch_map: list[_Family] | None = None
    flags: list[SeccompFlag] | None = None
    listener_path: str = ""
    listener_metadata: str = ""
    syscalls: list[_Syscall] | None = None


_documents = msgspec.json.Decoder(_Document)


def parse_profile(text: bytes, field: str) -> SeccompProfile:
    """Return the profile that a file holds. field: of the request that names the file.

    Raises: InvalidRequest naming the field, and the place in the file.
    """
    try:
        document = _documents.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(field, f"is not a seccomp profile: {error}") from error
    try:
        profile = _profile(document)
        _check_notify(profile)
    except ValueError as error:
        raise InvalidRequest(field, f"seccomp profile: {error}") from error
    return profile


def select_rules(
    profile: SeccompProfile,
    capabilities: frozenset[str],
    architecture: str,
    kernel: tuple[int, int],
) -> SeccompFilter:
    """Return what counts for a process with these capabilities in its bounding set.

    architecture: as in HostFacts. Others' rules and architectures are left out. A rule that does
    what is done by default anyway is left out too: libseccomp refuses those.
    """
    further = profile.families.get(architecture, profile.architectures)
    default = profile.default_action, profile.default_errno
    return SeccompFilter(
        default_action=profile.default_action,
        default_errno=profile.default_errno,
        architectures=tuple(a for a in further if a in _COMPATIBLE.get(architecture, ())),
        flags=profile.flags,
        rules=tuple(
            entry.rule
            for entry in profile.rules
            if _holds(entry.includes, capabilities, architecture, kernel)
            and not _touches(entry.excludes, capabilities, architecture, kernel)
            and not _same(entry.rule, *default)
        ),
        listener_path=profile.listener_path,
        listener_metadata=profile.listener_metadata,
    )


def _same(rule: SeccompRule, default_action: SeccompAction, default_errno: int) -> bool:
    with_number = rule.action in (SeccompAction.ERRNO, SeccompAction.TRACE)
    return rule.action is default_action and (not with_number or rule.errno == default_errno)


def _holds(
    condition: SeccompCondition,
    capabilities: frozenset[str],
    architecture: str,
    kernel: tuple[int, int],
) -> bool:
    """Tell whether all of a rule's `includes` is there."""
    return (
        condition.capabilities <= capabilities
        and (not condition.architectures or architecture in condition.architectures)
        and (condition.kernel is None or kernel >= condition.kernel)
    )


def _touches(
    condition: SeccompCondition,
    capabilities: frozenset[str],
    architecture: str,
    kernel: tuple[int, int],
) -> bool:
    """Tell whether any of a rule's `excludes` is there."""
    return (
        bool(condition.capabilities & capabilities)
        or architecture in condition.architectures
        or (condition.kernel is not None and kernel >= condition.kernel)
    )


def _profile(document: _Document) -> SeccompProfile:
    if document.architectures and document.arch_map:
        raise ValueError("has both architectures and archMap")
    _check_path(document.listener_path)
    return SeccompProfile(
        default_action=document.default_action,
        default_errno=_errno(
            document.default_errno_ret, document.default_action, "defaultErrnoRet"
        ),
        architectures=_architectures(document.architectures),
        families=_families(document.arch_map or []),
        flags=tuple(document.flags or ()),
        rules=tuple(
            _rule(syscall, f"syscalls[{i}]") for i, syscall in enumerate(document.syscalls or [])
        ),
        listener_path=document.listener_path,
        listener_metadata=document.listener_metadata,
    )


def _check_path(path: str) -> None:
    if path and (not path.startswith("/") or "\0" in path):
        raise ValueError(f"listenerPath {path!r} is not an absolute path")


def _check_notify(profile: SeccompProfile) -> None:
    """Refuse a notification that nobody would get, or that its own delivery would wait for."""
    rules = [entry.rule for entry in profile.rules]
    if profile.default_action is SeccompAction.NOTIFY:
        raise ValueError("SCMP_ACT_NOTIFY cannot be the defaultAction")
    if all(rule.action is not SeccompAction.NOTIFY for rule in rules):
        return
    if not profile.listener_path:
        raise ValueError("SCMP_ACT_NOTIFY needs a listenerPath")
    permissive = (SeccompAction.ALLOW, SeccompAction.LOG)
    delivering = {rule.action for rule in rules if _DELIVERY in rule.names}
    if not (delivering or {profile.default_action}) <= set(permissive):
        raise ValueError(f"SCMP_ACT_NOTIFY needs {_DELIVERY} to be allowed")


def _rule(syscall: _Syscall, place: str) -> ConditionalRule:
    names = [*(syscall.names or []), *([syscall.name] if syscall.name else [])]
    if not names:
        raise ValueError(f"{place} names no system call")
    for name in names:
        # They end in C strings; a NUL would cut one to another call's name.
        if not name.isascii() or not name.isprintable():
            raise ValueError(f"{place}: {name!r} is not the name of a system call")
    return ConditionalRule(
        rule=SeccompRule(
            names=tuple(names),
            action=syscall.action,
            errno=_errno(syscall.errno_ret, syscall.action, f"{place}.errnoRet"),
            arguments=tuple(
                _argument(argument, f"{place}.args[{i}]")
                for i, argument in enumerate(syscall.args or [])
            ),
        ),
        includes=_condition(syscall.includes, f"{place}.includes"),
        excludes=_condition(syscall.excludes, f"{place}.excludes"),
    )


def _errno(number: int | None, action: SeccompAction, place: str) -> int:
    """Return the number to be returned. Only ERRNO and TRACE have one; EPERM where it is absent."""
    if number is None:
        return _EPERM
    if action not in (SeccompAction.ERRNO, SeccompAction.TRACE):
        raise ValueError(f"{place} goes with SCMP_ACT_ERRNO and SCMP_ACT_TRACE only")
    most = MAX_ERRNO if action is SeccompAction.ERRNO else _MAX_MESSAGE
    if not 0 <= number <= most:
        raise ValueError(f"{place} {number} is not between 0 and {most}")
    return number


def _argument(argument: _Argument, place: str) -> SeccompArgument:
    if not 0 <= argument.index <= 5:
        raise ValueError(f"{place}.index {argument.index} is not between 0 and 5")
    for value in (argument.value, argument.value_two):
        if not 0 <= value < 1 << 64:
            raise ValueError(f"{place}: {value} does not fit 64 bits")
    return SeccompArgument(
        index=argument.index,
        operator=argument.op,
        value=argument.value,
        value_two=argument.value_two,
    )


def _condition(condition: _Condition | None, place: str) -> SeccompCondition:
    if condition is None:
        return SeccompCondition()
    kernel = None
    if condition.min_kernel:
        match = _KERNEL.fullmatch(condition.min_kernel)
        if match is None:
            raise ValueError(f"{place}.minKernel {condition.min_kernel!r} is not like 4.8")
        kernel = int(match[1]), int(match[2])
    return SeccompCondition(
        capabilities=frozenset(condition.caps or ()),
        architectures=frozenset(condition.arches or ()),
        kernel=kernel,
    )


def _families(entries: list[_Family]) -> dict[str, tuple[SeccompArchitecture, ...]]:
    hosts = {architecture.value: host for host, architecture in NATIVE.items()}
    return {
        hosts[entry.architecture]: _architectures(entry.sub_architectures)
        for entry in entries
        if entry.architecture in hosts
    }


def _architectures(names: list[str] | None) -> tuple[SeccompArchitecture, ...]:
    """Return those that can be compiled for; a profile often names all there are."""
    known = {member.value: member for member in SeccompArchitecture}
    for name in names or []:
        if not name.startswith("SCMP_ARCH_"):
            raise ValueError(f"{name!r} is not an architecture")
    return tuple(known[name] for name in names or [] if name in known)
