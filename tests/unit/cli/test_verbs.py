# SPDX-License-Identifier: Apache-2.0
"""Verbs that need no daemon: output, exit status, and what they load."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from pycri import __version__
from pycri.cli.check import Surroundings, Verdict, examine
from pycri.cli.main import main
from pycri.config import Settings, load
from pycri.model.host import HostFacts

HOST = HostFacts(
    kernel=(6, 18),
    architecture="amd64",
    hostname="node",
    cgroup_version=2,
    cgroup_root="/sys/fs/cgroup",
    cgroup1_mounts={},
    cgroup_controllers=frozenset({"cpu", "cpuset", "memory"}),
    hugepage_sizes=(),
    min_oom_score_adj=-1000,
    capabilities=frozenset(
        (
            "CAP_CHOWN",
            "CAP_DAC_OVERRIDE",
            "CAP_KILL",
            "CAP_MKNOD",
            "CAP_NET_ADMIN",
            "CAP_SETGID",
            "CAP_SETPCAP",
            "CAP_SETUID",
            "CAP_SYS_ADMIN",
            "CAP_SYS_CHROOT",
            "CAP_SYS_PTRACE",
        )
    ),
    overlay_lowerdir_append=True,
    pidfd_exit_info=True,
    user_namespaces=True,
    apparmor=False,
    selinux=False,
)
AROUND = Surroundings(
    root=True,
    filesystems=frozenset({"overlay"}),
    nft="/usr/sbin/nft",
    propagation=frozenset({"shared"}),
)


def test_check_says_what_is_missing_to_talk_to_clients() -> None:
    around = msgspec.structs.replace(AROUND, http2_fault="install it")
    (found,) = [one for one in examine(HOST, around) if one.subject == "libnghttp2"]
    assert (found.verdict, found.text) == (Verdict.FATAL, "install it")


def test_without_its_library_the_daemon_says_what_to_install() -> None:
    code = (
        "import ctypes\n"
        "from pycri.errors import Unsupported\n"
        "def fail(name): raise OSError(name)\n"
        "ctypes.PyDLL = fail\n"
        "try: import pycri.cri.server\n"
        "except Unsupported as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "install the package libnghttp2-14" in done.stdout


def test_version_is_the_packages() -> None:
    assert CliRunner().invoke(main, ["version"]).stdout == f"pycri {__version__}\n"


def test_printed_config_can_be_served(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(CliRunner().invoke(main, ["config", "--default"]).stdout, encoding="utf-8")
    assert load(path) == Settings()
    path.write_text('run_dir = "/elsewhere"\n', encoding="utf-8")
    shown = CliRunner().invoke(main, ["config", "--config", str(path)])
    assert 'run_dir = "/elsewhere"' in shown.stdout


@pytest.mark.parametrize("verb", ["serve", "config"])
def test_a_wrong_setting_is_one_line_and_exit_1(tmp_path: Path, verb: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text("sockett = 1\n", encoding="utf-8")
    result = CliRunner().invoke(main, [verb, "--config", str(path)])
    assert result.exit_code == 1
    assert result.stderr == f"Error: {path}: sockett: unknown key; did you mean socket?\n"


@pytest.mark.parametrize("arguments", [["nonsense"], ["timeline"], ["image", "import"]])
def test_wrong_usage_is_exit_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(main, arguments).exit_code == 2


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [("pycri.cli.main", ["grpc", "google", "asyncio"]), ("pycri.daemon", ["grpc", "google"])],
)
def test_grpc_is_not_loaded_before_the_spawner_runs(module: str, unwanted: list[str]) -> None:
    """A process with gRPC's threads must not fork."""
    script = f"import sys, {module}; print([m for m in {unwanted} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("[]\n", "")


def test_a_good_host_has_nothing_to_complain_of() -> None:
    findings = list(examine(HOST, AROUND))
    assert {finding.verdict for finding in findings} == {Verdict.GOOD}


@pytest.mark.parametrize(
    ("facts", "around", "subject", "verdict"),
    [
        ({"kernel": (5, 15)}, {}, "kernel", Verdict.FATAL),
        ({"cgroup_controllers": frozenset()}, {}, "cgroups", Verdict.FATAL),
        ({"cgroup_controllers": frozenset({"cpu"})}, {}, "cgroup memory", Verdict.LIMITED),
        ({"capabilities": frozenset()}, {}, "capabilities", Verdict.FATAL),
        ({}, {"propagation": frozenset({"master"})}, "propagation", Verdict.LIMITED),
        ({"min_oom_score_adj": 0}, {}, "oom_score_adj", Verdict.LIMITED),
        ({"pidfd_exit_info": False}, {}, "exit codes", Verdict.LIMITED),
        ({"user_namespaces": False}, {}, "user namespace", Verdict.LIMITED),
        ({}, {"filesystems": frozenset()}, "overlay", Verdict.LIMITED),
        ({}, {"nft": None}, "nft", Verdict.FATAL),
        ({}, {"network": "CNI", "network_fault": "no plugin"}, "pod network", Verdict.LIMITED),
        ({"apparmor": True}, {}, "apparmor", Verdict.LIMITED),
        (
            {"apparmor": True},
            {"apparmor_parser": "/sbin/apparmor_parser"},
            "apparmor",
            Verdict.GOOD,
        ),
    ],
)
def test_what_is_missing_is_found(
    facts: dict[str, object], around: dict[str, object], subject: str, verdict: Verdict
) -> None:
    host = msgspec.structs.replace(HOST, **facts)
    surroundings = msgspec.structs.replace(AROUND, **around)
    found = {finding.subject: finding.verdict for finding in examine(host, surroundings)}
    assert found[subject] is verdict
