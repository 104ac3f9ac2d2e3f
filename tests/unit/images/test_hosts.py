# SPDX-License-Identifier: Apache-2.0
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycri.errors import InvalidSettings
from pycri.images.certs import read_hosts
from pycri.images.hosts import RegistryHost, folder_names, is_loopback, parse_hosts

FILE = Path("/certs.d/docker.io/hosts.toml")


def parse(text: str, registry: str = "docker.io") -> list[RegistryHost]:
    return list(parse_hosts(tomllib.loads(text), FILE, registry))


def urls(text: str, registry: str = "docker.io") -> list[str]:
    return [host.url for host in parse(text, registry)]


def test_mirrors_come_in_the_order_of_the_file_and_the_server_last() -> None:
    text = """
    server = "https://upstream.example"
    [host."https://z.example"]
    [host."https://a.example".header]
    x = "y"
    [host."https://m.example"]
    """
    hosts = parse(text)
    assert [host.url for host in hosts] == [
        "https://z.example/v2",
        "https://a.example/v2",
        "https://m.example/v2",
        "https://upstream.example/v2",
    ]
    assert [host.is_server for host in hosts] == [False, False, False, True]


@pytest.mark.parametrize(
    ("registry", "url"),
    [
        ("docker.io", "https://registry-1.docker.io/v2"),
        ("quay.io", "https://quay.io/v2"),
        ("10.0.0.1:5000", "https://10.0.0.1:5000/v2"),
        ("localhost", "https://localhost/v2"),
        ("localhost:443", "https://localhost:443/v2"),
        ("localhost:5000", "http://localhost:5000/v2"),
        ("127.1.2.3:5000", "http://127.1.2.3:5000/v2"),
        ("[::1]:5000", "http://[::1]:5000/v2"),
        ("localhost.example:5000", "https://localhost.example:5000/v2"),
    ],
)
def test_without_a_server_the_registry_itself_is_asked(
    registry: str, url: str, tmp_path: Path
) -> None:
    assert urls("", registry) == [url]
    assert [host.url for host in read_hosts(tmp_path, registry).hosts] == [url]


def test_a_registry_on_this_machine_with_an_authority_speaks_tls() -> None:
    assert urls('ca = "a.pem"', "localhost:5000") == ["https://localhost:5000/v2"]


@pytest.mark.parametrize(
    ("server", "override", "url"),
    [
        ("https://x.example/", False, "https://x.example/v2"),
        ("https://x.example/v2", False, "https://x.example/v2"),
        ("https://x.example/v2/", False, "https://x.example/v2"),
        ("https://x.example/team", False, "https://x.example/team/v2"),
        ("https://x.example/v2/team", False, "https://x.example/v2/team/v2"),
        ("https://x.example/v2/team", True, "https://x.example/v2/team"),
        ("https://x.example", True, "https://x.example"),
        ("x.example:5000", False, "https://x.example:5000/v2"),
        ("http://x.example", False, "http://x.example/v2"),
    ],
)
def test_the_path_of_the_api_is_added_unless_it_is_there_or_overridden(
    server: str, override: bool, url: str
) -> None:
    assert urls(f'server = "{server}"\noverride_path = {str(override).lower()}') == [url]


def test_everything_that_can_be_said_of_a_host_is_read() -> None:
    (host, _) = parse("""
    [host."https://m.example"]
    capabilities = ["Pull"]
    ca = ["a.pem", "/b.pem"]
    client = [["c.cert", "c.key"]]
    skip_verify = true
    dial_timeout = "1m1.5s"
    proxy = "http://proxy.example:3128"
    [host."https://m.example".header]
    x-one = "1"
    x-two = ["2", "3"]
    """)
    assert host == RegistryHost(
        url="https://m.example/v2",
        registry="docker.io",
        is_server=False,
        capabilities=frozenset({"pull"}),
        ca=("/certs.d/docker.io/a.pem", "/b.pem"),
        client=("/certs.d/docker.io/c.cert", "/certs.d/docker.io/c.key"),
        skip_verify=True,
        headers=(("x-one", "1"), ("x-two", "2"), ("x-two", "3")),
        dial_timeout_s=61.5,
        proxy="http://proxy.example:3128",
    )


def test_keys_at_the_top_belong_to_the_server() -> None:
    text = 'ca = "a.pem"\ncapabilities = ["pull"]\n[host."https://m.example"]'
    mirror, server = parse(text)
    assert (mirror.ca, server.ca) == ((), ("/certs.d/docker.io/a.pem",))
    assert server.capabilities == {"pull"} and "resolve" in mirror.capabilities


@pytest.mark.parametrize(
    ("client", "pairs"),
    [
        ('"a.pem"', [("a.pem", "")]),
        ('["a.pem", "b.pem"]', [("a.pem", ""), ("b.pem", "")]),
        ('[["a.cert", "a.key"], ["b.pem", ""]]', [("a.cert", "a.key"), ("b.pem", "")]),
    ],
)
def test_each_client_certificate_is_a_way_to_ask_a_host(
    client: str, pairs: list[tuple[str, str]]
) -> None:
    folder = f"{FILE.parent}/"
    expected = [(folder + one, other and folder + other) for one, other in pairs]
    assert [host.client for host in parse(f"client = {client}")] == expected


def test_tls_for_a_host_in_the_open_means_that_tls_is_tried_first() -> None:
    hosts = parse('server = "http://10.0.0.1:5000"\nskip_verify = true')
    assert [(host.url, host.skip_verify) for host in hosts] == [
        ("https://10.0.0.1:5000/v2", True),
        ("http://10.0.0.1:5000/v2", False),
    ]
    assert urls('server = "http://x.example:80"\nca = "a.pem"') == ["http://x.example:80/v2"]


def test_a_mirror_is_told_which_registry_it_stands_in_for() -> None:
    text = 'server = "https://registry-1.docker.io"\n[host."https://m.example"]'
    assert [host.namespace for host in parse(text)] == ["docker.io", ""]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('servr = "x"', "servr: unknown key; did you mean server?"),
        ('[host."x"]\nserver = "y"', 'host."x".server: unknown key'),
        ('[host."x"]\ncapabilities = ["pul"]', "host.\"x\".capabilities: 'pul' is none of"),
        ('[host."ftp://x"]', "host.\"ftp://x\": 'ftp://x' is not the http or https URL"),
        ('[host."https://x:y"]', "host.\"https://x:y\": 'https://x:y' is not a URL"),
        ('[host."https://u@x"]', "host.\"https://u@x\": 'https://u@x' has more than a host"),
        ('[host."x"]\ndial_timeout = "5"', "host.\"x\".dial_timeout: '5' is not a time like"),
        ("ca = 3", "ca: Expected `str | array`, got `int`"),
        ('client = [["a"]]', "client[0]: Expected `array` of length 2"),
        ('[header]\nx = "a\\nb"', "header.x: is not a header"),
        ('[header]\n"x y" = "a"', "header.x y: is not a header"),
        ('proxy = "socks5://u:secret@x"', "proxy: is not an http or https URL"),
        ("[host]\nx = 3", "host[...]: Expected `object`, got `int`"),
    ],
)
def test_a_wrong_file_is_named_with_the_key(text: str, message: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        parse(text)
    assert str(caught.value).startswith(f"{FILE}: {message}")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("registry", "names"),
    [
        ("docker.io", ("docker.io", "_default")),
        ("x.example:5000", ("x.example_5000_", "x.example:5000", "_default")),
        ("[::1]:5000", ("[::1]_5000_", "[::1]:5000", "_default")),
        ("[::1]", ("[::1]", "_default")),
    ],
)
def test_a_registry_has_folders_of_several_names(registry: str, names: tuple[str, ...]) -> None:
    assert folder_names(registry) == names


def test_the_first_folder_that_is_there_counts(tmp_path: Path) -> None:
    def found() -> str:
        return read_hosts(tmp_path, "x.example:5000").hosts[0].url

    for name in ("_default", "x.example:5000", "x.example_5000_"):
        (tmp_path / name).mkdir()
        url = f"https://{len(name)}.example"
        (tmp_path / name / "hosts.toml").write_text(f'server = "{url}"')
        assert found() == f"{url}/v2"


def test_a_folder_of_certificates_alone_is_read_as_docker_does(tmp_path: Path) -> None:
    folder = tmp_path / "quay.io"
    folder.mkdir()
    for name in ("a.crt", "b.crt", "c.cert", "c.key", "d.cert", "readme"):
        (folder / name).touch()
    first, second = read_hosts(tmp_path, "quay.io").hosts
    assert first.ca == second.ca == (f"{folder}/a.crt", f"{folder}/b.crt")
    assert first.client == (f"{folder}/c.cert", f"{folder}/c.key")
    assert second.client == (f"{folder}/d.cert", "")


def test_a_file_that_is_no_toml_is_an_error_and_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "quay.io").mkdir()
    (tmp_path / "quay.io/hosts.toml").write_text("server =")
    with pytest.raises(InvalidSettings, match=r"quay\.io/hosts\.toml: not TOML"):
        read_hosts(tmp_path, "quay.io")


@pytest.mark.parametrize("name", [None, "", "localhost.example", "10.0.0.1", "::2"])
def test_only_this_machine_is_loopback(name: str | None) -> None:
    assert not is_loopback(name)


_WORDS = st.sampled_from(
    ["", "a.pem", "5s", "1h2m", "pull", "https://x.example/v2", "http://[", "x:y", "http://x:99999"]
)
_VALUES = st.recursive(
    st.one_of(_WORDS, st.text(), st.booleans(), st.integers(), st.floats()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(_WORDS, inner, max_size=3)
    ),
    max_leaves=6,
)
_PATH = st.one_of(_WORDS, st.text())
_FITTING: dict[str, st.SearchStrategy[Any]] = {
    "capabilities": st.lists(st.sampled_from(["pull", "resolve", "push"])),
    "ca": st.one_of(_PATH, st.lists(_PATH, max_size=3)),
    "client": st.one_of(_PATH, st.lists(st.one_of(_PATH, st.tuples(_PATH, _PATH).map(list)))),
    "skip_verify": st.booleans(),
    "header": st.dictionaries(st.text(), st.one_of(st.text(), st.lists(st.text())), max_size=2),
    "override_path": st.booleans(),
    "dial_timeout": _PATH,
    "proxy": _PATH,
}
_TABLE = st.fixed_dictionaries(
    {}, optional={key: st.one_of(fitting, _VALUES) for key, fitting in _FITTING.items()}
)


@given(top=_TABLE, server=_PATH, hosts=st.dictionaries(_PATH, _TABLE, max_size=2))
def test_any_file_gives_hosts_that_can_be_asked_or_one_kind_of_error(
    top: dict[str, Any], server: str, hosts: dict[str, Any]
) -> None:
    try:
        found = parse_hosts(top | {"server": server, "host": hosts}, FILE, "docker.io")
    except InvalidSettings as error:
        assert str(error).startswith(f"{FILE}: ")
        return
    assert found and found[-1].is_server
    for host in found:
        url = urlsplit(host.url)
        assert url.scheme in ("http", "https") and url.hostname
        assert all(path.startswith("/") and "\0" not in path for path in host.ca)
        assert host.dial_timeout_s > 0
