# SPDX-License-Identifier: Apache-2.0
"""Published escapes by mounts: links and races at their targets, volumes over /proc and /dev.

Each test sets the attack up for real; its docstring says what the attack was. docs/security.md
lists them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.world.daemon import Node
from tests.world.hostile import SECRET, Canary, push_image, try_to_end
from tests.world.images import Images
from tests.world.oci import Layer
from tests.world.registry import Registry

MASKED = ["/proc/kcore", "/proc/keys", "/proc/interrupts", "/proc/timer_list"]
READ_ONLY = ["/proc/sys", "/proc/sysrq-trigger"]
PROTECTED = {"masked_paths": MASKED, "readonly_paths": READ_ONLY}
PROC_STATE = """
awk '$2 == "/proc" {print $3; exit}' /proc/mounts
cat /proc/interrupts | wc -c
(echo 1 >/proc/sys/kernel/panic) 2>&1 | grep -o -i read-only
"""
PROTECTED_PROC = ["proc", "0", "Read-only"]


@pytest.fixture
def canary(node: Node) -> Iterator[Canary]:
    """A folder of the host that is looked at again afterwards."""
    canary = Canary(node.folder / "canary")
    yield canary
    canary.check()
    canary.secret.unlink()
    canary.folder.rmdir()


@pytest.fixture
def volume(node: Node, tmp_path: Path) -> Path:
    """A volume that the attacker can write to."""
    folder = tmp_path / "volume"
    folder.mkdir()
    return folder


def mount(source: Path | str, target: str, **fields: Any) -> dict[str, Any]:
    return {"host_path": str(source), "container_path": target, **fields}


@pytest.mark.parametrize("readonly_rootfs", [False, True])
def test_a_volume_of_the_image_over_proc_changes_nothing(
    readonly_rootfs: bool, node: Node, registry: Registry
) -> None:
    """CVE-2019-16884: an image with VOLUME /proc had its own files mounted there, so that labels
    were written to them and nothing was masked."""
    volumes: dict[str, dict[str, str]] = {"/proc": {}, "/proc/sys": {}, "/sys": {}, "/dev": {}}
    image = push_image(registry, "volume-over-proc", Layer(), Volumes=volumes)
    security = PROTECTED | {"readonly_rootfs": readonly_rootfs}
    pod = node.run_pod("overproc")
    output = node.run_to_end(pod, image, command=PROC_STATE, security=security)
    assert output.split() == PROTECTED_PROC


@pytest.mark.parametrize("target", ["/vol/dir/inner", "/vol/dir/new/deep"])
def test_a_race_for_the_target_of_a_mount_stays_in_the_container(
    target: str, node: Node, images: Images, volume: Path, canary: Canary
) -> None:
    """CVE-2021-30465, CVE-2024-45310: while a container with two nested volumes starts, one that
    shares the outer volume swaps a folder of it with a link to the host's. The inner volume was
    mounted, or folders and files were made, on the host."""
    (volume / "dir").mkdir()
    inner = volume.with_name("inner")
    inner.mkdir()
    (inner / "mark").write_text("inner\n")
    swap = f"""
    cd /vol; ln -s {canary.folder} link
    while :; do mv dir away; mv link dir; mv dir link; mv away dir; done
    """
    pod = node.run_pod("race")
    node.run_container(
        pod, images["busybox"], name="swapper", command=swap, mounts=[mount(volume, "/vol")]
    )
    started = 0
    for number in range(25):
        begun, output = try_to_end(
            node,
            pod,
            images["busybox"],
            name=f"victim{number}",
            command="grep -c inner /proc/self/mountinfo; cut -d' ' -f 5 /proc/self/mountinfo",
            mounts=[mount(volume, "/vol"), mount(inner, target)],
        )
        assert not begun or "/" in output
        assert SECRET not in output
        started += begun
        canary.check()
    assert started > 0, "no container won the race; the attack was not tried"


def test_a_link_in_a_volume_at_the_target_of_a_mount_is_followed_inside_only(
    node: Node, images: Images, volume: Path, canary: Canary
) -> None:
    """CVE-2024-45310, without the race: the link is there, and the target below it is missing."""
    (volume / "link").symlink_to(canary.folder)
    inner = volume.with_name("mark")
    inner.write_text("marked\n")
    pod = node.run_pod("link")
    output = node.run_to_end(
        pod,
        images["busybox"],
        command=f"cat {canary.folder}/file; ls {canary.folder}",
        mounts=[mount(volume, "/vol"), mount(inner, "/vol/link/file")],
    )
    assert output == "marked\nfile\n"


@pytest.mark.parametrize("readonly_rootfs", [False, True])
@pytest.mark.parametrize("through", ["dots", "link"])
def test_a_volume_of_the_image_shows_nothing_of_the_host(
    through: str, readonly_rootfs: bool, node: Node, registry: Registry, canary: Canary
) -> None:
    """CVE-2022-23648: what the image has at the path of a VOLUME was copied into the volume; with
    dots or links in the path it was the host's."""
    layer = Layer().symlink("link", str(canary.folder)).symlink("up", "../../../../../..")
    paths = {"dots": f"/../../../..{canary.folder}", "link": "/link"}
    image = push_image(
        registry,
        f"volume-{through}",
        layer,
        Volumes={paths[through]: {}, f"/up{canary.folder}/inner": {}},
    )
    pod = node.run_pod("volume")
    _, output = try_to_end(
        node,
        pod,
        image,
        command=f"cat {canary.folder}/secret /link/secret; echo x >/link/new; ls -a /link",
        security={"readonly_rootfs": readonly_rootfs},
    )
    assert SECRET not in output


@pytest.mark.parametrize("name", ["proc", "sys"])
def test_a_link_at_the_place_of_proc_or_sys_is_refused(
    name: str, node: Node, registry: Registry, volume: Path
) -> None:
    """CVE-2019-19921, CVE-2023-27561, CVE-2023-28642: an image whose /proc is a link to a folder
    of a volume; the volume, mounted later, took the place of /proc and of all that masks it."""
    layer = Layer().whiteout(name).symlink(name, f"/vol/{name}").directory("vol")
    layer.directory(f"vol/{name}")
    image = push_image(registry, f"{name}-link", layer)
    pod = node.run_pod("proclink")
    begun, output = try_to_end(
        node,
        pod,
        image,
        command="cat /proc/self/mountinfo",
        mounts=[mount(volume, "/vol")],
        security=PROTECTED,
    )
    assert not begun
    assert f"/{name}" in output


@pytest.mark.parametrize("null", ["link", "file", "missing", "other device"])
def test_what_masks_a_file_must_be_the_null_device(
    null: str, node: Node, images: Images, volume: Path, canary: Canary
) -> None:
    """CVE-2025-31133: files are masked by a bind of /dev/null. With a link in its place, to
    core_pattern or the host's, that was bound there instead, writable."""
    match null:
        case "link":
            (volume / "null").symlink_to("/proc/sys/kernel/core_pattern")
        case "file":
            (volume / "null").write_text("not null\n")
    mounts = [mount(volume, "/dev")]
    if null == "other device":
        mounts.append(mount("/dev/zero", "/dev/null"))
    begun, output = try_to_end(
        node,
        node.run_pod("null"),
        images["busybox"],
        command="cat /proc/interrupts; echo reached",
        mounts=mounts,
        security=PROTECTED,
    )
    assert not begun
    assert "/dev/null" in output or "mask" in output


@pytest.mark.parametrize("console", ["/proc/sys/vm/drop_caches", "/proc/sys/kernel/core_pattern"])
@pytest.mark.parametrize("dev", ["hostile", "ours"])
def test_the_console_is_never_put_over_what_protects_the_host(
    console: str, dev: str, node: Node, registry: Registry, volume: Path
) -> None:
    """CVE-2025-52565: the pty was bound to /dev/console before paths were masked, by a path: a link
    there, or a swapped pty, gave write access to files of /proc."""
    layer = Layer().directory("dev").symlink("dev/console", console)
    image = push_image(registry, f"console-{Path(console).name}", layer)
    (volume / "console").symlink_to(console)
    (volume / "pts").mkdir()
    (volume / "pts/ptmx").symlink_to(console)
    before = Path("/proc/sys/kernel/core_pattern").read_text()
    begun, output = try_to_end(
        node,
        node.run_pod("console"),
        image,
        command=f"(echo h >{console}) 2>&1; readlink -f /dev/console; echo 'h' >/dev/console; ",
        tty=True,
        mounts=[mount(volume, "/dev")] if dev == "hostile" else [],
        # A folder masks nothing by /dev/null, which the hostile /dev lacks.
        security={"readonly_paths": READ_ONLY},
    )
    assert begun == (dev == "ours"), output
    assert not begun or "Read-only" in output
    assert Path("/proc/sys/kernel/core_pattern").read_text() == before


@pytest.mark.parametrize("target", ["/proc", "/proc/self", "/link", "/proc/sys/kernel"])
def test_nothing_is_written_to_a_proc_that_the_container_brings(
    target: str, node: Node, registry: Registry, volume: Path, canary: Canary
) -> None:
    """CVE-2025-52881, CVE-2019-16884: labels, sysctls and oom scores were written by paths in the
    container's /proc. With a volume there they went where its links lead, or nowhere at all."""
    for folder in ("self/attr/apparmor", "thread-self/attr/apparmor", "attr", "sys/kernel"):
        (volume / folder).mkdir(parents=True)
    for name in ("attr/exec", "attr/current", "attr/apparmor/exec", "oom_score_adj", "gid_map"):
        for process in ("self", "thread-self"):
            (volume / process / name).symlink_to(canary.secret)
    for name in ("attr/exec", "oom_score_adj", "shm_rmid_forced"):
        (volume / name).symlink_to(canary.secret)
    image = push_image(registry, "proc-by-link", Layer().symlink("link", "/proc"))
    pod = node.run_pod("fakeproc", linux={"sysctls": {"kernel.shm_rmid_forced": "1"}})
    inside = mount(canary.folder, str(canary.folder))
    words: dict[str, Any] = {"mounts": [mount(volume, target), inside]}
    begun, reason = try_to_end(node, pod, image, command="true", **words)
    assert not begun
    assert "proc" in reason
    # An exec in a container that may rename what lies in its volumes writes nothing there either.
    words["mounts"][0] = mount(volume, "/vol")
    words["resources"] = {"oom_score_adj": 321}
    container = node.run_container(pod, image, name="plain", command="sleep 60", **words)
    assert Path(f"/proc/{node.pid(container)}/oom_score_adj").read_text() == "321\n"
    assert node.exec(container, "true").exit_code == 0
