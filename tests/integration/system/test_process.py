# SPDX-License-Identifier: Apache-2.0
"""What a container's first process finds: arguments, environment, user, files, rights."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.world.daemon import Node, is_running, refused, wait_until
from tests.world.images import PATH, Images

NOHUP_IGNORES = (signal.SIGHUP, signal.SIGQUIT)
"""What nohup does, and what a shell does for a program in the background."""
IGNORES_NOTHING = f"SigIgn:\t{0:016x}\n"


@pytest.mark.parametrize(
    ("command", "args", "output"),
    [
        ([], [], "entry default words"),
        ([], ["given"], "entry given"),
        (["/bin/echo", "replaced"], [], "replaced"),
        (["/bin/echo", "replaced"], ["given"], "replaced given"),
    ],
    ids=["image", "args", "command", "both"],
)
def test_command_and_args_replace_parts_of_the_image_s(
    command: list[str], args: list[str], output: str, node: Node, images: Images
) -> None:
    pod = node.run_pod("argv")
    assert node.run_to_end(pod, images["configured"], command=command, args=args) == f"{output}\n"


def test_the_environment_is_the_image_s_and_then_the_request_s(node: Node, images: Images) -> None:
    pod = node.run_pod("env")
    output = node.run_to_end(
        pod,
        images["configured"],
        command=["/bin/env"],
        env={"COLOUR": "red", "ADDED": "a=b c", "EMPTY": ""},
    )
    found = dict(line.split("=", 1) for line in output.splitlines())
    assert found.pop("HOME", "/home/kim") == "/home/kim"
    assert found == {
        "PATH": PATH,
        "COLOUR": "red",
        "FROM_IMAGE": "yes",
        "ADDED": "a=b c",
        "EMPTY": "",
        "HOSTNAME": "env",
    }


def test_the_working_folder_is_made_if_it_is_missing(node: Node, images: Images) -> None:
    pod = node.run_pod("cwd")
    assert node.run_to_end(pod, images["configured"], command=["/bin/pwd"]) == "/home/kim/made\n"
    output = node.run_to_end(
        pod, images["busybox"], name="two", command=["pwd"], working_dir="/deep/down"
    )
    assert output == "/deep/down\n"


ID = "echo $(id -u) $(id -g) $(id -G | tr ' ' '\\n' | sort -n)"


@pytest.mark.parametrize(
    ("image", "security", "output"),
    [
        ("busybox", {}, "0 0 0"),
        ("configured", {}, "1000 1000 4 29 1000"),
        ("busybox", {"run_as_user": {"value": 1000}}, "1000 1000 4 29 1000"),
        ("busybox", {"run_as_username": "kim"}, "1000 1000 4 29 1000"),
        ("busybox", {"run_as_user": {"value": 4242}}, "4242 0 0"),
        (
            "busybox",
            {"run_as_user": {"value": 1000}, "run_as_group": {"value": 33}},
            "1000 33 4 29 33",
        ),
        (
            "busybox",
            {"run_as_username": "kim", "supplemental_groups": [555], "run_as_group": {"value": 7}},
            "1000 7 4 7 29 555",
        ),
        (
            "busybox",
            {
                "run_as_username": "kim",
                "supplemental_groups": [555],
                "supplemental_groups_policy": 1,
            },
            "1000 1000 555 1000",
        ),
    ],
)
def test_the_user_is_the_image_s_or_the_one_asked_for(
    image: str, security: dict[str, Any], output: str, node: Node, images: Images
) -> None:
    pod = node.run_pod("user")
    container = node.run_container(
        pod, images[image], command=f"{ID}; exec sleep 60", security=security
    )
    node.wait_log(container, " ")
    (line,) = node.log(container)
    uid, gid, *groups = line.content.split()
    assert (uid, gid, sorted(groups, key=int)) == (
        output.split()[0],
        output.split()[1],
        sorted(output.split()[2:], key=int),
    )
    shown = node.status(container).user.linux
    assert (str(shown.uid), str(shown.gid)) == (uid, gid)
    assert {str(group) for group in shown.supplemental_groups} | {gid} == set(groups)


def test_volumes_are_written_through_unless_read_only(node: Node, images: Images) -> None:
    volume = node.folder / "volume"
    volume.mkdir(exist_ok=True)
    (volume / "given").write_text("given\n")
    mounts = [
        {"host_path": str(volume), "container_path": "/rw"},
        {"host_path": str(volume), "container_path": "/made/on/the/way", "readonly": True},
        {"host_path": str(volume / "given"), "container_path": "/etc/one-file"},
    ]
    script = (
        "cat /rw/given /made/on/the/way/given /etc/one-file; echo new > /rw/new;"
        "touch /made/on/the/way/no 2>/dev/null || echo read-only"
    )
    pod = node.run_pod("mounts")
    output = node.run_to_end(pod, images["busybox"], command=script, mounts=mounts)
    assert output == "given\n" * 3 + "read-only\n"
    assert (volume / "new").read_text() == "new\n"
    assert not (volume / "no").exists()


def test_a_volume_behind_a_link_of_the_host_is_followed(node: Node, images: Images) -> None:
    (node.folder / "real").mkdir(exist_ok=True)
    (node.folder / "real/file").write_text("real\n")
    link = node.folder / "link"
    if not link.is_symlink():
        link.symlink_to("real")
    mounts = [{"host_path": str(link), "container_path": "/volume"}]
    pod = node.run_pod("link")
    output = node.run_to_end(pod, images["busybox"], command="cat /volume/file", mounts=mounts)
    assert output == "real\n"


def test_a_link_in_the_image_does_not_lead_a_mount_out_of_the_root(
    node: Node, images: Images
) -> None:
    volume = node.folder / "inside"
    volume.mkdir(exist_ok=True)
    (volume / "file").write_text("inside\n")
    mounts = [{"host_path": str(volume), "container_path": "/through/in"}]
    pod = node.run_pod("escape")
    script = "cat /through/in/file /data/in/file"
    output = node.run_to_end(pod, images["layered"], command=script, mounts=mounts)
    assert output == "inside\n" * 2


def test_roots_of_containers_are_their_own(node: Node, images: Images) -> None:
    pod = node.run_pod("roots")
    script = "ls /mine 2>/dev/null; touch /mine; rm /etc/group; ls /etc/group 2>&1 | wc -l"
    first = node.run_to_end(pod, images["busybox"], name="a", command=script)
    assert node.run_to_end(pod, images["busybox"], name="b", command=script) == first


def test_a_read_only_root_cannot_be_written(node: Node, images: Images) -> None:
    pod = node.run_pod("read-only")
    script = "touch /file 2>&1; touch /dev/shm/file && echo shm"
    output = node.run_to_end(
        pod, images["busybox"], command=script, security={"readonly_rootfs": True}
    )
    assert "Read-only file system" in output
    assert output.endswith("shm\n")


def test_a_container_sees_nothing_of_the_host(node: Node, images: Images) -> None:
    pod = node.run_pod("alone")
    script = "cat /proc/self/mountinfo; echo; ls /proc/self/fd; ps -o pid | wc -l; ls /dev"
    container = node.run_container(pod, images["busybox"], command=script)
    assert node.wait_exited(container).exit_code == 0
    mounts, _, rest = node.output(container).partition("\n\n")
    # The kernel shows of a mount's source only the path within its file system, and lowerdir paths
    # in the overlay's options, which every runtime shows.
    points = {line.split()[4] for line in mounts.splitlines()}
    assert {"/", "/proc", "/sys", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue"} <= points
    assert all("shared:" not in line and "master:" not in line for line in mounts.splitlines())
    words = rest.split()
    assert words[:4] == ["0", "1", "2", "3"]
    assert {"null", "zero", "full", "random", "urandom", "tty", "ptmx", "stdout"} <= set(words)
    assert not {"kmsg", "mem", "vda", "sda", "loop0"} & set(words)


MASKED = ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"]
READ_ONLY = ["/proc/sys", "/proc/irq"]


def test_masked_and_read_only_paths_are(node: Node, images: Images) -> None:
    pod = node.run_pod("masks")
    security = {"masked_paths": MASKED, "readonly_paths": READ_ONLY}
    script = (
        f"for path in {' '.join(MASKED)};"
        "do if [ -d $path ]; then ls $path; elif [ -e $path ]; then cat $path; fi; done;"
        "echo 1 > /proc/sys/kernel/panic; echo 1 > /proc/irq/default_smp_affinity; echo checked"
    )
    container = node.run_container(pod, images["busybox"], command=script, security=security)
    node.wait_exited(container)
    assert node.output(container) == "checked\n"
    errors = [line.content for line in node.log(container) if line.stream == "stderr"]
    assert len(errors) == 2
    assert [line for line in errors if "Read-only file system" not in line] == []


def test_capabilities_are_the_default_set_plus_and_minus(node: Node, images: Images) -> None:
    pod = node.run_pod("caps")

    def effective(name: str, **capabilities: list[str]) -> int:
        script = "grep CapEff /proc/self/status"
        output = node.run_to_end(
            pod,
            images["busybox"],
            name=name,
            command=script,
            security={"capabilities": capabilities},
        )
        return int(output.split()[1], 16)

    chown, net_raw, net_admin, sys_admin = (1 << bit for bit in (0, 13, 12, 21))
    default = effective("default")
    assert default & chown
    assert not default & sys_admin
    assert effective("added", add_capabilities=["NET_ADMIN"]) == default | net_admin
    assert effective("dropped", drop_capabilities=["CAP_NET_RAW"]) == default & ~net_raw
    assert effective("one", drop_capabilities=["ALL"], add_capabilities=["CHOWN"]) == chown


def test_new_privileges_can_be_forbidden(node: Node, images: Images) -> None:
    pod = node.run_pod("privileges")
    script = "grep NoNewPrivs /proc/self/status"
    forbidden = node.run_to_end(
        pod, images["busybox"], command=script, security={"no_new_privs": True}
    )
    assert forbidden.split() == ["NoNewPrivs:", "1"]
    allowed = node.run_to_end(pod, images["busybox"], name="two", command=script)
    assert allowed.split() == ["NoNewPrivs:", "0"]


def test_everything_in_a_container_ends_with_its_first_process(node: Node, images: Images) -> None:
    pod = node.run_pod("end")
    container = node.run_container(
        pod, images["busybox"], command="setsid sleep 613 & sleep 614 & read x", stdin=True
    )
    first = node.pid(container)
    namespace = os.readlink(f"/proc/{first}/ns/pid")

    def members() -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and os.readlink(entry / "ns/pid") == namespace:
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    children = wait_until(
        lambda: found if len(found := members()) == 3 else None, what="two children"
    )
    os.kill(first, 9)
    assert node.wait_exited(container).exit_code == 137
    wait_until(lambda: not any(map(is_running, children)), what="the children's end")


@pytest.mark.skipif(Path("/sys/fs/selinux/class").exists(), reason="this host has SELinux")
def test_signals_that_the_daemon_was_started_to_ignore_are_not_ignored_in_containers(
    make_node: Callable[..., Node], images: Images
) -> None:
    """Started by nohup, pycri passed that on: no exec ended when its client hung up."""
    command = ["grep", "SigIgn", "/proc/1/status"]
    nohup = {number: signal.signal(number, signal.SIG_IGN) for number in NOHUP_IGNORES}
    try:
        node = make_node()
    finally:
        for number, before in nohup.items():
            signal.signal(number, before)
    pod = node.run_pod("heeds")
    assert node.run_to_end(pod, images["busybox"], command=command) == IGNORES_NOTHING
    container = node.run_container(pod, images["busybox"], name="b", command=["sleep", "600"])
    command[-1] = "/proc/self/status"
    assert node.exec(container, *command).stdout.decode() == IGNORES_NOTHING


def test_a_selinux_label_is_refused_where_there_is_no_selinux(node: Node, images: Images) -> None:
    label = {"selinux_options": {"level": "s0:c1,c2"}}
    field = "config.linux.security_context.selinux_options"
    with refused(grpc.StatusCode.UNIMPLEMENTED, field, "no SELinux"):
        node.run_pod("labelled", security=label)
    pod = node.run_pod("plain")
    with refused(grpc.StatusCode.UNIMPLEMENTED, field, "no SELinux"):
        node.create_container(pod, images["busybox"], security=label)
