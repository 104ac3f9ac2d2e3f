# SPDX-License-Identifier: Apache-2.0
"""Published escapes by what the node does for a pod: sysctls, log files, its files in /etc.

Each test sets the attack up for real; its docstring says what the attack was. docs/security.md
lists them.
"""

from collections.abc import Iterator
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

INVALID = grpc.StatusCode.INVALID_ARGUMENT
CORE_PATTERN = Path("/proc/sys/kernel/core_pattern")
INJECTED = "|/evil #"


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Canary]:
    """A folder of the host that is looked at again afterwards."""
    canary = Canary(tmp_path / "canary")
    yield canary
    canary.check()


@pytest.fixture
def core_pattern() -> Iterator[str]:
    """The host's core_pattern, which stays."""
    before = CORE_PATTERN.read_text()
    yield before
    assert CORE_PATTERN.read_text() == before


@pytest.mark.parametrize(
    "sysctls",
    [
        {"kernel.shm_rmid_forced": f"1+kernel.core_pattern={INJECTED}"},
        {"kernel.shm_rmid_forced": f"1\nkernel.core_pattern={INJECTED}"},
        {"kernel.shm_rmid_forced": f"1\0kernel.core_pattern={INJECTED}"},
        {f"kernel.shm_rmid_forced=1+kernel.core_pattern={INJECTED}": "1"},
        {"kernel.shm_rmid_forced/../core_pattern": INJECTED},
        {"kernel/shm_rmid_forced/../core_pattern": INJECTED},
        {"kernel.shm_rmid_forced.././core_pattern": INJECTED},
        {"net/../kernel/core_pattern": INJECTED},
        {"kernel.core_pattern": INJECTED},
    ],
)
def test_no_sysctl_carries_another_one(
    sysctls: dict[str, str], core_pattern: str, node: Node
) -> None:
    """CVE-2022-0811: the value of a harmless sysctl went on with "+kernel.core_pattern=|..."."""
    with pytest.raises(grpc.RpcError) as caught:
        node.run_pod("sysctl", linux={"sysctls": sysctls})
    expected = (INVALID, grpc.StatusCode.INTERNAL)
    assert caught.value.code() in expected
    assert not node.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items


def test_an_annotation_sets_nothing(core_pattern: str, node: Node, images: Images) -> None:
    """CVE-2022-0811, CVE-2022-1708's kin: annotations that runtimes took for settings."""
    annotations = {
        "io.kubernetes.cri-o.ShmSize": "-1",
        "security.alpha.kubernetes.io/sysctls": f"kernel.core_pattern={INJECTED}",
        "io.containerd.runc.v2.group": "../../evil",
        "run.oci.systemd.force_cgroup_v1": "/sys/fs/cgroup",
        "run.oci.hooks.stderr": "/evil",
        "module.wasm.image/variant": "compat",
    }
    pod = node.run_pod("annotated", annotations=annotations)
    output = node.run_to_end(pod, images["busybox"], command="echo plain", annotations=annotations)
    assert output == "plain\n"


@pytest.mark.parametrize("path", ["etc", "etc/hosts", "etc/hostname", "etc/resolv.conf"])
@pytest.mark.parametrize("dots", ["", "../../../../../../../.."])
def test_the_pod_s_files_are_not_put_where_links_of_the_image_lead(
    path: str, dots: str, node: Node, registry: Registry, canary: Canary
) -> None:
    """CVE-2024-5154: the runtime made files for a container by joining its root and a path; where
    the image has a link, /etc to ../../.., they were made, and later read, on the host."""
    lead = f"{canary.folder}/secret" if "/" in path else f"{canary.folder}"
    layer = Layer().whiteout(path) if path == "etc" else Layer()
    layer.symlink(path, f"{dots}{lead}").symlink("mtab", f"{dots}{canary.secret}")
    image = push_image(registry, f"etc-link-{len(dots)}-{path.replace('/', '-')}", layer)
    script = f"cat /{path} {canary.secret}; echo overwritten >{canary.secret}; true"
    _, output = try_to_end(node, node.run_pod("etclink"), image, command=script)
    assert SECRET not in output


def test_a_termination_log_is_not_put_where_a_link_of_the_image_leads(
    node: Node, registry: Registry, canary: Canary
) -> None:
    """CVE-2024-5154, by the mount of a termination log at a path that the pod's author gives."""
    log = canary.folder.with_name("termination-log")
    log.write_text("")
    layer = Layer().symlink("messages", f"../../../../../../..{canary.folder}")
    image = push_image(registry, "termination-link", layer)
    node.run_to_end(
        node.run_pod("termination"),
        image,
        command="echo ended >/messages/last",
        mounts=[{"host_path": str(log), "container_path": "/messages/last"}],
    )
    assert log.read_text() == "ended\n"


@pytest.mark.parametrize("path", ["../up.log", "a/../../up.log", "/absolute.log", "a\nb.log"])
def test_a_log_path_that_leaves_the_pod_s_folder_is_refused(
    path: str, node: Node, images: Images
) -> None:
    """The log of a container is written by the runtime, as root, outside of every container."""
    with refused(INVALID, "config.log_path"):
        node.run_container(
            node.run_pod("logpath"), images["busybox"], command=["true"], log_path=path
        )


def write_forever(node: Node, pod: str, image: str) -> str:
    return node.run_container(pod, image, command="while :; do echo tick; usleep 20000; done")


def test_a_link_at_the_path_of_a_log_is_not_followed(
    node: Node, images: Images, canary: Canary
) -> None:
    """A pod that mounts the node's folder of logs puts a link in the place of a log to be made;
    the runtime wrote, as root, where it leads."""
    pod = node.run_pod("loglink")
    folder = node.folder / "logs/loglink"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "main.log").symlink_to(canary.secret)
    with pytest.raises(grpc.RpcError) as caught:
        write_forever(node, pod, images["busybox"])
    assert "log" in str(caught.value.details())


def test_a_link_at_the_path_of_a_log_is_not_followed_when_it_is_reopened(
    node: Node, images: Images, canary: Canary
) -> None:
    """Likewise, with a log that is there and is swapped before the kubelet rotates it."""
    container = write_forever(node, node.run_pod("relink"), images["busybox"])
    log = Path(node.status(container).log_path)
    node.wait_log(container, "tick")
    log.rename(log.with_suffix(".1"))
    log.symlink_to(canary.secret)
    request: dict[str, Any] = {"container_id": container}
    with pytest.raises(grpc.RpcError):
        node.runtime.ReopenContainerLog(cri.ReopenContainerLogRequest(**request), timeout=10)
    canary.check()
    assert node.status(container).state == cri.CONTAINER_RUNNING
    log.unlink()
