# SPDX-License-Identifier: Apache-2.0
"""Seccomp from within: the default filter, the node's profiles, each action, a real agent."""

import array
import errno
import fcntl
import json
import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from pycri.cri.api import runtime_v1_pb2 as cri
from pycri.model.seccomp import SeccompFlag
from tests.world.daemon import Node, refused
from tests.world.images import Images

DEFAULT = {"seccomp": {"profile_type": cri.SecurityProfile.RuntimeDefault}}
FIELDS = "grep -E '^(Seccomp|CapPrm|NoNewPrivs):' /proc/self/status"
FIELD = "config.linux.security_context.seccomp.localhost_ref"
CHMOD = ["chmod", "fchmodat", "fchmodat2"]
SIGSYS = 31


def localhost(path: Path) -> dict[str, Any]:
    profile_type = cri.SecurityProfile.Localhost
    return {"seccomp": {"profile_type": profile_type, "localhost_ref": str(path)}}


Write = Callable[..., Path]


@pytest.fixture
def write(node: Node) -> Iterator[Write]:
    """Write a profile that allows all but `names`, and return its path."""
    path = node.folder / "profile.json"

    def write(action: str, names: list[str], **fields: Any) -> Path:
        rule = {"names": names, "action": action}
        if "errnoRet" in fields:
            rule["errnoRet"] = fields.pop("errnoRet")
        profile = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule], **fields}
        path.write_text(json.dumps(profile))
        return path

    yield write
    path.unlink(missing_ok=True)


def status_fields(text: str) -> dict[str, int]:
    return {line.split()[0].rstrip(":"): int(line.split()[1], 16) for line in text.splitlines()}


@pytest.mark.parametrize(
    ("security", "mode"),
    [
        (DEFAULT, 2),
        ({**DEFAULT, "no_new_privs": True}, 2),
        ({"seccomp_profile_path": "runtime/default"}, 2),
        ({"seccomp": {"profile_type": cri.SecurityProfile.Unconfined}}, 0),
        ({"seccomp_profile_path": "unconfined"}, 0),
        ({"seccomp_profile_path": ""}, 0),
        ({}, 0),
    ],
)
def test_a_container_and_its_execs_have_the_mode_asked_for(
    security: dict[str, Any], mode: int, node: Node, images: Images
) -> None:
    pod = node.run_pod("mode")
    script = f"{FIELDS}; exec sleep 60"
    container = node.run_container(pod, images["busybox"], command=script, security=security)
    lines = node.wait_log(container, "Seccomp:")
    assert f"Seccomp:\t{mode}" in [line.content for line in lines]
    assert status_fields(node.shell(container, FIELDS))["Seccomp"] == mode


def test_a_privileged_container_is_not_filtered(node: Node, images: Images) -> None:
    pod = node.run_pod("privileged", security={"privileged": True})
    security = {**DEFAULT, "privileged": True}
    output = node.run_to_end(pod, images["busybox"], command=FIELDS, security=security)
    assert status_fields(output)["Seccomp"] == 0


@pytest.mark.parametrize("no_new_privs", [False, True])
@pytest.mark.parametrize(("user", "permitted"), [(0, 1 << 7), (1000, 0)])
def test_loading_the_filter_leaves_no_capability_behind(
    user: int, permitted: int, no_new_privs: bool, node: Node, images: Images
) -> None:
    security = {
        **DEFAULT,
        "run_as_user": {"value": user},
        "no_new_privs": no_new_privs,
        "capabilities": {"drop_capabilities": ["ALL"], "add_capabilities": ["SETUID"]},
    }
    pod = node.run_pod("left")
    output = node.run_to_end(pod, images["busybox"], command=FIELDS, security=security)
    assert status_fields(output) == {
        "Seccomp": 2,
        "CapPrm": permitted,
        "NoNewPrivs": int(no_new_privs),
    }


@pytest.mark.parametrize("no_new_privs", [False, True])
def test_a_container_in_a_user_namespace_is_filtered_too(
    no_new_privs: bool, node: Node, images: Images
) -> None:
    ids = [{"host_id": 200_000, "container_id": 0, "length": 65536}]
    own = {"mode": cri.POD, "uids": ids, "gids": ids}
    pod = node.run_pod("mapped", namespaces={"userns_options": own})
    security = {**DEFAULT, "no_new_privs": no_new_privs}
    container = node.run_container(
        pod, images["busybox"], command=["sleep", "60"], security=security
    )
    assert status_fields(node.shell(container, FIELDS))["Seccomp"] == 2


def test_what_cannot_be_executed_under_a_filter_fails_the_start(node: Node, images: Images) -> None:
    pod = node.run_pod("format")
    for name, command in (("missing", "no-such-program"), ("data", "/etc/passwd")):
        with refused(grpc.StatusCode.INTERNAL, command):
            node.run_container(
                pod, images["busybox"], name=name, command=[command], security=DEFAULT
            )


@pytest.mark.parametrize("no_new_privs", [False, True])
def test_every_flag_is_taken(no_new_privs: bool, node: Node, images: Images, write: Write) -> None:
    path = write("SCMP_ACT_ERRNO", CHMOD, flags=[flag.value for flag in SeccompFlag])
    pod = node.run_pod("flags")
    security = {**localhost(path), "no_new_privs": no_new_privs}
    output = node.run_to_end(pod, images["busybox"], command=FIELDS, security=security)
    assert status_fields(output)["Seccomp"] == 2


def test_the_default_filter_lets_nobody_make_namespaces_but_with_sys_admin(
    node: Node, images: Images
) -> None:
    pod = node.run_pod("unshare")
    script = "unshare -U true && echo made || echo refused"
    image = images["busybox"]
    assert node.run_to_end(pod, image, command=script, security=DEFAULT) == "refused\n"
    admin = {**DEFAULT, "capabilities": {"add_capabilities": ["SYS_ADMIN"]}}
    assert node.run_to_end(pod, image, name="two", command=script, security=admin) == "made\n"


def test_a_profile_of_the_node_returns_its_errno(node: Node, images: Images, write: Write) -> None:
    path = write("SCMP_ACT_ERRNO", CHMOD, errnoRet=errno.ENOTNAM)
    pod = node.run_pod("errno")
    script = "touch file; chmod 600 file 2>&1; stat -c %a file"
    output = node.run_to_end(pod, images["busybox"], command=script, security=localhost(path))
    assert os.strerror(errno.ENOTNAM) in output
    assert output.endswith("644\n")


def test_a_blocked_sethostname_fails_with_eperm(node: Node, images: Images, write: Write) -> None:
    path = write("SCMP_ACT_ERRNO", ["sethostname"])
    security = {**localhost(path), "capabilities": {"add_capabilities": ["SYS_ADMIN"]}}
    pod = node.run_pod("hostname")
    script = "hostname other 2>&1; hostname"
    output = node.run_to_end(pod, images["busybox"], command=script, security=security)
    assert output.endswith("Operation not permitted\nhostname\n")


@pytest.mark.parametrize(
    ("action", "exit_code"),
    [
        ("SCMP_ACT_KILL", 128 + SIGSYS),
        ("SCMP_ACT_KILL_THREAD", 128 + SIGSYS),
        ("SCMP_ACT_KILL_PROCESS", 128 + SIGSYS),
        ("SCMP_ACT_TRAP", 128 + SIGSYS),
        # Nobody traces: the call fails with ENOSYS, seccomp(2).
        ("SCMP_ACT_TRACE", 1),
        ("SCMP_ACT_LOG", 0),
        ("SCMP_ACT_ALLOW", 0),
    ],
)
def test_each_action_does_what_it_says(
    action: str, exit_code: int, node: Node, images: Images, write: Write
) -> None:
    path = write(action, CHMOD)
    pod = node.run_pod("action")
    container = node.run_container(
        pod, images["busybox"], command=["chmod", "600", "/etc"], security=localhost(path)
    )
    assert node.wait_exited(container).exit_code == exit_code


def test_a_filter_need_not_allow_what_it_takes_to_start(node: Node, images: Images) -> None:
    names = ["execve", "exit_group", "exit", "write", "brk", "mmap", "munmap", "mprotect"]
    names += ["arch_prctl", "set_tid_address", "set_robust_list", "rseq", "prlimit64"]
    names += ["readlink", "readlinkat", "getrandom", "getuid", "uname", "futex", "madvise"]
    names += ["rt_sigprocmask", "rt_sigaction", "prctl", "fstat", "newfstatat"]
    names += ["getgid", "setgid", "setuid"]  # busybox itself
    profile = {
        "defaultAction": "SCMP_ACT_KILL_PROCESS",
        "syscalls": [{"names": names, "action": "SCMP_ACT_ALLOW"}],
    }
    path = node.folder / "narrow.json"
    path.write_text(json.dumps(profile))
    security = {**localhost(path), "run_as_user": {"value": 1000}}
    pod = node.run_pod("narrow")
    output = node.run_to_end(pod, images["busybox"], command=["echo", "narrow"], security=security)
    assert output == "narrow\n"
    with refused(grpc.StatusCode.INTERNAL, "no-such-program"):
        node.run_container(
            pod, images["busybox"], name="two", command=["no-such-program"], security=security
        )


def test_the_profile_is_that_of_the_creation_whatever_becomes_of_the_file(
    own_node: Node, images: Images, tmp_path: Path
) -> None:
    path = tmp_path / "profile.json"
    rule = {"names": CHMOD, "action": "SCMP_ACT_ERRNO"}
    path.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    pod = own_node.run_pod("gone")
    container = own_node.create_container(
        pod, images["busybox"], command=["sleep", "60"], security=localhost(path)
    )
    path.unlink()
    own_node.start_container(container)
    assert own_node.exec(container, "chmod", "600", "/etc").exit_code == 1
    own_node.restart()
    assert own_node.exec(container, "chmod", "600", "/etc").exit_code == 1


BAD: list[tuple[bytes, str]] = [
    (b"", "not a seccomp profile"),
    (b"{}", "defaultAction"),
    (b'{"defaultAction": "SCMP_ACT_SMILE"}', "SCMP_ACT_SMILE"),
    (b'{"defaultAction": "SCMP_ACT_NOTIFY"}', "SCMP_ACT_NOTIFY"),
]


@pytest.mark.parametrize(("text", "word"), BAD)
def test_a_bad_profile_is_refused_by_field_and_word(
    text: bytes, word: str, node: Node, images: Images
) -> None:
    path = node.folder / "bad.json"
    path.write_bytes(text)
    pod = node.run_pod("bad")
    with refused(grpc.StatusCode.INVALID_ARGUMENT, FIELD, word):
        node.create_container(pod, images["busybox"], security=localhost(path))


def test_a_file_that_is_none_is_refused(node: Node, images: Images) -> None:
    pipe = node.folder / "pipe"
    os.mkfifo(pipe)
    large = node.folder / "large"
    large.write_bytes(b" " * ((1 << 20) + 1))
    pod = node.run_pod("none")
    for path in (node.folder / "missing.json", node.folder, pipe, large):
        with refused(grpc.StatusCode.INVALID_ARGUMENT, FIELD, str(path)):
            node.create_container(pod, images["busybox"], security=localhost(path))
    with refused(grpc.StatusCode.INVALID_ARGUMENT, FIELD, "absolute"):
        node.create_container(pod, images["busybox"], security=localhost(Path("relative.json")))


# struct seccomp_notif and seccomp_notif_resp, linux/seccomp.h
NOTIFICATION = struct.Struct("=QIIiIQ6Q")
RESPONSE = struct.Struct("=QqiI")
RECEIVE = 0xC0502100
SEND = 0xC0182101


class Agent:
    """A seccomp agent: takes the descriptor, answers each notification with an errno."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(20)
        self._socket.bind(str(path))
        self._socket.listen()

    def accept(self) -> tuple[dict[str, Any], int]:
        connection, _ = self._socket.accept()
        with connection:
            connection.settimeout(20)
            text, rights, _, _ = connection.recvmsg(1 << 16, socket.CMSG_SPACE(4))
        fds = array.array("i")
        fds.frombytes(rights[0][2])
        return json.loads(text), fds[0]

    @staticmethod
    def refuse(listener: int, number: int) -> int:
        """Wait for a notification, fail the call, and return its pid as the agent sees it."""
        buffer = bytearray(NOTIFICATION.size)
        fcntl.ioctl(listener, RECEIVE, buffer)
        notification = NOTIFICATION.unpack(buffer)
        fcntl.ioctl(listener, SEND, bytearray(RESPONSE.pack(notification[0], 0, -number, 0)))
        return int(notification[1])

    def close(self) -> None:
        self._socket.close()
        self.path.unlink()


@pytest.fixture
def agent(node: Node) -> Iterator[Agent]:
    agent = Agent(node.folder / "agent.sock")
    yield agent
    agent.close()


def test_an_agent_gets_the_notifications_of_a_container_and_of_its_execs(
    node: Node, images: Images, write: Write, agent: Agent
) -> None:
    path = write(
        "SCMP_ACT_NOTIFY", CHMOD, listenerPath=str(agent.path), listenerMetadata="what it is for"
    )
    script = "chmod 600 /etc 2>&1; exec sleep 60"
    pod = node.run_pod("notify")
    container = node.run_container(pod, images["busybox"], command=script, security=localhost(path))
    state, listener = agent.accept()
    first = node.pid(container)
    assert state["metadata"] == "what it is for"
    assert state["fds"] == ["seccompFd"]
    assert state["pid"] == state["state"]["pid"] == first
    assert state["state"]["id"] == container
    assert state["state"]["status"] == "creating"
    agent.refuse(listener, errno.ENOTNAM)
    os.close(listener)
    node.wait_log(container, os.strerror(errno.ENOTNAM))

    node.shell(container, "true")
    state, listener = agent.accept()
    os.close(listener)
    assert state["state"]["status"] == "running"
    assert state["state"]["pid"] == first != state["pid"]


def test_a_missing_agent_fails_the_start(node: Node, images: Images, write: Write) -> None:
    path = write("SCMP_ACT_NOTIFY", CHMOD, listenerPath=str(node.folder / "nobody.sock"))
    pod = node.run_pod("nobody")
    with refused(grpc.StatusCode.INTERNAL, "seccomp agent", "nobody.sock"):
        node.run_container(pod, images["busybox"], security=localhost(path))
