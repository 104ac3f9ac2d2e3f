# SPDX-License-Identifier: Apache-2.0
"""The steps of a plan, applied by a process that plays the init child.

A first child, in a mount namespace of its own, plays the host; its child is the container.
"""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from pycri.kernel import mounts
from pycri.kernel.process import fork
from pycri.kernel.syscalls import Clone, MountFlag, mount, unshare
from pycri.model.plan import BindMount, MountImage, MountOverlay, Step
from pycri.spawner.mapped import MappedSources
from pycri.spawner.report import Report
from pycri.spawner.steps import apply_steps, open_sources
from pycri.wire.channel import Channel


def wait(pid: int) -> None:
    _, status = os.waitpid(pid, 0)
    assert status == 0


def apply(steps: tuple[Step, ...], folder: Path, *, append: bool) -> None:
    """Do as the init child does, up to its own mount namespace with the root at /root."""
    ours, _theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    report = Report(Channel(ours))
    trees = open_sources(steps, report, MappedSources(None), append=append)
    mounts.enter_empty_root(str(folder))
    os.close(apply_steps(steps, trees, "/root", report))


def on_a_host(folder: Path, work: Callable[[], None]) -> None:
    """Run `work` where it may mount: in a child, with a tmpfs at folder/shared that is shared."""

    def host() -> None:
        unshare(Clone.NEWNS)
        mount("", "/", "", MountFlag.REC | MountFlag.PRIVATE)
        mount("tests", f"{folder}/shared", "tmpfs", MountFlag(0), "size=64k")
        mount("", f"{folder}/shared", "", MountFlag.SHARED)
        (folder / "shared/below").mkdir()
        work()

    wait(fork(host))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("shared", "upper", "work", "empty", "scratch", "layer/etc", "image/data/deep"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "image/data/deep/file").write_text("image\n")
    return tmp_path


def plan(folder: Path, propagation: str) -> tuple[Step, ...]:
    return (
        MountOverlay(layers=(f"{folder}/layer",), upper=f"{folder}/upper", work=f"{folder}/work"),
        MountImage(layers=(f"{folder}/image",), target="/whole", empty=f"{folder}/empty"),
        BindMount(source=f"{folder}/shared", target="/data", propagation=propagation),
        MountImage(
            layers=(f"{folder}/image",),
            target="/part",
            empty=f"{folder}/empty",
            sub_path="data/deep/file",
        ),
    )


@pytest.mark.parametrize("append", [True, False], ids=["lowerdir+", "by-path"])
@pytest.mark.parametrize(
    ("propagation", "seen"), [("private", False), ("slave", True), ("shared", True)]
)
def test_overlays_made_either_way_leave_propagation_as_planned(
    propagation: str, seen: bool, append: bool, folder: Path
) -> None:
    """By a path, an overlay is made in a namespace where all is private: binds come before it."""

    def work() -> None:
        applied, applied_end = os.pipe()
        mounted_end, mounted = os.pipe()

        def container() -> None:
            apply(plan(folder, propagation), folder / "scratch", append=append)
            for path in ("/root/whole/data/deep/file", "/root/part"):
                assert Path(path).read_text() == "image\n"
            assert not os.path.exists("/root/data/below/flag")
            os.write(applied_end, b"x")
            os.read(mounted_end, 1)
            assert os.path.exists("/root/data/below/flag") is seen

        pid = fork(container)
        os.close(applied_end)
        assert os.read(applied, 1) == b"x"
        mount("tests", f"{folder}/shared/below", "tmpfs", MountFlag(0), "size=4k")
        (folder / "shared/below/flag").touch()
        os.write(mounted, b"x")
        wait(pid)

    on_a_host(folder, work)


def test_the_whole_image_does_not_stay_behind_a_part_of_it(folder: Path) -> None:
    def work() -> None:
        def container() -> None:
            apply(plan(folder, "private"), folder / "scratch", append=True)
            mount("proc", "/root/etc", "proc", MountFlag(0))
            table = Path("/root/etc/self/mountinfo").read_text().splitlines()
            points = sorted(line.split()[4] for line in table)
            assert points == ["/", "/root", "/root/data", "/root/etc", "/root/part", "/root/whole"]

        wait(fork(container))

    on_a_host(folder, work)


@pytest.mark.parametrize(
    ("flag", "found"),
    [
        (MountFlag.PRIVATE, frozenset()),
        (MountFlag.SHARED, {"shared"}),
        (MountFlag.SLAVE, {"master"}),
    ],
)
def test_the_propagation_of_a_mount_is_read(
    flag: MountFlag, found: frozenset[str], folder: Path
) -> None:
    def work() -> None:
        mount(f"{folder}/shared", f"{folder}/scratch", "", MountFlag.BIND)
        mount("", f"{folder}/scratch", "", flag)
        (folder / "link").symlink_to("scratch/below")
        for path in ("scratch", "scratch/below", "link"):
            assert mounts.read_propagation(f"{folder}/{path}") == found
        assert mounts.read_propagation(f"{folder}/shared") == {"shared"}

    on_a_host(folder, work)
