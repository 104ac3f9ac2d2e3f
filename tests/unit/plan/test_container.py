# SPDX-License-Identifier: Apache-2.0
import msgspec
import pytest

from pycri.errors import InvalidRequest
from pycri.model.container import ContainerRecord
from pycri.model.ids import ImageId, TaskId
from pycri.model.plan import ContainerPlan
from pycri.model.resources import Resources
from pycri.model.security import ContainerSecurity, NamespaceMode, NamespaceModes, User
from pycri.model.streams import ExecRequest
from pycri.plan.container import container_cgroup, plan_container, plan_exec
from tests.unit.plan.samples import (
    CONTAINER_ID,
    POD_ID,
    container_inputs,
    container_spec,
    host_v2,
    pod_spec,
)

OTHER = TaskId("0d" * 32)
EXEC = TaskId("ee" * 32)


def pid_plan(pod: NamespaceMode, container: NamespaceMode) -> tuple[str, TaskId | None]:
    plan = plan_container(
        container_inputs(
            pod=pod_spec(namespaces=NamespaceModes(pid=pod)),
            security=ContainerSecurity(namespaces=NamespaceModes(pid=container)),
            pid_target=OTHER if container is NamespaceMode.TARGET else None,
        )
    )
    return plan.pid_namespace, plan.pid_target


@pytest.mark.parametrize(
    ("pod", "container", "expected"),
    [
        (NamespaceMode.POD, NamespaceMode.POD, ("join", TaskId(POD_ID))),
        (NamespaceMode.NODE, NamespaceMode.POD, ("host", None)),
        (NamespaceMode.CONTAINER, NamespaceMode.POD, ("new", None)),
        (NamespaceMode.POD, NamespaceMode.CONTAINER, ("new", None)),
        (NamespaceMode.NODE, NamespaceMode.NODE, ("host", None)),
        (NamespaceMode.CONTAINER, NamespaceMode.TARGET, ("join", OTHER)),
    ],
)
def test_the_pid_namespace_follows_container_and_pod(
    pod: NamespaceMode, container: NamespaceMode, expected: tuple[str, TaskId | None]
) -> None:
    assert pid_plan(pod, container) == expected


def test_a_target_must_be_known() -> None:
    security = ContainerSecurity(namespaces=NamespaceModes(pid=NamespaceMode.TARGET))
    with pytest.raises(InvalidRequest) as caught:
        plan_container(container_inputs(security=security))
    assert caught.value.field == ("config.linux.security_context.namespace_options.target_id")


@pytest.mark.parametrize(
    ("directory", "log", "expected"),
    [
        ("/var/log/pods/p", "c/0.log", "/var/log/pods/p/c/0.log"),
        ("/var/log/pods/p/", "/c/0.log", "/var/log/pods/p/c/0.log"),
        ("", "c/0.log", ""),
        ("/var/log/pods/p", "", ""),
    ],
)
def test_there_is_a_log_only_where_pod_and_container_name_one(
    directory: str, log: str, expected: str
) -> None:
    inputs = container_inputs(
        pod=pod_spec(log_directory=directory), spec=container_spec(log_path=log)
    )
    assert plan_container(inputs).log_path == expected


def test_the_process_is_as_asked() -> None:
    inputs = container_inputs(
        spec=container_spec(
            stdin=True,
            tty=True,
            resources=Resources(oom_score_adj=-998),
            security=ContainerSecurity(no_new_privs=True),
        ),
        user=User(uid=7, gid=8, groups=(8,)),
        host=host_v2(min_oom_score_adj=-5),
        home="/home/seven",
    )
    plan = plan_container(inputs)
    assert plan.stdin
    assert plan.process.terminal
    assert plan.process.no_new_privs
    assert plan.process.oom_score_adj == -5
    assert plan.process.user == inputs.user
    assert b"HOME=/home/seven" in plan.process.env
    assert plan.process.rlimits == ()


def test_a_plan_crosses_the_wire_unchanged() -> None:
    plan = plan_container(container_inputs())
    packed = msgspec.msgpack.encode(plan)
    assert msgspec.msgpack.decode(packed, type=ContainerPlan) == plan


def record() -> ContainerRecord:
    inputs = container_inputs()
    return ContainerRecord(
        id=CONTAINER_ID,
        pod_id=POD_ID,
        spec=inputs.spec,
        image_id=ImageId("sha256:" + "0" * 64),
        user=inputs.user,
        stop_signal=15,
        cgroup=container_cgroup(inputs),
        log_path="",
        created_ns=1,
    )


def request(*cmd: str, tty: bool = False, stdin: bool = False, stderr: bool = True) -> ExecRequest:
    return ExecRequest(
        container_id=CONTAINER_ID, cmd=cmd, tty=tty, stdin=stdin, stdout=True, stderr=stderr
    )


def test_an_exec_runs_as_the_container_does() -> None:
    process = plan_container(container_inputs(spec=container_spec(tty=True))).process
    plan = plan_exec(EXEC, record(), process, request("/bin/true", "x"), host_v2())
    assert plan.container == TaskId(CONTAINER_ID)
    assert plan.cgroup.directories == (
        f"/sys/fs/cgroup/pycri/{POD_ID}/{CONTAINER_ID}/exec-{EXEC[:12]}",
    )
    assert plan.process == msgspec.structs.replace(process, args=("/bin/true", "x"), terminal=False)
    assert plan.streams == ("stdout", "stderr")


def test_an_exec_has_the_streams_that_are_asked_for() -> None:
    process = plan_container(container_inputs()).process
    asked = request("sh", stdin=True, stderr=False)
    plan = plan_exec(EXEC, record(), process, asked, host_v2())
    assert plan.streams == ("stdin", "stdout")
    assert plan.process.env == process.env


def test_an_exec_with_a_terminal_has_a_kind_of_terminal_unless_there_is_one() -> None:
    process = plan_container(container_inputs()).process
    plan = plan_exec(EXEC, record(), process, request("sh", tty=True), host_v2())
    assert plan.process.terminal
    assert plan.process.env == (*process.env, b"TERM=xterm")
    set_already = msgspec.structs.replace(process, env=(b"TERM=linux", b"A=1"))
    plan = plan_exec(EXEC, record(), set_already, request("sh", tty=True), host_v2())
    assert plan.process.env == set_already.env


def test_an_exec_of_nothing_is_refused() -> None:
    process = plan_container(container_inputs()).process
    with pytest.raises(InvalidRequest) as caught:
        plan_exec(EXEC, record(), process, request(), host_v2())
    assert caught.value.field == "cmd"
