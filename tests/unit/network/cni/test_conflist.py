# SPDX-License-Identifier: Apache-2.0
import json
from typing import Any

import pytest

from pycri.errors import InvalidSettings
from pycri.network.cni.conflist import (
    File,
    Network,
    Plugin,
    parse_folder,
    parse_network,
    render_request,
)

BRIDGE = {"type": "bridge", "bridge": "cni0"}


def conflist(path: str = "10-pods.conflist", **fields: Any) -> File:
    plain = {"cniVersion": "1.0.0", "name": "pods", "plugins": [BRIDGE]}
    return File(path=path, content=json.dumps(plain | fields).encode())


def network(**fields: Any) -> Network:
    return parse_network(conflist(**fields))


def test_the_first_file_by_name_is_the_default_network() -> None:
    files = [
        conflist("20-b.conflist", name="b"),
        conflist("10-c.conf", name="c", type="ptp", plugins=None),
        conflist("100-a.json", name="a", type="ptp"),
    ]
    folder = parse_folder(files)
    assert folder.default
    assert folder.default.name == "c"
    assert folder.default.plugins[0].type == "ptp"
    assert list(folder.networks) == ["c", "a", "b"]
    assert not folder.faults


def test_of_networks_with_one_name_the_first_counts() -> None:
    folder = parse_folder([conflist("2.conflist", cniVersion="0.4.0"), conflist("1.conflist")])
    assert folder.networks["pods"].version == "1.0.0"


def test_a_bad_first_file_is_not_passed_over() -> None:
    folder = parse_folder([File(path="1.conflist", content=b"{"), conflist("2.conflist")])
    assert folder.default is None
    assert list(folder.networks) == ["pods"]
    assert folder.faults[0].startswith("1.conflist: not JSON")


def test_a_bad_later_file_is_told_and_harms_nobody() -> None:
    folder = parse_folder([conflist("1.conflist"), File(path="2.conflist", fault="not a file")])
    assert folder.default
    assert folder.faults == ("2.conflist: not a file",)


def test_an_empty_folder_has_no_network_and_no_fault() -> None:
    assert parse_folder([]) == parse_folder([File(path="pods/10-x.conf")])
    assert parse_folder([]).default is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": None}, "name: Expected `str`, got `null`"),
        ({"name": "a/b"}, "name: Expected `str` matching regex"),
        ({"cniVersion": ""}, "cniVersion: is missing"),
        ({"cniVersion": "0.2.0"}, "cniVersion: 0.2.0 is not known"),
        ({"cniVersion": 1}, "cniVersion: Expected `str`"),
        ({"plugins": []}, "plugins: Expected `array` of length >= 1"),
        ({"plugins": [{}]}, r"plugins\[0\]: Object missing required field `type`"),
        ({"plugins": [{"type": "../sh"}]}, r"plugins\[0\].type: Expected `str` matching"),
        ({"plugins": [{"type": "x", "capabilities": []}]}, r"plugins\[0\].capabilities: Expected"),
        ({"disableCheck": "maybe"}, "disableCheck: Invalid enum value"),
        ({"plugins": "bridge"}, "plugins: Expected `array`"),
    ],
)
def test_a_bad_configuration_names_its_file_and_key(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSettings, match=f"^10-pods.conflist: {message}"):
        network(**fields)


def test_a_conflist_in_a_file_for_one_plugin_has_no_type() -> None:
    with pytest.raises(InvalidSettings, match="Object missing required field `type`"):
        parse_network(conflist("10-pods.conf"))


def test_a_conflist_without_plugins_is_refused() -> None:
    file = File(path="1.conflist", content=b'{"cniVersion": "1.0.0", "name": "pods"}')
    with pytest.raises(InvalidSettings, match="plugins: is missing"):
        parse_network(file)


@pytest.mark.parametrize(
    ("fields", "chosen"),
    [
        ({"cniVersion": "0.3.1"}, "0.3.1"),
        ({"cniVersion": "0.4.0", "cniVersions": ["1.0.0", "0.3.1"]}, "1.0.0"),
        ({"cniVersion": "9.0.0", "cniVersions": ["0.4.0", "1.1.0", "9.0.0"]}, "1.1.0"),
    ],
)
def test_the_highest_version_that_both_speak_is_chosen(fields: dict[str, Any], chosen: str) -> None:
    assert network(**fields).version == chosen


def test_plugins_in_a_folder_of_the_networks_name_follow_those_of_the_list() -> None:
    files = [
        File(path="pods/20-z.conf", content=b'{"type": "z"}'),
        File(path="pods/10-y.conf", content=b'{"type": "y"}'),
        File(path="other/10-x.conf", content=b'{"type": "x"}'),
    ]
    found = parse_network(conflist(), files)
    assert [plugin.type for plugin in found.plugins] == ["bridge", "y", "z"]
    alone = parse_network(conflist(loadOnlyInlinedPlugins=True), files)
    assert [plugin.type for plugin in alone.plugins] == ["bridge"]


def test_flags_may_be_words() -> None:
    found = network(disableCheck="true", disableGC=True)
    assert (found.disable_check, found.disable_gc) == (True, True)


def test_a_plugin_reads_its_own_object_the_version_and_the_name() -> None:
    chain = network(plugins=[BRIDGE | {"unknown": [1, {"x": 1.5}], "cni.dev/x": 1}])
    assert json.loads(render_request(chain, chain.plugins[0])) == {
        "type": "bridge",
        "bridge": "cni0",
        "unknown": [1, {"x": 1.5}],
        "cniVersion": "1.0.0",
        "name": "pods",
    }


def test_a_plugin_gets_the_arguments_that_it_declares_and_no_others() -> None:
    plugin = {"type": "portmap", "capabilities": {"portMappings": True, "dns": False, "mac": True}}
    chain = network(plugins=[plugin])
    given = {"portMappings": [{"hostPort": 1}], "dns": {"servers": ["a"]}, "ips": ["b"]}
    request = json.loads(
        render_request(chain, chain.plugins[0], arguments=given, previous={"ips": []})
    )
    assert request["runtimeConfig"] == {"portMappings": [{"hostPort": 1}]}
    assert request["prevResult"] == {"ips": []}
    assert "capabilities" not in request


def test_versions_are_compared_by_their_age() -> None:
    plugin = Plugin(type="x", capabilities=frozenset(), fields={})
    old = Network(name="a", version="0.4.0", plugins=(plugin,))
    assert old.speaks("0.3.1")
    assert old.speaks("0.4.0")
    assert not old.speaks("1.0.0")
