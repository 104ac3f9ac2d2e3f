# SPDX-License-Identifier: Apache-2.0
"""Profiles from text, what counts of them, and what libseccomp makes of that."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycri.errors import InvalidRequest, PycriError
from pycri.kernel.seccomp_compiler import FLAGS, compile_filter
from pycri.model.seccomp import (
    SeccompAction,
    SeccompArchitecture,
    SeccompArgument,
    SeccompFilter,
    SeccompFlag,
    SeccompOperator,
)
from pycri.plan.seccomp import parse_profile, select_rules
from pycri.plan.seccomp_default import default_profile

FIELD = "config.linux.security_context.seccomp.localhost_ref"
ALLOW, ERRNO = "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"
NONE: frozenset[str] = frozenset()


def text(**fields: Any) -> bytes:
    return json.dumps({"defaultAction": ERRNO, **fields}).encode()


def rule(*names: str, **fields: Any) -> dict[str, Any]:
    return {"names": list(names), "action": ALLOW, **fields}


def selected(
    data: bytes,
    capabilities: frozenset[str] = NONE,
    architecture: str = "amd64",
    kernel: tuple[int, int] = (6, 1),
) -> SeccompFilter:
    return select_rules(parse_profile(data, FIELD), capabilities, architecture, kernel)


def names(chosen: SeccompFilter) -> set[str]:
    return {name for rule in chosen.rules for name in rule.names}


def test_every_part_of_a_profile_is_read() -> None:
    argument = {"index": 1, "value": 3, "valueTwo": 2, "op": "SCMP_CMP_MASKED_EQ"}
    profile = parse_profile(
        text(
            defaultErrnoRet=38,
            architectures=["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_MIPS"],
            flags=["SECCOMP_FILTER_FLAG_LOG"],
            listenerPath="/run/agent",
            listenerMetadata="m",
            syscalls=[
                rule("read", "write", args=[argument]),
                {"name": "old", "action": ERRNO, "errnoRet": 5, "comment": "skipped"},
            ],
            unknown=[1],
        ),
        FIELD,
    )
    assert profile.default_action is SeccompAction.ERRNO
    assert profile.default_errno == 38
    assert profile.architectures == (SeccompArchitecture.X86_64, SeccompArchitecture.X86)
    assert profile.flags == (SeccompFlag.LOG,)
    assert (profile.listener_path, profile.listener_metadata) == ("/run/agent", "m")
    first, second = (entry.rule for entry in profile.rules)
    assert first.names == ("read", "write")
    assert first.arguments == (
        SeccompArgument(index=1, operator=SeccompOperator.MASKED_EQ, value=3, value_two=2),
    )
    assert (second.names, second.action, second.errno) == (("old",), SeccompAction.ERRNO, 5)


def test_lists_may_be_null_as_go_writes_them() -> None:
    empty = dict.fromkeys(("architectures", "archMap", "flags", "syscalls"))
    assert selected(text(**empty)).rules == ()
    one = rule("read", args=None, includes=None, excludes={"caps": None, "arches": None})
    assert names(selected(text(syscalls=[one]))) == {"read"}


BAD: list[tuple[bytes, str]] = [
    (b"", "not a seccomp profile"),
    (b"\xff\xfe", "not a seccomp profile"),
    (b"[]", "not a seccomp profile"),
    (b"{}", "defaultAction"),
    (b"[" * 100_000, "not a seccomp profile"),
    (text(defaultAction="SCMP_ACT_FLY"), "SCMP_ACT_FLY"),
    (text(defaultErrnoRet=4096), "defaultErrnoRet 4096"),
    (text(defaultErrnoRet=-1), "defaultErrnoRet -1"),
    (text(defaultAction=ALLOW, defaultErrnoRet=1), "defaultErrnoRet"),
    (text(architectures=["amd64"]), "'amd64' is not an architecture"),
    (text(architectures=["SCMP_ARCH_X86"], archMap=[{"architecture": "x"}]), "both"),
    (text(flags=["SECCOMP_FILTER_FLAG_FLY"]), "SECCOMP_FILTER_FLAG_FLY"),
    (text(listenerPath="agent"), "listenerPath 'agent'"),
    (text(syscalls=[rule()]), "syscalls[0] names no system call"),
    (text(syscalls=[rule("read"), rule("a\0b")]), "syscalls[1]"),
    (text(syscalls=[rule("read", errnoRet=1)]), "syscalls[0].errnoRet"),
    (text(syscalls=[rule("read", action="SCMP_ACT_FLY")]), "syscalls[0].action"),
    (
        text(syscalls=[rule("read", args=[{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}])]),
        "syscalls[0].args[0].index 6",
    ),
    (
        text(syscalls=[rule("read", args=[{"index": 0, "value": -1, "op": "SCMP_CMP_EQ"}])]),
        "syscalls[0].args[0]",
    ),
    (text(syscalls=[rule("read", args=[{"index": 0, "value": 0, "op": "EQ"}])]), "args[0].op"),
    (text(syscalls=[rule("read", includes={"minKernel": "new"})]), "includes.minKernel 'new'"),
    (text(defaultAction="SCMP_ACT_NOTIFY"), "SCMP_ACT_NOTIFY"),
    (text(syscalls=[rule("read", action="SCMP_ACT_NOTIFY")]), "listenerPath"),
    (
        text(listenerPath="/x", syscalls=[rule("read", action="SCMP_ACT_NOTIFY")]),
        "sendmsg to be allowed",
    ),
]


@pytest.mark.parametrize(("data", "words"), BAD)
def test_a_bad_profile_is_refused_with_field_and_place(data: bytes, words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_profile(data, FIELD)
    assert caught.value.field == FIELD
    assert words in caught.value.reason


def test_rules_count_by_capability_architecture_and_kernel() -> None:
    data = text(
        syscalls=[
            rule("always"),
            rule("admin", includes={"caps": ["CAP_SYS_ADMIN"]}),
            rule("both", includes={"caps": ["CAP_SYS_ADMIN", "CAP_BPF"]}),
            rule("others", excludes={"caps": ["CAP_SYS_ADMIN"]}),
            rule("arm", includes={"arches": ["arm64", "arm"]}),
            rule("not-arm", excludes={"arches": ["arm64"]}),
            rule("new", includes={"minKernel": "6.2"}),
            rule("old", excludes={"minKernel": "6.2"}),
        ]
    )
    assert names(selected(data)) == {"always", "others", "not-arm", "old"}
    admin = frozenset(("CAP_SYS_ADMIN",))
    assert names(selected(data, admin)) == {"always", "admin", "not-arm", "old"}
    assert "both" in names(selected(data, admin | {"CAP_BPF"}))
    assert names(selected(data, NONE, "arm64", (6, 12))) == {"always", "others", "arm", "new"}


def test_the_families_of_other_architectures_are_left_out() -> None:
    families = [
        {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
        {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
        {"architecture": "SCMP_ARCH_S390X"},
    ]
    data = text(archMap=families)
    assert selected(data).architectures == (SeccompArchitecture.X86,)
    assert selected(data, NONE, "arm64").architectures == (SeccompArchitecture.ARM,)


def test_a_rule_that_does_what_the_default_does_is_left_out() -> None:
    refused = [{"names": ["read"], "action": ERRNO}, rule("write")]
    assert names(selected(text(syscalls=refused))) == {"write"}
    assert names(selected(text(syscalls=refused, defaultErrnoRet=38))) == {"read", "write"}


def test_an_unknown_system_call_is_skipped() -> None:
    with_unknown = selected(text(syscalls=[rule("read", "not_a_call")]))
    assert compile_filter(with_unknown) == compile_filter(selected(text(syscalls=[rule("read")])))


def test_a_profile_longer_than_the_kernel_takes_is_an_error() -> None:
    arguments = [[{"index": 0, "value": n, "op": "SCMP_CMP_EQ"}] for n in range(5000)]
    many = [rule("personality", args=argument) for argument in arguments]
    with pytest.raises(ValueError, match="longer"):
        compile_filter(selected(text(syscalls=many)))


def test_flags_become_those_of_the_system_call() -> None:
    flags = [flag.value for flag in SeccompFlag]
    program = compile_filter(selected(text(flags=flags, syscalls=[rule("read")])))
    assert program.flags == FLAGS[SeccompFlag.LOG] | FLAGS[SeccompFlag.SPEC_ALLOW]
    notify = [rule("chmod", action="SCMP_ACT_NOTIFY"), rule("sendmsg")]
    data = text(flags=flags, listenerPath="/run/agent", syscalls=notify)
    program = compile_filter(selected(data))
    assert program.flags & FLAGS[SeccompFlag.WAIT_KILLABLE_RECV]
    assert program.listener_path == "/run/agent"


def test_no_capability_opens_what_the_default_profile_never_allows() -> None:
    every = {
        capability
        for entry in default_profile().rules
        for capability in entry.includes.capabilities
    }
    wanted = select_rules(default_profile(), frozenset(every), "amd64", (6, 12))
    never = ["io_uring_setup", "kexec_load", "userfaultfd", "keyctl", "add_key", "swapon"]
    assert not names(wanted) & {*never, "socketcall", "pivot_root", "nfsservctl", "uselib"}
    assert {"mount", "bpf", "chroot", "clone3"} <= names(wanted)


def test_the_default_profile_names_no_call_twice_with_the_same_conditions() -> None:
    seen: set[tuple[object, ...]] = set()
    for entry in default_profile().rules:
        for name in entry.rule.names:
            key = (name, entry.rule.arguments, entry.includes, entry.excludes)
            assert key not in seen, name
            seen.add(key)


ACTIONS = st.sampled_from([*(action.value for action in SeccompAction), "SCMP_ACT_FLY"])
NAMES = st.sampled_from(["read", "socket", "clone", "sendmsg", "no_call", "", "é", "a\0b"])
NUMBERS = st.integers(-2, 1 << 65)
ARGUMENTS = st.fixed_dictionaries(
    {
        "index": st.integers(-1, 7),
        "value": NUMBERS,
        "op": st.sampled_from([*(op.value for op in SeccompOperator), "EQ"]),
    },
    optional={"valueTwo": NUMBERS},
)
CONDITIONS = st.fixed_dictionaries(
    {},
    optional={
        "caps": st.none() | st.lists(st.sampled_from(["CAP_BPF", "x"])),
        "arches": st.none() | st.lists(st.sampled_from(["amd64", "x"])),
        "minKernel": st.sampled_from(["", "4.8", "x", "99.0", "1.1.1"]),
    },
)
SYSCALLS = st.fixed_dictionaries(
    {"action": ACTIONS, "names": st.lists(NAMES, max_size=4)},
    optional={
        "errnoRet": st.none() | st.integers(-1, 70_000),
        "args": st.none() | st.lists(ARGUMENTS, max_size=8),
        "includes": st.none() | CONDITIONS,
        "excludes": st.none() | CONDITIONS,
    },
)
ARCHITECTURES = st.sampled_from([*(a.value for a in SeccompArchitecture), "SCMP_ARCH_S390", "x"])
DOCUMENTS = st.fixed_dictionaries(
    {"defaultAction": ACTIONS},
    optional={
        "defaultErrnoRet": st.none() | st.integers(-1, 5000),
        "architectures": st.none() | st.lists(ARCHITECTURES, max_size=3),
        "archMap": st.none()
        | st.lists(st.fixed_dictionaries({"architecture": ARCHITECTURES}), max_size=2),
        "flags": st.none() | st.lists(st.sampled_from([f.value for f in SeccompFlag]), max_size=3),
        "listenerPath": st.sampled_from(["", "/run/agent", "x"]),
        "syscalls": st.none() | st.lists(SYSCALLS, max_size=4),
    },
)


def compiles_or_is_refused(data: bytes) -> None:
    try:
        wanted = selected(data)
    except PycriError:
        return
    try:
        assert compile_filter(wanted).instructions
    except ValueError as error:
        assert "compiled" in str(error) or "longer" in str(error)


@settings(max_examples=300, deadline=None)
@given(DOCUMENTS)
def test_any_document_compiles_or_is_refused_by_name(document: dict[str, Any]) -> None:
    compiles_or_is_refused(json.dumps(document).encode())


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_compile_or_are_refused_by_name(data: bytes) -> None:
    compiles_or_is_refused(data)
