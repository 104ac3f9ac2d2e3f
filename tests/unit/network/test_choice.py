# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from pycri.config import CniSettings, NetworkSettings
from pycri.errors import InvalidRequest
from pycri.model.pod import PodMetadata, PodSpec
from pycri.network.choice import preview_attachment

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
