# SPDX-License-Identifier: Apache-2.0
"""The private protocol: what daemon, spawner, init children and monitor say to each other.

Every message is one SOCK_SEQPACKET packet of msgpack, a tagged struct, with descriptors beside it
(SCM_RIGHTS) in the order given in the message's docstring. `request` numbers are chosen by the
asking side and come back in the answer; messages without one are events.

    daemon ──▶ spawner   Hello, StartSandbox, StartContainer, Exec, Signal, HangUp, Attach,
                         OpenSockets, ReopenLog, Forget, ListTasks, Quit
    spawner ──▶ daemon   Welcome, SandboxStarted, TaskStarted, Attached, Sockets, Tasks, Done,
                         Failed; events Exited, Welcome
    child ──▶ spawner    Reached, Broken, Moved, Ready; end-of-file after Ready means "executing"
    spawner ──▶ child    StartSandbox, StartContainer, Exec
    spawner ──▶ monitor  Keep, Finish, Reopen, Copy, CloseStdin, Drop, HandOver
    monitor ──▶ spawner  Kept, HandedOver, Finished, Reopened, Copied

Versions: WIRE_VERSION changes when a message changes its meaning. The spawner outlives daemon
upgrades, so a daemon must speak the spawner's version or say clearly that it cannot.
"""

import msgspec

from pycri.model.ids import TaskId
from pycri.model.plan import ContainerPlan, ExecPlan, SandboxPlan

WIRE_VERSION = 2


class TaskInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One process the spawner keeps.

    kind: "container" or "init" (of a pod). start_time: field 22 of /proc/PID/stat.
    exit_code and finished_ns are set once it has ended: 0-255, 128+n for signal n.
    streams: names of the stdio descriptors kept with it: "stdout", "stderr", "terminal", "stdin".
    """

    id: TaskId
    kind: str
    pid: int
    start_time: int
    log_path: str = ""
    streams: tuple[str, ...] = ()
    exit_code: int | None = None
    finished_ns: int | None = None


class ExitRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is written to /run/pycri/exits/ID when a task ends.

    exit_code: 0-255; 128+n if signal n ended it; -1 when the kernel no longer has it.
    """

    version: int = 1
    id: TaskId
    exit_code: int
    finished_ns: int


class StageMark(msgspec.Struct, frozen=True, kw_only=True):
    """A stage reached by the child, `at_ns` on CLOCK_MONOTONIC."""

    stage: str
    at_ns: int


# daemon -> spawner


class Hello(msgspec.Struct, frozen=True, kw_only=True, tag="hello"):
    version: int = WIRE_VERSION


class StartSandbox(msgspec.Struct, frozen=True, kw_only=True, tag="start-sandbox"):
    request: int
    plan: SandboxPlan


class StartContainer(msgspec.Struct, frozen=True, kw_only=True, tag="start-container"):
    request: int
    plan: ContainerPlan


class Exec(msgspec.Struct, frozen=True, kw_only=True, tag="exec"):
    request: int
    plan: ExecPlan


class Signal(msgspec.Struct, frozen=True, kw_only=True, tag="signal"):
    """Send a signal to a task; an ended one is no error."""

    request: int
    task: TaskId
    signal: int


class HangUp(msgspec.Struct, frozen=True, kw_only=True, tag="hang-up"):
    """Send SIGHUP to the process group of an exec; an ended one is no error."""

    request: int
    exec: TaskId


class Attach(msgspec.Struct, frozen=True, kw_only=True, tag="attach"):
    """Copy a container's output from now on, and hand out its input.

    Descriptors, which the daemon has made: the write end of the attachment's line, then that of a
    pipe for each of `streams`: "stdout", "stderr" or "terminal" (monitor/attachments.py).
    stdin: the answer is to have the write end of stdin, or with a terminal its master.
    once: that end of stdin is given away, and with it closed for good; not with a terminal.
    """

    request: int
    task: TaskId
    streams: tuple[str, ...]
    stdin: bool
    once: bool


class OpenSockets(msgspec.Struct, frozen=True, kw_only=True, tag="open-sockets"):
    """Make TCP sockets in the network namespace pinned at `path`: they stay there wherever they
    are connected from."""

    request: int
    path: str


class ReopenLog(msgspec.Struct, frozen=True, kw_only=True, tag="reopen-log"):
    request: int
    task: TaskId


class Forget(msgspec.Struct, frozen=True, kw_only=True, tag="forget"):
    """Drop a task and its exit record; one that runs is dropped at its end."""

    request: int
    task: TaskId


class ListTasks(msgspec.Struct, frozen=True, kw_only=True, tag="list-tasks"):
    request: int


class Quit(msgspec.Struct, frozen=True, kw_only=True, tag="quit"):
    """End spawner and monitor; refused while a task runs."""

    request: int


DaemonMessage = (
    Hello
    | StartSandbox
    | StartContainer
    | Exec
    | Signal
    | HangUp
    | Attach
    | OpenSockets
    | ReopenLog
    | Forget
    | ListTasks
    | Quit
)

# spawner -> daemon


class Welcome(msgspec.Struct, frozen=True, kw_only=True, tag="welcome"):
    """The answer to Hello, and an event when the monitor has been replaced.

    pid, monitor: the process ids of spawner and monitor.
    """

    version: int
    pid: int
    monitor: int


class SandboxStarted(msgspec.Struct, frozen=True, kw_only=True, tag="sandbox-started"):
    """Descriptors: a NETLINK_ROUTE socket of the new network namespace, if one was made."""

    request: int
    init_pid: int | None
    marks: tuple[StageMark, ...]


class TaskStarted(msgspec.Struct, frozen=True, kw_only=True, tag="task-started"):
    """A container or an exec is executing.

    Descriptors (execs only): the caller's ends named in `streams`, in order.
    """

    request: int
    pid: int
    start_time: int
    started_ns: int
    streams: tuple[str, ...] = ()
    marks: tuple[StageMark, ...]


class Attached(msgspec.Struct, frozen=True, kw_only=True, tag="attached"):
    """Descriptor: the end of stdin that was asked for, unless the container has none (any more)."""

    request: int


class Sockets(msgspec.Struct, frozen=True, kw_only=True, tag="sockets"):
    """Descriptors: an unconnected TCP socket of IPv4 and one of IPv6, where the kernel has that."""

    request: int


class Tasks(msgspec.Struct, frozen=True, kw_only=True, tag="tasks"):
    request: int
    tasks: tuple[TaskInfo, ...]


class Done(msgspec.Struct, frozen=True, kw_only=True, tag="done"):
    request: int


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """step: what was being done, as the plan prints it; errno 0 when no system call failed.

    kind: "setup" (a step towards the process), "state" (a task is not in the state it takes).
    """

    request: int
    kind: str
    step: str
    errno: int
    reason: str


class Exited(msgspec.Struct, frozen=True, kw_only=True, tag="exited"):
    """A container, a pod's init or an exec has ended; of the first two the record is durable."""

    record: ExitRecord


SpawnerMessage = (
    Welcome | SandboxStarted | TaskStarted | Attached | Sockets | Tasks | Done | Failed | Exited
)

# child -> spawner


class Reached(msgspec.Struct, frozen=True, kw_only=True, tag="reached"):
    """Descriptor, with stage "terminal": the pty master; with stage "network": a netlink socket."""

    stage: str
    at_ns: int


class Broken(msgspec.Struct, frozen=True, kw_only=True, tag="broken"):
    step: str
    errno: int
    reason: str


class Moved(msgspec.Struct, frozen=True, kw_only=True, tag="moved"):
    """The child goes on as another process, `pid` to the spawner, and itself ends."""

    pid: int


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    """All is set up; what follows is execve, or for a sandbox the end."""

    at_ns: int


ChildMessage = Reached | Broken | Moved | Ready

# spawner -> child that waits

Order = StartSandbox | StartContainer | Exec
"""As it came from the daemon. Descriptors: the child's stdin, stdout, stderr; the pidfd of whose
pid namespace to join, if any."""

# spawner -> monitor


class Keep(msgspec.Struct, frozen=True, kw_only=True, tag="keep"):
    """Pump and keep. Descriptors: the pidfd, then the task's streams in order."""

    task: TaskInfo


class Finish(msgspec.Struct, frozen=True, kw_only=True, tag="finish"):
    """The task has ended: write out what its streams still hold, then answer Finished."""

    task: TaskId


class Reopen(msgspec.Struct, frozen=True, kw_only=True, tag="reopen"):
    request: int
    task: TaskId


class Copy(msgspec.Struct, frozen=True, kw_only=True, tag="copy"):
    """Add an attachment. Descriptors: its line, then an outlet for each of `streams`, in order."""

    request: int
    task: TaskId
    streams: tuple[str, ...]


class CloseStdin(msgspec.Struct, frozen=True, kw_only=True, tag="close-stdin"):
    """Close the kept end of a task's stdin: somebody else has it now."""

    task: TaskId


class Drop(msgspec.Struct, frozen=True, kw_only=True, tag="drop"):
    task: TaskId


class HandOver(msgspec.Struct, frozen=True, kw_only=True, tag="hand-over"):
    """A new spawner asks for all that is kept: a Kept for each task, then HandedOver."""

    version: int = WIRE_VERSION


MonitorCommand = Keep | Finish | Reopen | Copy | CloseStdin | Drop | HandOver

# monitor -> spawner


class Kept(msgspec.Struct, frozen=True, kw_only=True, tag="kept"):
    """Descriptors: as in Keep. `task.streams` names those still open."""

    task: TaskInfo


class HandedOver(msgspec.Struct, frozen=True, kw_only=True, tag="handed-over"):
    pid: int


class Finished(msgspec.Struct, frozen=True, kw_only=True, tag="finished"):
    task: TaskId


class Reopened(msgspec.Struct, frozen=True, kw_only=True, tag="reopened"):
    """errno 0 when the new file is in use."""

    request: int
    errno: int


class Copied(msgspec.Struct, frozen=True, kw_only=True, tag="copied"):
    """errno 0 when the attachment gets what comes from here on."""

    request: int
    errno: int


MonitorReply = Kept | HandedOver | Finished | Reopened | Copied

# what each connection may carry; decoders are made once, and refuse anything else

FROM_DAEMON: msgspec.msgpack.Decoder[DaemonMessage] = msgspec.msgpack.Decoder(DaemonMessage)
FROM_SPAWNER: msgspec.msgpack.Decoder[SpawnerMessage] = msgspec.msgpack.Decoder(SpawnerMessage)
FROM_CHILD: msgspec.msgpack.Decoder[ChildMessage] = msgspec.msgpack.Decoder(ChildMessage)
TO_CHILD: msgspec.msgpack.Decoder[Order] = msgspec.msgpack.Decoder(Order)
TO_MONITOR: msgspec.msgpack.Decoder[MonitorCommand] = msgspec.msgpack.Decoder(MonitorCommand)
FROM_MONITOR: msgspec.msgpack.Decoder[MonitorReply] = msgspec.msgpack.Decoder(MonitorReply)
