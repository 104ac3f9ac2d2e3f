# SPDX-License-Identifier: Apache-2.0
"""A web server and its sidecar, and clients on the node and in other pods."""

import ipaddress
import urllib.request

import pytest

from tests.world.daemon import Node, wait_until
from tests.world.images import INDEX_HTML, Images


def fetch(url: str) -> bytes:
    # No proxy of the environment stands between a pod and its node.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=5) as answer:
        content: bytes = answer.read()
        return content


def wait_serving(url: str) -> None:
    def answers() -> bool:
        try:
            return bool(fetch(url))
        except OSError:
            return False

    wait_until(answers, what=f"{url} answers")


def test_nginx_and_a_sidecar_share_localhost_and_a_volume(node: Node, images: Images) -> None:
    volume = node.folder / "volume"
    volume.mkdir(exist_ok=True)
    mount = {"host_path": str(volume), "container_path": "/srv"}
    pod = node.run_pod("web")
    server = node.run_container(pod, images["nginx"], name="nginx", mounts=[mount])
    (volume / "index.html").write_text("first\n")
    url = f"http://{node.pod_ip(pod)}/index.html"
    wait_serving(url)
    sidecar = node.run_container(
        pod,
        images["busybox"],
        name="sidecar",
        command="echo from the sidecar > /srv/index.html; exec sleep 60",
        mounts=[mount],
    )
    wait_until(lambda: fetch(url) == b"from the sidecar\n", what="the sidecar's page")
    assert node.shell(sidecar, "wget -qO- http://localhost/index.html") == "from the sidecar\n"
    client_pod = node.run_pod("client")
    client = node.run_container(client_pod, images["busybox"], command=["sleep", "60"])
    assert node.shell(client, f"wget -qO- {url}") == "from the sidecar\n"
    lines = node.wait_log(server, "GET /index.html", count=4)
    sources = {line.content.split()[0] for line in lines if "GET" in line.content}
    assert {"127.0.0.1", node.pod_ip(client_pod)} <= sources
    node.stop_container(server, timeout=10)
    # nginx ends well on SIGQUIT, its image's stop signal.
    assert node.status(server).exit_code == 0


def test_a_pod_serves_the_page_of_its_image(node: Node, images: Images) -> None:
    pod = node.run_pod("page")
    node.run_container(pod, images["nginx"])
    url = f"http://{node.pod_ip(pod)}/"
    wait_serving(url)
    assert fetch(url) == INDEX_HTML.encode()


def test_pods_have_addresses_of_the_range_and_give_them_back(node: Node) -> None:
    pods = [node.run_pod(f"pod-{number}") for number in range(3)]
    addresses = [ipaddress.ip_address(node.pod_ip(pod)) for pod in pods]
    assert len(set(addresses)) == 3
    assert all(address in ipaddress.ip_network(node.subnet) for address in addresses)
    for pod in pods:
        node.stop_pod(pod)
        node.remove_pod(pod)


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_bytes_arrive_whole_between_pods(size: int, node: Node, images: Images) -> None:
    volume = node.folder / "bytes"
    volume.mkdir(exist_ok=True)
    (volume / "file").write_bytes(bytes(number % 251 for number in range(size)))
    server = node.run_pod("server")
    mount = {"host_path": str(volume), "container_path": "/srv"}
    node.run_container(server, images["nginx"], mounts=[mount])
    wait_serving(f"http://{node.pod_ip(server)}/file")
    client = node.run_pod("client")
    script = f"wget -qO- http://{node.pod_ip(server)}/file | sha256sum"
    expected = node.run_to_end(
        client, images["busybox"], name="sum", command="sha256sum < /srv/file", mounts=[mount]
    )
    assert node.run_to_end(client, images["busybox"], command=script) == expected
