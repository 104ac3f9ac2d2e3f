# SPDX-License-Identifier: Apache-2.0
"""A node whose pods are on CNI plugins. The node's host is a network namespace of its own."""

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from pycri.cri.api import runtime_v1_pb2 as cri
from tests.integration.kernel.netns import Namespace
from tests.world import leaks
from tests.world.cni import DEBIAN_PLUGINS, CniFolders
from tests.world.daemon import CALL_TIMEOUT_S, Node, refused, wait_until
from tests.world.reboot import reboot


@pytest.fixture
def folders(tmp_path: Path) -> CniFolders:
    return CniFolders(tmp_path / "cni")


@pytest.fixture
def make_cni_node(scope: leaks.Scope, folders: CniFolders) -> Iterator[Callable[..., Node]]:
    """Make and start a node that looks for CNI in `folders`, in a host of its own."""
    nodes: list[Node] = []
    with Namespace() as host:
        run_in(host.path, "ip", "link", "set", "lo", "up")

        def make(kind: str = "cni", timeout_s: int = 20) -> Node:
            network = f'kind = "{kind}"'
            nodes.append(
                Node(scope, settings=folders.toml(timeout_s), network=network, netns=host.path)
            )
            return nodes[-1].start()

        yield make
        folders.behave({})
        for node in nodes:
            node.close()


def run_in(netns: str, *command: str) -> str:
    """Run a command in a network namespace, and return what it prints."""
    inside = ["nsenter", f"--net={netns}", *command]
    return subprocess.run(inside, capture_output=True, text=True, check=True).stdout


def network_condition(node: Node) -> cri.RuntimeCondition:
    """Ask twice: an answer has what was known at the question before."""
    for _ in range(2):
        status = node.runtime.Status(cri.StatusRequest(), timeout=CALL_TIMEOUT_S).status
    (condition,) = (entry for entry in status.conditions if entry.type == "NetworkReady")
    return condition


def wait_ready(node: Node) -> None:
    wait_until(lambda: network_condition(node).status, what="the network is ready")


def addresses(node: Node, pod: str) -> list[str]:
    network = node.pod_status(pod).network
    return [network.ip, *(entry.ip for entry in network.additional_ips)]


def test_a_pod_has_all_addresses_of_all_its_networks_and_plugins_know_whose_it_is(
    folders: CniFolders, make_cni_node: Callable[..., Node]
) -> None:
    folders.write_chain("main", "more", addresses=("10.1.2.3/24", "fd00::3/64"))
    folders.write_chain("store", name="store", file="20.conflist", addresses=("10.9.0.1/16",))
    node = make_cni_node()
    pod = node.run_pod("web", annotations={"network.pycri/networks": "store"})
    assert addresses(node, pod) == ["10.1.2.3", "fd00::3", "10.9.0.1"]
    assert folders.order() == ["ADD main eth0", "ADD more eth0", "ADD store eth1"]
    given = folders.calls()[0]["environment"]
    assert given["CNI_CONTAINERID"] == pod
    assert given["CNI_NETNS"] == f"{node.run_dir}/ns/{pod}/net"
    assert dict(pair.split("=") for pair in given["CNI_ARGS"].split(";")) == {
        "IgnoreUnknown": "1",
        "K8S_POD_NAMESPACE": "tests",
        "K8S_POD_NAME": "web",
        "K8S_POD_UID": "web-uid",
        "K8S_POD_INFRA_CONTAINER_ID": pod,
    }
    node.restart()
    assert addresses(node, pod) == ["10.1.2.3", "fd00::3", "10.9.0.1"]
    node.stop_pod(pod)
    node.remove_pod(pod)
    assert folders.order("DEL") == ["DEL store eth1", "DEL more eth0", "DEL main eth0"]
    assert folders.held() == []


def test_a_pod_on_the_hosts_network_is_none_of_the_plugins(
    folders: CniFolders, make_cni_node: Callable[..., Node]
) -> None:
    folders.write_chain("main")
    node = make_cni_node()
    pod = node.run_pod("web", namespaces={"network": cri.NODE})
    assert addresses(node, pod) == [""]
    node.remove_pod(pod)
    assert folders.calls() == []


def test_lo_is_up_in_a_pod_of_plugins_that_leave_it_alone(
    folders: CniFolders, make_cni_node: Callable[..., Node]
) -> None:
    folders.write_chain("main")
    node = make_cni_node()
    pod = node.run_pod("web")
    assert "LOOPBACK,UP" in run_in(f"{node.run_dir}/ns/{pod}/net", "ip", "link", "show", "lo")


@pytest.mark.skipif(
    not Path(DEBIAN_PLUGINS, "bridge").exists(),
    reason="needs Debian's containernetworking-plugins; see scripts/setup",
)
def test_a_pod_in_a_user_namespace_of_its_own_is_attached_as_any(
    folders: CniFolders, make_cni_node: Callable[..., Node]
) -> None:
    ipam = {
        "type": "host-local",
        "dataDir": str(folders.folder / "addresses"),
        "ranges": [[{"subnet": "10.77.6.0/24"}]],
    }
    bridge = {"type": "bridge", "bridge": "userns0", "ipam": ipam}
    tuning = {"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}}
    chain = {"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge, tuning]}
    folders.write("1.conflist", chain)
    node = make_cni_node()
    ids = cri.IDMapping(host_id=1_000_000, container_id=0, length=65536)
    userns = cri.UserNamespace(mode=cri.POD, uids=[ids], gids=[ids])
    pod = node.run_pod("mapped", namespaces={"userns_options": userns})
    assert node.pod_ip(pod) == "10.77.6.2"
    node.remove_pod(pod)


def test_capabilities_go_to_the_plugins_that_declare_them(
    folders: CniFolders, make_cni_node: Callable[..., Node]
) -> None:
    declared = ["bandwidth", "dns", "ipRanges", "cgroupPath", "aliases"]
    folders.install("deaf")
    folders.install("told")
    plugins = [
        {"type": "deaf", "addresses": ["10.1.2.3/24"], "capabilities": {"dns": False}},
        {"type": "told", "capabilities": dict.fromkeys(declared, True)},
    ]
    folders.write("1.conflist", {"cniVersion": "1.0.0", "name": "pods", "plugins": plugins})
    node = make_cni_node()
    config = cri.RuntimeConfig(network_config=cri.NetworkConfig(pod_cidr="10.5.0.0/16,fd05::/64"))
    node.runtime.UpdateRuntimeConfig(cri.UpdateRuntimeConfigRequest(runtime_config=config))
    pod = node.run_pod(
        "web",
        dns_config={"servers": ["10.0.0.10"], "searches": ["svc.local"], "options": ["ndots:5"]},
        annotations={"kubernetes.io/ingress-bandwidth": "1M"},
        linux={"cgroup_parent": f"/{node.name}/slice"},
    )
    deaf, told = (call["request"] for call in folders.calls("ADD"))
    assert "runtimeConfig" not in deaf
    assert "capabilities" not in told
    assert told["runtimeConfig"] == {
        "bandwidth": {"ingressRate": 10**6, "ingressBurst": 2**32 - 1},
        "dns": {"servers": ["10.0.0.10"], "searches": ["svc.local"], "options": ["ndots:5"]},
        "ipRanges": [[{"subnet": "10.5.0.0/16"}], [{"subnet": "fd05::/64"}]],
        "cgroupPath": f"/{node.name}/slice",
        "aliases": ["web"],
    }
    node.remove_pod(pod)
    assert folders.calls("DEL")[0]["request"]["runtimeConfig"] == told["runtimeConfig"]


def test_without_a_configuration_the_network_is_not_ready_and_with_one_it_is(
    folders: CniFolders, make_cni_node: Callable[..., Node]
) -> None:
    shutil.rmtree(folders.conf_dir)
    node = make_cni_node()
    condition = network_condition(node)
    assert not condition.status
    assert condition.reason == "NetworkPluginNotReady"
    assert f"no network configuration in {folders.conf_dir}" in condition.message
    with refused(grpc.StatusCode.UNAVAILABLE, "no network configuration"):
        node.run_pod("early")
    folders.conf_dir.mkdir()
    folders.write_chain("main")
    wait_ready(node)
    node.remove_pod(node.run_pod("web"))
    info = node.runtime.Status(cri.StatusRequest(verbose=True), timeout=CALL_TIMEOUT_S).info
    assert info["lastCNILoadStatus"] == "OK"
    assert json.loads(info["cniconfig"])["network"]["plugins"][0]["type"] == "main"


def test_no_change_of_the_folder_is_missed(
    folders: CniFolders, make_cni_node: Callable[..., Node]
) -> None:
    folders.write_chain("main", addresses=("10.1.0.1/24",))
    node = make_cni_node()
    assert addresses(node, node.run_pod("first")) == ["10.1.0.1"]
    folders.write_chain("main", addresses=("10.1.0.2/24",))  # a file is renamed in
    assert addresses(node, node.run_pod("second")) == ["10.1.0.2"]
    other = folders.conf_dir.with_name("other")
    shutil.copytree(folders.conf_dir, other)
    shutil.rmtree(folders.conf_dir)
    other.rename(folders.conf_dir)  # the folder is replaced
    folders.write_chain("main", addresses=("10.1.0.3/24",), file="00.conflist", name="new")
    assert addresses(node, node.run_pod("third")) == ["10.1.0.3"]
    path = folders.conf_dir / "00.conflist"
    times = path.stat()
    path.write_text(path.read_text().replace("10.1.0.3", "10.1.0.4"))  # in place, of equal size
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # and of equal time
    assert addresses(node, node.run_pod("fourth")) == ["10.1.0.4"]
    (folders.conf_dir / "0.conflist").write_text('{"cniVersion": "1.0.0", "na')
    wait_until(lambda: "0.conflist: not JSON" in network_condition(node).message, what="it is told")
    (folders.conf_dir / "0.conflist").unlink()
    wait_ready(node)


def test_a_plugin_that_is_missing_is_named_before_any_pod(
    folders: CniFolders, make_cni_node: Callable[..., Node]
) -> None:
    folders.write_chain("main", "absent")
    (folders.bin_dir / "absent").unlink()
    node = make_cni_node()
    assert "plugin absent is not in" in network_condition(node).message
    with refused(grpc.StatusCode.UNAVAILABLE, "plugin absent is not in"):
        node.run_pod("early")
    assert folders.calls() == []


def test_auto_is_built_in_until_a_configuration_comes_and_cni_from_then_on(
    folders: CniFolders, make_cni_node: Callable[..., Node]
) -> None:
    node = make_cni_node("auto")
    assert network_condition(node).status
    old = node.run_pod("old")
    assert node.pod_ip(old).startswith(node.subnet.removesuffix("0/24"))
    folders.write_chain("main")
    new = node.run_pod("new")
    assert node.pod_ip(new) == "10.1.2.3"
    shutil.rmtree(folders.conf_dir)
    wait_until(lambda: not network_condition(node).status, what="not ready")
    with refused(grpc.StatusCode.UNAVAILABLE, "no network configuration"):
        node.run_pod("none")
    node.restart()
    assert not network_condition(node).status
    with refused(grpc.StatusCode.UNAVAILABLE, "no network configuration"):
        node.run_pod("none")
    assert node.pod_ip(old).startswith(node.subnet.removesuffix("0/24"))
    for pod in (old, new):
        node.remove_pod(pod)
    assert folders.held() == []
    assert folders.order("DEL") == ["DEL main eth0"]


def test_a_pod_is_stopped_though_its_plugin_fails_and_freed_later(
    folders: CniFolders, make_cni_node: Callable[..., Node]
) -> None:
    folders.write_chain("main")
    node = make_cni_node()
    pod = node.run_pod("web")
    folders.behave({"DEL": "fail"})
    node.stop_pod(pod)
    node.remove_pod(pod)
    assert folders.held() == [f"{pod}.eth0.main"]
    folders.behave({})
    node.restart()
    wait_until(lambda: not folders.held(), what="freed")
    assert folders.calls("DEL")[-1]["environment"]["CNI_NETNS"] == ""


def begin(work: Callable[[], object]) -> ThreadPoolExecutor:
    """Make a call whose daemon is going to be killed."""
    pool = ThreadPoolExecutor(1)

    def cut_short() -> None:
        with contextlib.suppress(grpc.RpcError):
            work()

    pool.submit(cut_short)
    return pool


@pytest.mark.parametrize("plugin", ["first", "second"])
def test_a_daemon_killed_in_add_leaves_nothing(
    plugin: str, folders: CniFolders, make_cni_node: Callable[..., Node]
) -> None:
    folders.write_chain("first", "second")
    node = make_cni_node()
    folders.behave({f"{plugin}/ADD": "hang"})
    with begin(lambda: node.run_pod("cut")):
        wait_until(lambda: f"ADD {plugin} eth0" in folders.order(), what="the plugin runs")
        wait_until(lambda: any(plugin in held for held in folders.held()), what="it has worked")
        node.kill("daemon")
    node.start()
    wait_until(lambda: not folders.held(), what="freed")
    assert folders.order("DEL")[:2] == ["DEL second eth0", "DEL first eth0"]
    assert not node.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items
    wait_until(lambda: not hanging(folders), what="the plugin of the former daemon ends")


@pytest.mark.parametrize("plugin", ["first", "second"])
def test_a_daemon_killed_in_del_leaves_nothing(
    plugin: str, folders: CniFolders, make_cni_node: Callable[..., Node]
) -> None:
    folders.write_chain("first", "second")
    node = make_cni_node()
    pod = node.run_pod("cut")
    folders.behave({f"{plugin}/DEL": "hang"})
    with begin(lambda: node.stop_pod(pod)):
        wait_until(lambda: f"DEL {plugin} eth0" in folders.order(), what="the plugin runs")
        node.kill("daemon")
    folders.behave({})
    node.start()
    wait_until(lambda: not folders.held(), what="freed")
    assert node.pod_status(pod).state == cri.SANDBOX_NOTREADY
    node.remove_pod(pod)
    wait_until(lambda: not hanging(folders), what="the plugin of the former daemon ends")


def hanging(folders: CniFolders) -> list[str]:
    """Return the commands of plugins that still run."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{name}/cmdline").read_text()
            if str(folders.bin_dir) in command:
                found.append(command)
    return found


def test_after_a_reboot_plugins_free_what_the_former_boot_held(
    folders: CniFolders, make_cni_node: Callable[..., Node]
) -> None:
    folders.write_chain("main", version="1.1.0")
    node = make_cni_node()
    wait_ready(node)
    pod = node.run_pod("old")
    reboot(node)
    wait_until(lambda: not folders.held(), what="freed")
    assert folders.calls("DEL")[0]["environment"]["CNI_NETNS"] == ""
    assert len(folders.calls("GC")) == 2  # one a start
    assert node.pod_status(pod).state == cri.SANDBOX_NOTREADY
    node.remove_pod(pod)


def test_plugins_that_hang_do_not_keep_a_node_from_starting(
    folders: CniFolders, make_cni_node: Callable[..., Node]
) -> None:
    folders.write_chain("main", version="1.1.0")
    node = make_cni_node(timeout_s=600)
    wait_ready(node)
    pods = [node.run_pod(f"old-{number}") for number in range(2)]
    folders.behave(dict.fromkeys(("GC", "DEL", "STATUS"), "hang"))
    reboot(node)
    assert "have not told their status yet" in network_condition(node).message
    folders.behave({})
    node.restart()
    wait_until(lambda: not folders.held(), what="freed")
    wait_ready(node)
    for pod in pods:
        node.remove_pod(pod)


def test_a_daemon_that_is_stopped_in_add_ends_soon_and_undoes_it(
    folders: CniFolders, make_cni_node: Callable[..., Node]
) -> None:
    folders.write_chain("first", "second")
    node = make_cni_node(timeout_s=600)
    folders.behave({"second/ADD": "hang"})
    with begin(lambda: node.run_pod("cut")):
        wait_until(lambda: any("second" in held for held in folders.held()), what="it hangs")
        node.stop()
    assert not hanging(folders)
    node.start()
    wait_until(lambda: not folders.held(), what="freed")
    assert not node.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items
