# SPDX-License-Identifier: Apache-2.0
"""`pycri check`: can this machine run pods, and what will it do without.

`examine` is pure: facts in, findings out. The verb prints them and exits 1 if one is fatal.
"""

import enum
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec

from pycri.errors import Unsupported
from pycri.model.host import HostFacts
from pycri.model.security import DEFAULT_APPARMOR

REFERENCE_KERNEL = (6, 1)
KUBELET_DIR = "/var/lib/kubelet"
_NEEDED_CAPABILITIES = (
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
_CONTROLLERS = {"cpu": "CPU limits", "cpuset": "CPU sets", "memory": "memory limits"}


class Verdict(enum.Enum):
    GOOD = "good"
    LIMITED = "limited"
    FATAL = "fatal"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing looked at. text: what was found, and what it means where it is not good."""

    subject: str
    verdict: Verdict
    text: str


class Surroundings(msgspec.Struct, frozen=True, kw_only=True):
    """What HostFacts does not hold. filesystems: of /proc/filesystems; nft, apparmor_parser: paths.

    propagation: of the mount the kubelet's folder is on, as `mounts.read_propagation` has it.
    network, network_fault: which network pods would get, and what is wrong with it, or "".
    http2_fault: why clients cannot be talked to, or "".
    """

    root: bool
    filesystems: frozenset[str]
    nft: str | None
    propagation: frozenset[str] = frozenset()
    apparmor_parser: str | None = None
    network: str = ""
    network_fault: str = ""
    http2_fault: str = ""


@click.command()
@click.option("--config", "path", type=click.Path(path_type=Path), help="Settings file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object a finding.")
def check(path: Path | None, *, as_json: bool) -> None:
    """Tell whether this machine can run pods."""
    surroundings = _read_surroundings(path)
    if not surroundings.root:
        raise click.ClickException("needs root: only root can run pods, and see what it may do")
    from pycri.kernel.features import probe_host

    findings = list(examine(probe_host(), surroundings))
    for finding in findings:
        if as_json:
            click.echo(msgspec.json.encode(finding).decode())
        else:
            click.echo(f"{finding.verdict.value:8} {finding.subject:14} {finding.text}")
    if any(finding.verdict is Verdict.FATAL for finding in findings):
        raise click.exceptions.Exit(1)


def _read_surroundings(path: Path | None) -> Surroundings:
    import os
    import shutil

    from pycri.config import load
    from pycri.kernel.mounts import read_propagation
    from pycri.network.choice import survey
    from pycri.network.fitness import find_fault

    with open("/proc/filesystems", encoding="ascii") as file:
        names = frozenset(line.split()[-1] for line in file if line.strip())
    settings = load(path)
    network, fault = survey(settings.network, lambda: find_fault(settings))
    return Surroundings(
        root=os.geteuid() == 0,
        filesystems=names,
        nft=shutil.which("nft"),
        apparmor_parser=shutil.which("apparmor_parser"),
        propagation=read_propagation(KUBELET_DIR if os.path.isdir(KUBELET_DIR) else "/"),
        network=network,
        network_fault=fault,
        http2_fault=_find_http2_fault(),
    )


def _find_http2_fault() -> str:
    try:
        import pycri.http2.nghttp2  # noqa: F401
    except Unsupported as error:
        return str(error)
    return ""


def examine(facts: HostFacts, surroundings: Surroundings) -> Iterator[Finding]:
    """Return a finding for each thing that matters, good ones too."""
    yield _kernel(facts)
    yield _cgroups(facts)
    yield from _controllers(facts)
    yield _filesystem(surroundings)
    yield _nft(surroundings)
    yield _http2(surroundings)
    yield _network(surroundings)
    yield _capabilities(facts)
    yield _oom(facts)
    yield _exits(facts)
    yield _user_namespaces(facts)
    yield _propagation(surroundings)
    yield _apparmor(facts, surroundings)
    yield _selinux(facts)


def _user_namespaces(facts: HostFacts) -> Finding:
    subject = "user namespace"
    if facts.user_namespaces:
        text = "pods can have one of their own (hostUsers: false)"
        return Finding(subject=subject, verdict=Verdict.GOOD, text=text)
    text = "of a pod's own is refused: Linux < 6.3, or sysctl user.max_user_namespaces is 0"
    return Finding(subject=subject, verdict=Verdict.LIMITED, text=text)


def _propagation(surroundings: Surroundings) -> Finding:
    subject = "propagation"
    if "shared" in surroundings.propagation:
        return Finding(subject=subject, verdict=Verdict.GOOD, text="the host's mounts are shared")
    text = (
        f"{KUBELET_DIR} is on a mount that is not shared: volumes with mountPropagation"
        " Bidirectional or HostToContainer are refused (mount --make-rshared /)"
    )
    return Finding(subject=subject, verdict=Verdict.LIMITED, text=text)


def _kernel(facts: HostFacts) -> Finding:
    release = ".".join(map(str, facts.kernel))
    if facts.kernel < REFERENCE_KERNEL:
        needed = ".".join(map(str, REFERENCE_KERNEL))
        text = f"Linux {release}: pycri is made for {needed} and later; pods may fail to start"
        return Finding(subject="kernel", verdict=Verdict.FATAL, text=text)
    text = f"Linux {release} on {facts.architecture}"
    return Finding(subject="kernel", verdict=Verdict.GOOD, text=text)


def _cgroups(facts: HostFacts) -> Finding:
    if not facts.cgroup_controllers:
        text = (
            f"no hierarchy is mounted below {facts.cgroup_root}: containers have no group to be in"
        )
        return Finding(subject="cgroups", verdict=Verdict.FATAL, text=text)
    text = f"version {facts.cgroup_version} at {facts.cgroup_root}"
    return Finding(subject="cgroups", verdict=Verdict.GOOD, text=text)


def _controllers(facts: HostFacts) -> Iterator[Finding]:
    """Return one finding a controller that limits need."""
    for name, use in _CONTROLLERS.items():
        if name in facts.cgroup_controllers:
            yield Finding(subject=f"cgroup {name}", verdict=Verdict.GOOD, text="is there")
        else:
            text = f"is not available: {use} have no effect"
            yield Finding(subject=f"cgroup {name}", verdict=Verdict.LIMITED, text=text)


def _filesystem(surroundings: Surroundings) -> Finding:
    if "overlay" in surroundings.filesystems:
        return Finding(subject="overlay", verdict=Verdict.GOOD, text="is there")
    text = "is not loaded: the first container loads it, or fails if the kernel has no such module"
    return Finding(subject="overlay", verdict=Verdict.LIMITED, text=text)


def _nft(surroundings: Surroundings) -> Finding:
    if surroundings.nft:
        return Finding(subject="nft", verdict=Verdict.GOOD, text=surroundings.nft)
    text = "is not installed: pods cannot reach beyond this machine; install the package nftables"
    return Finding(subject="nft", verdict=Verdict.FATAL, text=text)


def _http2(surroundings: Surroundings) -> Finding:
    if surroundings.http2_fault:
        return Finding(subject="libnghttp2", verdict=Verdict.FATAL, text=surroundings.http2_fault)
    return Finding(subject="libnghttp2", verdict=Verdict.GOOD, text="is there")


def _network(surroundings: Surroundings) -> Finding:
    if not surroundings.network_fault:
        return Finding(subject="pod network", verdict=Verdict.GOOD, text=surroundings.network)
    text = f"{surroundings.network}: no pod starts but on the host's: {surroundings.network_fault}"
    return Finding(subject="pod network", verdict=Verdict.LIMITED, text=text)


def _capabilities(facts: HostFacts) -> Finding:
    missing = [name for name in _NEEDED_CAPABILITIES if name not in facts.capabilities]
    if missing:
        text = f"this root lacks {', '.join(missing)}: pods cannot be made"
        return Finding(subject="capabilities", verdict=Verdict.FATAL, text=text)
    return Finding(
        subject="capabilities",
        verdict=Verdict.GOOD,
        text=f"{len(facts.capabilities)} can be given to a container",
    )


def _oom(facts: HostFacts) -> Finding:
    if facts.min_oom_score_adj > -1000:
        text = (
            f"cannot go below {facts.min_oom_score_adj} without CAP_SYS_RESOURCE: lower values are"
            " raised to it, so system pods are killed as readily as others"
        )
        return Finding(subject="oom_score_adj", verdict=Verdict.LIMITED, text=text)
    return Finding(subject="oom_score_adj", verdict=Verdict.GOOD, text="can be set at will")


def _apparmor(facts: HostFacts, surroundings: Surroundings) -> Finding:
    # A node without it is none the worse: distributions have the one or the other.
    text = "is not there: containers that name a profile of it are refused"
    if facts.apparmor:
        text = f"is there; RuntimeDefault is the profile {DEFAULT_APPARMOR}"
        if not surroundings.apparmor_parser:
            text = "is there, but apparmor_parser is not: RuntimeDefault confines nothing"
            return Finding(subject="apparmor", verdict=Verdict.LIMITED, text=text)
    return Finding(subject="apparmor", verdict=Verdict.GOOD, text=text)


def _selinux(facts: HostFacts) -> Finding:
    text = "is not there: pods and containers that ask for a label are refused"
    if facts.selinux:
        text = "is there: containers that ask for a label get it, and their files with them"
    return Finding(subject="selinux", verdict=Verdict.GOOD, text=text)


def _exits(facts: HostFacts) -> Finding:
    if facts.pidfd_exit_info:
        text = "survive the loss of the spawner"
        return Finding(subject="exit codes", verdict=Verdict.GOOD, text=text)
    text = "of containers that run when the spawner is lost will be unknown (Linux < 6.15)"
    return Finding(subject="exit codes", verdict=Verdict.LIMITED, text=text)
