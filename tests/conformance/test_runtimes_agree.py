# SPDX-License-Identifier: Apache-2.0
"""One plan, three executors: our own, crun and runc show a container the same world.

Each container of the matrix runs through the node; then the same plan, rendered as an OCI
config.json, through the others. What the probe prints inside is compared line by line. Accepted
differences are in differences.toml; one that is not there fails, and so does one that is there
and no longer occurs.
"""

import fnmatch
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pycri.cri.api import runtime_v1_pb2 as cri
from tests.world.daemon import Node
from tests.world.images import Images
from tests.world.oci_runtimes import run_plan

HERE = Path(__file__).parent
DIFFERENCES = tomllib.loads((HERE / "differences.toml").read_text())
HOST = {
    "cgroup2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "cgroup1",
    "kcore" if Path("/proc/kcore").exists() else "no-kcore",
}
RUNTIMES = ("crun", "runc")
PROBE = (HERE / "probe.sh").read_text()
HOST_NAMESPACES = {"network": cri.NODE, "pid": cri.NODE, "ipc": cri.NODE}

Words = dict[str, Any]

MATRIX: dict[str, tuple[Words, Words]] = {
    "plain": ({}, {"env": {"COLOUR": "green", "EMPTY": ""}}),
    "limits": (
        {},
        {
            "resources": {
                "cpu_period": 50_000,
                "cpu_quota": 25_000,
                "cpu_shares": 512,
                "memory_limit_in_bytes": 64 << 20,
                "cpuset_cpus": "0",
                "cpuset_mems": "0",
                "oom_score_adj": 500,
            }
        },
    ),
    "user": (
        {},
        {
            "security": {
                "run_as_user": {"value": 1000},
                "run_as_group": {"value": 33},
                "supplemental_groups": [4000, 29],
                "no_new_privs": True,
                "capabilities": {"add_capabilities": ["NET_ADMIN"]},
            },
            "working_dir": "/home/kim",
        },
    ),
    "ambient": (
        {},
        {
            "security": {
                "run_as_user": {"value": 1000},
                "capabilities": {
                    "drop_capabilities": ["ALL"],
                    "add_ambient_capabilities": ["NET_BIND_SERVICE"],
                },
            }
        },
    ),
    "dropped": ({}, {"security": {"capabilities": {"drop_capabilities": ["ALL"]}}}),
    "privileged": (
        {"security": {"privileged": True}},
        {"security": {"privileged": True}},
    ),
    "read-only": (
        {},
        {
            "security": {
                "readonly_rootfs": True,
                "masked_paths": ["/proc/kcore", "/proc/keys", "/sys/firmware", "/no/such"],
                "readonly_paths": ["/proc/sys", "/proc/sysrq-trigger", "/no/such"],
            }
        },
    ),
    "device": (
        {},
        {
            "devices": [
                {"host_path": "/dev/zero", "container_path": "/dev/nada", "permissions": "r"},
            ]
        },
    ),
    "seccomp": (
        {},
        {"security": {"seccomp": {"profile_type": cri.SecurityProfile.RuntimeDefault}}},
    ),
    "host": ({"namespaces": HOST_NAMESPACES}, {}),
    "shared-pid": ({"namespaces": {"pid": cri.POD}}, {}),
    "terminal": ({}, {"tty": True}),
    "made-folder": ({}, {"working_dir": "/made/here"}),
}


@pytest.fixture
def volume(node: Node) -> Iterator[Path]:
    """A shared mount of the host with a folder and a file, as slave mounts need one."""
    folder = node.folder / "volume"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "volume", folder], check=True)
    try:
        subprocess.run(["mount", "--make-shared", folder], check=True)
        (folder / "below").mkdir()
        (folder / "file").write_text("content\n")
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)
        folder.rmdir()


def mount_words(folder: Path) -> Words:
    """Binds of every kind: a folder, a file; read-only, recursively so; a slave."""
    kinds: list[Words] = [
        {"container_path": "/rw"},
        {"container_path": "/ro", "readonly": True},
        {"container_path": "/rro", "readonly": True, "recursive_read_only": True},
        {"container_path": "/deep/er", "propagation": cri.PROPAGATION_HOST_TO_CONTAINER},
    ]
    mounts = [kind | {"host_path": str(folder)} for kind in kinds]
    mounts.append({"container_path": "/etc/file", "host_path": f"{folder}/file"})
    return {"mounts": mounts}


def parse_report(text: str) -> dict[str, str]:
    """Return what the probe printed: "KEY<tab>VALUE" a line, without what differs by chance."""
    report: dict[str, str] = {}
    for line in text.replace("\r\n", "\n").splitlines():
        key, tab, value = line.partition("\t")
        assert tab, f"not a line of the probe: {line!r} in {text}"
        while key in report:
            key += "'"
        report[key] = value
    assert report.get("end") == "yes", text
    return report


def clean(report: dict[str, str]) -> dict[str, str]:
    """Replace container ids and inode numbers, which no two containers share."""
    replaced = {}
    for key, value in report.items():
        value = re.sub(r"[0-9a-f]{64}", "ID", value)
        replaced[key] = re.sub(r"(pipe|socket|net|anon_inode):\[\d+\]", r"\1:[N]", value)
    return replaced


def find_differences(ours: dict[str, str], theirs: dict[str, str]) -> dict[str, str]:
    """Return "key" to both values for every line that differs."""
    return {
        key: f"pycri {ours.get(key)!r}, other {theirs.get(key)!r}"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    }


def accepted(case: str, runtime: str) -> list[str]:
    """Return the patterns of differences.toml that apply."""
    return [
        pattern
        for entry in DIFFERENCES["difference"]
        if runtime in entry["runtimes"]
        and case in entry.get("cases", [case])
        and case not in entry.get("except", [])
        and set(entry.get("host", [])) <= HOST
        for pattern in entry["keys"]
    ]


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("case", [*MATRIX, "mounts"])
def test_a_container_sees_the_same_world(
    case: str, runtime: str, node: Node, images: Images, volume: Path
) -> None:
    if shutil.which(runtime) is None:
        pytest.skip(f"needs {runtime}")
    pod_words, words = MATRIX.get(case) or ({}, mount_words(volume))
    pod = node.run_pod("probed", **pod_words)
    container = node.run_container(pod, images["busybox"], command=PROBE, **words)
    status = node.wait_exited(container)
    assert status.exit_code == 0, node.log(container)
    ours = parse_report(node.output(container))
    theirs = parse_report(run_plan(node, runtime, container))
    found = find_differences(clean(ours), clean(theirs))
    patterns = accepted(case, runtime)
    unlisted = {
        key: both
        for key, both in found.items()
        if not any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)
    }
    gone = [pattern for pattern in patterns if not fnmatch.filter(found, pattern)]
    assert not unlisted, "\n".join(f"{key}: {both}" for key, both in unlisted.items())
    assert not gone, f"listed in differences.toml but no longer there: {gone}"
