# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from pycri.config import CniSettings, NetworkSettings
from pycri.errors import InvalidRequest
from pycri.model.pod import PodMetadata, PodSpec, PortMapping
from pycri.network.choice import preview_attachment, survey

METADATA = PodMetadata(name="web", uid="u", namespace="shop")
CONFLIST = (
    '{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "bridge"}, {"type": "portmap"}]}'
)


def preview(folder: Path, kind: str, annotations: dict[str, str] | None = None) -> str:
    cni = CniSettings(conf_dir=str(folder))
    settings = NetworkSettings(kind=kind, cni=cni)  # type: ignore[arg-type]
    return preview_attachment(settings, PodSpec(metadata=METADATA, annotations=annotations or {}))


def test_a_plan_names_the_built_in_network_where_there_is_no_configuration(tmp_path: Path) -> None:
    assert preview(tmp_path, "auto") == "attach to pycri0, with a free address of 10.88.0.0/16\n"


def test_a_plan_names_host_ports_and_refuses_those_that_exclude_each_other() -> None:
    ports = (PortMapping(host_port=8080, container_port=80), PortMapping(container_port=81))
    settings = NetworkSettings(kind="builtin")
    text = preview_attachment(settings, PodSpec(metadata=METADATA, port_mappings=ports))
    assert text.splitlines()[1:] == ["host port *:8080/TCP -> 80"]
    with pytest.raises(InvalidRequest, match="asked for twice"):
        preview_attachment(settings, PodSpec(metadata=METADATA, port_mappings=ports * 2))


def test_a_plan_names_the_plugins_of_each_interface(tmp_path: Path) -> None:
    (tmp_path / "10-pods.conflist").write_text(CONFLIST)
    (tmp_path / "20-store.conf").write_text(
        '{"cniVersion": "1.0.0", "name": "store", "type": "macvlan"}'
    )
    assert preview(tmp_path, "auto", {"network.pycri/networks": "store"}) == (
        "CNI ADD eth0: plugin bridge of network pods\n"
        "CNI ADD eth0: plugin portmap of network pods\n"
        "CNI ADD eth1: plugin macvlan of network store\n"
    )
    assert preview(tmp_path, "builtin").startswith("attach to pycri0")


def test_a_plan_says_what_keeps_pods_from_starting(tmp_path: Path) -> None:
    assert preview(tmp_path, "cni").startswith("# the pod network is not ready: cni plugin not")
    with pytest.raises(InvalidRequest):
        (tmp_path / "10-pods.conflist").write_text(CONFLIST)
        preview(tmp_path, "cni", {"network.pycri/networks": "store"})


def look(folder: Path, kind: str) -> tuple[str, str]:
    cni = CniSettings(conf_dir=str(folder), bin_dirs=(f"{folder}/bin",))
    return survey(NetworkSettings(kind=kind, cni=cni), str)  # type: ignore[arg-type]


def test_a_survey_tells_which_network_pods_would_get_and_what_it_lacks(tmp_path: Path) -> None:
    assert look(tmp_path, "auto") == ("built-in: bridge pycri0, range 10.88.0.0/16", "")
    absent = f"cni plugin not initialized: no network configuration in {tmp_path}"
    assert look(tmp_path, "cni") == ("CNI", absent)
    (tmp_path / "10-pods.conflist").write_text(CONFLIST)
    text, fault = look(tmp_path, "auto")
    assert text == f"CNI: pods of {tmp_path}, by bridge, portmap"
    assert fault == f"CNI network pods: plugin bridge is not in {tmp_path}/bin"
    (tmp_path / "bin").mkdir()
    for name in ("bridge", "portmap"):
        (tmp_path / "bin" / name).write_text("")
        (tmp_path / "bin" / name).chmod(0o755)
    assert look(tmp_path, "auto") == (text, "")
