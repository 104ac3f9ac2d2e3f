# SPDX-License-Identifier: Apache-2.0
"""Published escapes by a process: its program, folder, descriptors, rights, identity, devices.

Each test sets the attack up for real; its docstring says what the attack was. docs/security.md
lists them.
"""

import hashlib
import os
import struct
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest

from pycri.cri.api import runtime_v1_pb2 as cri
from tests.world.daemon import Node, refused
from tests.world.hostile import SECRET, Canary, push_image, try_to_end
from tests.world.images import Images
from tests.world.oci import Layer
from tests.world.registry import Registry

DAC_OVERRIDE = 1
SYS_PTRACE = {"capabilities": {"add_capabilities": ["SYS_PTRACE"]}}
KUBELET_PATHS = {
    "masked_paths": ["/proc/kcore", "/proc/keys", "/sys/firmware"],
    "readonly_paths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
}


def python_digest() -> str:
    """Return the digest of the program that daemon and spawner run."""
    return hashlib.sha256(Path(sys.executable).resolve().read_bytes()).hexdigest()


def loader_path() -> str:
    """Return the path of the dynamic loader that this interpreter asks for (PT_INTERP)."""
    head = Path(sys.executable).resolve().read_bytes()[:4096]
    start = head.index(b"/lib")
    return head[start : head.index(b"\0", start)].decode()


def busybox_binary(node: Node, images: Images) -> bytes:
    """Return the shell of the test images, which is static."""
    folder = node.state_dir / "images/layers"
    return next(folder.glob("*/bin/busybox")).read_bytes()


OVERWRITE = """
exec 9</proc/self/exe
exec /bin/busybox sh -c '
readlink /proc/self/fd/9
for try in 1 2 3 4 5 6 7 8 9 10; do (: >/proc/self/fd/9) 2>&1 && echo OVERWRITTEN; done
(echo x >>/proc/self/fd/9) 2>&1 && echo OVERWRITTEN; true'
"""


def test_a_container_whose_program_is_its_runtime_cannot_overwrite_it(
    node: Node, images: Images, registry: Registry
) -> None:
    """CVE-2019-5736: the container runs a link to /proc/self/exe, which is the runtime; the image's
    own loader then takes over, keeps the file open and writes it once the runtime has ended."""
    before = python_digest()
    loader = loader_path()
    layer = Layer().symlink("evil", "/proc/self/exe").parents(loader.lstrip("/"))
    layer.file(loader.lstrip("/"), busybox_binary(node, images), mode=0o755)
    layer.symlink("sh-evil", "/proc/self/exe").directory("evil.d")
    layer.symlink("evil.d/sh", "/proc/self/exe")
    image = push_image(registry, "self-exe", layer)
    pod = node.run_pod("selfexe")
    output = node.run_to_end(pod, image, command=["/evil.d/sh", "-c", OVERWRITE])
    assert "memfd:pycri-spawner" in output, "the attack did not get hold of the runtime"
    assert "OVERWRITTEN" not in output
    assert python_digest() == before
    assert node.run_to_end(pod, images["busybox"], name="after", command="echo alive") == "alive\n"


@pytest.mark.parametrize("security", [{}, SYS_PTRACE], ids=["default", "ptrace"])
def test_a_container_cannot_overwrite_the_program_of_an_exec(
    security: dict[str, Any], node: Node, images: Images
) -> None:
    """CVE-2019-5736: a process in the container waits for the runtime's exec process to show up in
    /proc and opens its /proc/PID/exe."""
    watch = """
    while :; do
        for exe in /proc/[0-9]*/exe; do
            case $(readlink $exe) in
                */busybox | "") ;;
                *)  (exec 9<$exe
                    readlink /proc/self/fd/9
                    case $(readlink /proc/self/fd/9) in
                        */busybox) ;;
                        *) (: >/proc/self/fd/9) && echo OVERWRITTEN ;;
                    esac) ;;
            esac
        done 2>/dev/null
    done
    """
    before = python_digest()
    pod = node.run_pod("watched")
    container = node.run_container(pod, images["busybox"], command=watch, security=security)
    for _ in range(30):
        assert node.exec(container, "true").exit_code == 0
    written = [line.content for line in node.log(container)]
    assert "OVERWRITTEN" not in written
    # Only who may trace everything sees the program at all, and what it sees is the sealed copy.
    assert all("memfd:" in line or "busybox" in line for line in written), written
    assert not written or security
    assert python_digest() == before


@pytest.mark.parametrize("where", ["request", "image", "link"])
def test_no_working_directory_leads_out_of_the_container(
    where: str, node: Node, registry: Registry, tmp_path: Path
) -> None:
    """CVE-2024-21626: /proc/self/fd/N as working directory, N being a folder of the host that the
    runtime had left open: from there .. leads through the host."""
    canary = Canary(tmp_path / "canary")
    script = f"pwd -P; cat ../../../../../../../../..{canary.secret} || true"
    pod = node.run_pod("cwd")
    refusals = 0
    for number in range(3, 16):
        path = f"/proc/self/fd/{number}"
        layer = Layer()
        settings: dict[str, Any] = {}
        words: dict[str, Any] = {"name": f"c{number}", "command": script}
        match where:
            case "request":
                words["working_dir"] = path
            case "image":
                settings["WorkingDir"] = path
            case "link":
                layer.symlink("work", path)
                words["working_dir"] = "/work"
        image = push_image(registry, f"cwd-{where}-{number}", layer, **settings)
        begun, output = try_to_end(node, pod, image, **words)
        assert SECRET not in output
        assert not begun or output.startswith("/"), output
        refusals += not begun
    assert refusals > 0
    canary.check()


def test_no_descriptor_of_the_runtime_is_left_open(node: Node, images: Images) -> None:
    """CVE-2024-21626, CVE-2016-9962: descriptors of the runtime's that reach into the container."""
    # The shell's own builtins, so that no program of the listing itself adds any.
    script = "for fd in /proc/$$/fd/*; do [ -L $fd ] && echo ${fd##*/}; done; true"
    container = node.run_container(node.run_pod("fds"), images["busybox"], command="sleep 60")
    pid = node.pid(container)
    assert sorted(os.listdir(f"/proc/{pid}/fd")) == ["0", "1", "2"]
    assert node.shell(container, script).split() == ["0", "1", "2"]


@pytest.mark.parametrize("user", [0, 1000])
def test_nothing_is_inheritable(user: int, node: Node, images: Images, registry: Registry) -> None:
    """CVE-2022-29162, CVE-2022-24769: with inheritable capabilities, a program with inheritable
    file capabilities gave an ordinary user what root in the container has."""
    flag_effective, revision_2 = 0x1, 0x02000000
    words = struct.pack("<5I", revision_2 | flag_effective, 0, 1 << DAC_OVERRIDE, 0, 0)
    layer = Layer().file(
        "bin/gain",
        busybox_binary(node, images),
        mode=0o755,
        xattrs={"security.capability": words.decode("latin-1")},
    )
    layer.file("secret", "for root only\n", mode=0o600).symlink("cat", "bin/gain")
    image = push_image(registry, "inheritable", layer)
    security = {"run_as_user": {"value": user}}
    pod = node.run_pod("inherit")
    container = node.run_container(pod, image, command="sleep 60", security=security)
    show = "grep CapInh /proc/self/status; /cat /secret"
    done = node.exec(container, "sh", "-c", show)
    assert done.stdout.splitlines()[0].split() == [b"CapInh:", b"0" * 16]
    assert (b"for root only" in done.stdout) == (user == 0)
    status = Path(f"/proc/{node.pid(container)}/status").read_text()
    assert f"CapInh:\t{'0' * 16}" in status


@pytest.mark.parametrize("user", ["4294967296", "4294967296:4294967296", "0:4294967296", "-1"])
def test_an_id_that_overflows_is_refused(user: str, node: Node, registry: Registry) -> None:
    """CVE-2024-40635: a user id beyond 32 bits in the image became root's."""
    image = push_image(registry, f"user-{user.replace(':', '-')}", Layer(), User=user)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "config.image"):
        node.run_container(node.run_pod("overflow"), image, command=["id"])


@pytest.mark.parametrize("uid", [2**32, 2**32 - 1, 2**63 - 1, -1])
def test_an_id_of_the_request_that_overflows_is_refused(
    uid: int, node: Node, images: Images
) -> None:
    """CVE-2024-40635, by the request."""
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "run_as_user"):
        security = {"run_as_user": {"value": uid}}
        node.run_container(
            node.run_pod("overflow"), images["busybox"], command=["id"], security=security
        )


def test_an_id_beyond_31_bits_is_itself(node: Node, registry: Registry) -> None:
    """CVE-2024-40635: 2147483648 was taken for a negative number, and then for root."""
    image = push_image(registry, "user-large", Layer(), User="2147483648:2147483649")
    output = node.run_to_end(node.run_pod("large"), image, command="id -u; id -g")
    assert output.split() == ["2147483648", "2147483649"]


HOSTILE_PASSWD = """\
wrapped:x:4294967296:4294967296::/:/bin/sh
negative:x:-1:-1::/:/bin/sh
short:x:0
hex:x:0x0:0::/:/bin/sh
:x:0:0::/:/bin/sh
"""


@pytest.mark.parametrize("name", ["wrapped", "negative", "short", "hex", "empty-line"])
def test_no_line_of_a_hostile_passwd_makes_a_user_root(
    name: str, node: Node, registry: Registry
) -> None:
    """The image's user files are read by the runtime, as root; ids in them overflow or lie."""
    layer = Layer().file("etc/passwd", HOSTILE_PASSWD)
    image = push_image(registry, "passwd-lines", layer)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "run_as_username"):
        security = {"run_as_username": name}
        node.run_container(node.run_pod("lines"), image, command=["id"], security=security)


@pytest.mark.parametrize("kind", ["link", "dots", "fifo", "huge", "device link"])
def test_a_hostile_user_file_is_neither_followed_nor_waited_for(
    kind: str, node: Node, registry: Registry, tmp_path: Path
) -> None:
    """A link to a file of the host's, a pipe that nobody writes to, a file without end."""
    stolen = tmp_path / "passwd"
    stolen.write_text("kim:x:4711:4711::/:/bin/sh\n")
    # Without the names of busybox, which a lower layer would still have.
    layer = Layer().directory("etc")
    match kind:
        case "link":
            layer.symlink("etc/passwd", str(stolen))
        case "dots":
            layer.symlink("etc/passwd", f"../../../../../../..{stolen}")
        case "fifo":
            layer.fifo("etc/passwd")
        case "huge":
            layer.file("etc/passwd", b"a:x:1:1::/:/bin/sh\n" * 100_000 + stolen.read_bytes())
        case "device link":
            layer.symlink("etc/passwd", "/dev/zero")
    image = push_image(registry, f"passwd-{kind.replace(' ', '-')}", layer)
    begun, output = try_to_end(
        node,
        node.run_pod("userfile"),
        image,
        # Not id(1), which would read /dev/zero for a name.
        command="grep Uid: /proc/self/status",
        security={"run_as_username": "kim"},
    )
    # A link that leads nowhere inside leaves the file of the layer below.
    assert not begun or output.split() == ["Uid:", *["1000"] * 4]


def test_a_device_of_the_host_cannot_be_made_and_read(node: Node, images: Images) -> None:
    """A node made by mknod in the container, by default allowed to make any, is of no use."""
    disk = next(path for path in sorted(Path("/sys/class/block").iterdir()))
    major, minor = (disk / "dev").read_text().strip().split(":")
    script = f"""
    mknod /disk b {major} {minor} && echo made; head -c 1 /disk >/dev/null && echo READ
    mknod /mem c 1 1 && echo made; head -c 1 /mem >/dev/null && echo READ
    mknod /kmsg c 1 11; head -c 1 /kmsg >/dev/null && echo READ
    mknod /console c 5 1; (echo hello >/console) && echo WRITTEN; true
    """
    container = node.run_container(node.run_pod("mknod"), images["busybox"], command="sleep 60")
    output = node.shell(container, script)
    assert output.split() == ["made", "made"]


def test_root_in_a_container_cannot_have_the_host_run_a_program(node: Node, images: Images) -> None:
    """CVE-2022-0492 and its kin: the kernel starts, on the host, what core_pattern, modprobe, the
    uevent helper, or the release agent of a cgroup names."""
    files = {
        path: path.read_text()
        for name in ("kernel/core_pattern", "kernel/modprobe", "kernel/hotplug", "vm/swappiness")
        if (path := Path("/proc/sys", name)).exists()
    }
    script = """
    for file in /proc/sys/kernel/core_pattern /proc/sys/kernel/modprobe /sys/kernel/uevent_helper \\
        /proc/sys/vm/swappiness /sys/fs/cgroup/*/release_agent /sys/fs/cgroup/*/notify_on_release
    do
        (echo '|/evil' >$file) && echo WRITTEN $file
    done
    mount -t cgroup -o memory cgroup /mnt && echo MOUNTED
    mount -o remount,rw /sys && echo REMOUNTED
    umount /proc/sys && echo UNMOUNTED
    unshare -rmC sh -c 'mkdir /tmp/c; mount -t cgroup -o memory cgroup /tmp/c &&
        (echo /evil >/tmp/c/release_agent) && echo WRITTEN'
    unshare -rm sh -c 'umount /proc/sys && echo UNMOUNTED; mount -t proc proc /tmp && echo MOUNTED'
    true
    """
    container = node.run_container(
        node.run_pod("usermode"), images["busybox"], command="sleep 60", security=KUBELET_PATHS
    )
    done = node.exec(container, "sh", "-c", script)
    assert done.stdout == b"", done.stderr
    assert {path: path.read_text() for path in files} == files


def test_no_socket_of_ours_is_in_reach_of_a_pod_on_the_host_s_network(node: Node) -> None:
    """CVE-2020-15257: shims listened on abstract sockets, which belong to the network namespace."""
    ours = {node.pid_of(process) for process in ("daemon", "spawner", "monitor")}
    inodes = {
        os.readlink(f"/proc/{pid}/fd/{fd}").removeprefix("socket:[").rstrip("]")
        for pid in ours
        for fd in os.listdir(f"/proc/{pid}/fd")
        if os.path.islink(f"/proc/{pid}/fd/{fd}")
    }
    with open("/proc/net/unix") as table:
        abstract = [line for line in table if "@" in line and line.split()[6] in inodes]
    assert not abstract


@pytest.mark.parametrize("capabilities", [[], ["SYS_PTRACE"]], ids=["default", "ptrace"])
@pytest.mark.parametrize("entry", ["exec", "sibling"])
def test_no_process_that_enters_a_container_still_has_the_host_s_files(
    entry: str, capabilities: list[str], node: Node, images: Images, tmp_path: Path
) -> None:
    """A debugging container, with CAP_SYS_PTRACE, looks through /proc/PID/root of every process
    that comes into its pid namespace: a command that is executed in it, or, where the pod shares
    the namespace, a sibling that starts."""
    canary = Canary(tmp_path / "canary")
    watch = f"while :; do cat /proc/[0-9]*/root{canary.secret} 2>/dev/null; done"
    mode = cri.POD if entry == "sibling" else cri.CONTAINER
    pod = node.run_pod("rooted", namespaces={"pid": mode})
    security = {"capabilities": {"add_capabilities": capabilities}}
    watcher = node.run_container(
        pod, images["busybox"], name="watcher", command=watch, security=security
    )
    for number in range(40 if entry == "exec" else 12):
        if entry == "exec":
            assert node.exec(watcher, "true").exit_code == 0
        else:
            node.run_container(pod, images["busybox"], name=f"s{number}", command=["true"])
    assert node.log(watcher) == []
