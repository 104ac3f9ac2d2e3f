# SPDX-License-Identifier: Apache-2.0
import pytest

from pycri.errors import InvalidRequest
from pycri.model.plan import SandboxPlan
from pycri.model.pod import DnsConfig, PodSpec
from pycri.model.security import NamespaceMode, NamespaceModes
from pycri.plan.names import pod_hostname, render_hostname, render_hosts, render_resolv_conf
from pycri.plan.sandbox import plan_network, plan_sandbox, pod_pins
from pycri.plan.text import render_plan
from tests.unit.plan.samples import POD_ID, host_v2, pod_paths, pod_spec

HOST_NETWORK = NamespaceModes(network=NamespaceMode.NODE)
HOST_IPC = NamespaceModes(ipc=NamespaceMode.NODE)


def plan(spec: PodSpec) -> SandboxPlan:
    return plan_sandbox(POD_ID, spec, pod_paths(spec), host_v2(), "/pycri")


@pytest.mark.parametrize(
    ("modes", "kinds"),
    [
        (NamespaceModes(), ("net", "ipc", "uts")),
        (HOST_NETWORK, ("ipc",)),
        (HOST_IPC, ("net", "uts")),
    ],
)
def test_a_pod_owns_what_it_does_not_share_with_the_host(
    modes: NamespaceModes, kinds: tuple[str, ...]
) -> None:
    spec = pod_spec(namespaces=modes)
    assert pod_pins(spec) == kinds
    assert tuple(pin.kind for pin in plan(spec).pins) == kinds


def test_a_pod_joins_the_network_that_was_made_ahead_and_sets_its_own_sysctls_alone() -> None:
    spec = pod_spec(sysctls={"net.core.somaxconn": "7"})
    paths, made = pod_paths(spec), plan(spec)
    joining = plan_sandbox(POD_ID, spec, paths, host_v2(), "/pycri", has_network=True)
    assert [pin.kind for pin in joining.pins] == ["ipc", "uts"]
    assert joining.network == paths.pins["net"]
    assert dict(joining.sysctls) == {"net/core/somaxconn": "7"}
    assert f"namespace net {paths.pins['net']}\n" in render_plan(joining)
    ahead = plan_network(POD_ID, paths.pins["net"], host_v2())
    assert {pin.kind for pin in ahead.pins} == {"net"}
    assert dict(ahead.sysctls) | dict(joining.sysctls) == dict(made.sysctls)


def test_a_pod_with_the_hosts_network_sets_no_hostname() -> None:
    assert plan(pod_spec(namespaces=HOST_NETWORK)).hostname == ""
    assert plan(pod_spec()).hostname == "web"


def sysctls(requested: dict[str, str], modes: NamespaceModes | None = None) -> dict[str, str]:
    return dict(plan(pod_spec(sysctls=requested, namespaces=modes or NamespaceModes())).sysctls)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("net.core.somaxconn", "net/core/somaxconn"),
        ("net/core/somaxconn", "net/core/somaxconn"),
        ("net.ipv4.conf.eth0/1.rp_filter", "net/ipv4/conf/eth0.1/rp_filter"),
        ("net/ipv4/conf/eth0.1/rp_filter", "net/ipv4/conf/eth0.1/rp_filter"),
        ("kernel.shmmax", "kernel/shmmax"),
        ("kernel.msgmax", "kernel/msgmax"),
        ("kernel.sem", "kernel/sem"),
        ("fs.mqueue.msg_max", "fs/mqueue/msg_max"),
    ],
)
def test_sysctls_of_the_pods_namespaces_are_written_by_path(name: str, path: str) -> None:
    assert sysctls({name: "7"})[path] == "7"


def test_the_request_overrides_a_default_sysctl() -> None:
    name = "net.ipv4.ip_unprivileged_port_start"
    assert sysctls({name: "1024"})["net/ipv4/ip_unprivileged_port_start"] == "1024"


def test_a_pod_with_the_hosts_network_gets_no_network_sysctl() -> None:
    assert sysctls({"kernel.sem": "1"}, HOST_NETWORK) == {"kernel/sem": "1"}


@pytest.mark.parametrize(
    ("name", "modes"),
    [
        ("kernel.panic", NamespaceModes()),
        ("kernel.domainname", NamespaceModes()),
        ("vm.swappiness", NamespaceModes()),
        ("net", NamespaceModes()),
        ("net/../kernel/panic", NamespaceModes()),
        ("net..x", NamespaceModes()),
        ("", NamespaceModes()),
        ("/net/core/somaxconn", NamespaceModes()),
        ("net.core.somaxconn", HOST_NETWORK),
        ("kernel.shmmax", HOST_IPC),
        ("fs.mqueue.msg_max", HOST_IPC),
    ],
)
def test_a_sysctl_of_the_node_is_refused(name: str, modes: NamespaceModes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        sysctls({name: "1"}, modes)
    assert caught.value.field == f"config.linux.sysctls[{name}]"


def test_the_hostname_is_the_nodes_where_the_pod_has_none() -> None:
    assert pod_hostname(pod_spec(), host_v2()) == "web"
    assert pod_hostname(pod_spec(hostname=""), host_v2()) == "node-1"
    assert render_hostname("web") == "web\n"


def test_hosts_has_the_local_names_and_the_pods_own() -> None:
    text = render_hosts("web", ("10.1.0.5", "fd00::5"))
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ["127.0.0.1", "localhost"]
    assert lines[-2:] == [["10.1.0.5", "web"], ["fd00::5", "web"]]
    assert "web" not in render_hosts("web")


def test_resolv_conf_has_a_line_for_each_kind_of_entry() -> None:
    dns = DnsConfig(
        servers=("10.0.0.1", "10.0.0.2"), searches=("a.local", "b"), options=("ndots:5", "rotate")
    )
    assert render_resolv_conf(dns) == (
        "search a.local b\nnameserver 10.0.0.1\nnameserver 10.0.0.2\noptions ndots:5 rotate\n"
    )
    assert render_resolv_conf(DnsConfig()) == ""


@pytest.mark.parametrize("entry", ["", "a b", "10.0.0.1\nnameserver 6.6.6.6", " x"])
def test_an_entry_that_would_break_its_line_is_refused(entry: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        render_resolv_conf(DnsConfig(servers=("10.0.0.1", entry)))
    assert caught.value.field == "config.dns_config.servers[1]"
