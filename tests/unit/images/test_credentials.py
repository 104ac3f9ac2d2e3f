# SPDX-License-Identifier: Apache-2.0
import asyncio
import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest

from pycri.errors import Denied, InvalidSettings
from pycri.images import credentials
from pycri.images.credentials import Credentials, find_credentials, node_credentials, pull_secret
from pycri.images.hosts import RegistryHost
from pycri.model.image import RegistryAuth


def host(url: str, registry: str = "", *, mirror: bool = False) -> RegistryHost:
    return RegistryHost(url=f"https://{url}/v2", registry=registry or url, is_server=not mirror)


QUAY = host("quay.io")
HUB = host("registry-1.docker.io", "docker.io")


@pytest.mark.parametrize(
    ("address", "asked", "fits"),
    [
        ("", QUAY, True),
        ("quay.io", QUAY, True),
        ("https://quay.io/v2/", QUAY, True),
        ("http://127.0.0.1:5000", host("127.0.0.1:5000"), True),
        ("https://index.docker.io/v1/", HUB, True),
        ("quay.io", HUB, False),
        ("quay.io:443", QUAY, False),
        ("https://quay.io@evil.example", QUAY, False),
        ("", host("m.example", "quay.io", mirror=True), False),
        ("quay.io", host("m.example", "quay.io", mirror=True), False),
        ("m.example", host("m.example", "quay.io", mirror=True), True),
        ("", host("quay.io", "quay.io", mirror=True), True),
        ("", host("stand-in.example", "quay.io"), True),
        ("quay.io", host("stand-in.example", "quay.io"), True),
    ],
)
def test_a_pull_secret_is_for_the_registry_it_names(
    address: str, asked: RegistryHost, fits: bool
) -> None:
    auth = RegistryAuth(username="kim", password="pass", server_address=address)
    assert (pull_secret(auth, asked) is not None) is fits


def test_an_empty_pull_secret_is_none() -> None:
    assert pull_secret(None, QUAY) is None
    assert pull_secret(RegistryAuth(server_address="quay.io"), QUAY) is None


def look_up(folder: Path, file: object, asked: RegistryHost, path: str = "team/web") -> Credentials:
    (folder / "credentials.json").write_text(json.dumps(file))
    return asyncio.run(node_credentials(folder / "credentials.json", asked, path))


def entry(name: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{name}:pass".encode()).decode()}


@pytest.mark.parametrize(
    ("asked", "path", "user"),
    [
        (QUAY, "team/web", "team"),
        (QUAY, "teams/web", "quay"),
        (QUAY, "team", "team"),
        (HUB, "library/busybox", "hub"),
        (host("stand-in.example", "quay.io"), "other/web", "quay"),
        (host("m.example", "quay.io", mirror=True), "team/web", ""),
        (host("quay.io:5000"), "team/web", ""),
        (host("empty.example"), "team/web", ""),
    ],
)
def test_the_nodes_file_is_looked_up_by_the_longest_name_that_fits(
    asked: RegistryHost, path: str, user: str, tmp_path: Path
) -> None:
    auths = {
        "quay.io": entry("quay"),
        "quay.io/team": entry("team"),
        "https://index.docker.io/v1/": entry("hub"),
        "empty.example": {},
    }
    found = look_up(tmp_path, {"auths": auths, "HttpHeaders": {}}, asked, path)
    assert found.auth.username == user
    assert (f"{tmp_path}/credentials.json: auths." in found.source) is bool(user)


def test_tokens_and_plain_words_of_the_nodes_file_are_taken(tmp_path: Path) -> None:
    def found(**words: str) -> Any:
        return look_up(tmp_path, {"auths": {"quay.io": words}}, QUAY).auth

    assert found(username="kim", password="p") == RegistryAuth(username="kim", password="p")
    assert found(identitytoken="i") == RegistryAuth(identity_token="i")
    assert found(registrytoken="r") == RegistryAuth(registry_token="r")
    assert found(**entry("<token>")) == RegistryAuth(identity_token="pass")


def test_the_pull_secret_goes_before_the_nodes_file(tmp_path: Path) -> None:
    file = tmp_path / "credentials.json"
    file.write_text(json.dumps({"auths": {"quay.io": entry("node"), "docker.io": entry("hub")}}))
    auth = RegistryAuth(username="kim", password="p", server_address="quay.io")
    found = [asyncio.run(find_credentials(auth, file, asked, "a")) for asked in (QUAY, HUB)]
    assert [one.auth.username for one in found] == ["kim", "hub"]
    assert [str(one) for one in (*found, Credentials())] == [
        "user kim of the pull secret",
        f"user hub of {file}: auths.docker.io",
        "an anonymous user",
    ]


def test_a_node_without_the_file_has_no_credentials(tmp_path: Path) -> None:
    assert asyncio.run(node_credentials(tmp_path / "absent", QUAY, "a")) == Credentials()


@pytest.mark.parametrize(
    "text", ["", "[]", '{"auths": 3}', '{"auths": {"quay.io": {"auth": "c2VjcmV0"}}}']
)
def test_a_wrong_file_is_named_and_not_quoted(text: str, tmp_path: Path) -> None:
    file = tmp_path / "credentials.json"
    file.write_text(text)
    with pytest.raises(InvalidSettings, match=str(file)) as caught:
        asyncio.run(node_credentials(file, QUAY, "a"))
    assert "c2VjcmV0" not in str(caught.value)


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program docker-credential-test that answers as Docker's do, of what it was asked."""
    program = tmp_path / "bin/docker-credential-test"
    program.parent.mkdir()
    program.write_text(f"""#!/bin/sh
read -r host
echo "$1 $host" >>{tmp_path}/asked
case $host in
quay.io) echo '{{"ServerURL":"quay.io","Username":"kim","Secret":"pass"}}' ;;
https://index.docker.io/v1/) echo '{{"Username":"<token>","Secret":"identity"}}' ;;
broken.example) echo 'the vault is closed'; exit 1 ;;
strange.example) echo 'no json' ;;
slow.example) sleep 1000 ;;
*) echo 'credentials not found in native keychain'; exit 1 ;;
esac
""")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return program


def test_a_helper_is_asked_for_its_hosts_and_the_store_for_all_others(
    helper: Path, tmp_path: Path
) -> None:
    helpers = {"credHelpers": {"quay.io": "test"}, "auths": {"quay.io": entry("file")}}
    found = look_up(tmp_path, helpers, QUAY)
    assert found.auth == RegistryAuth(username="kim", password="pass")
    assert "docker-credential-test" in found.source and "pass" not in found.source
    store = {"credsStore": "test", "auths": {"a.example": entry("file"), "quay.io": {}}}
    assert look_up(tmp_path, store, QUAY).auth.username == "kim"
    assert look_up(tmp_path, store, HUB).auth == RegistryAuth(identity_token="identity")
    assert look_up(tmp_path, store, host("a.example")).auth.username == "file"
    assert look_up(tmp_path, store, host("b.example")) == Credentials()
    asked = ["get quay.io", "get quay.io", "get https://index.docker.io/v1/", "get b.example"]
    assert (tmp_path / "asked").read_text().splitlines() == asked


@pytest.mark.parametrize(
    ("name", "asked", "message"),
    [
        ("test", "broken.example", "the vault is closed"),
        ("test", "strange.example", "does not answer with credentials"),
        ("test", "slow.example", "did not answer within"),
        ("absent", "quay.io", "cannot be started: No such file"),
    ],
)
def test_a_helper_that_fails_is_named(
    name: str,
    asked: str,
    message: str,
    helper: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(credentials, "_HELPER_TIMEOUT_S", 0.3)
    with pytest.raises(Denied, match=f"docker-credential-{name}.*{message}"):
        look_up(tmp_path, {"credsStore": name}, host(asked))


@pytest.mark.parametrize("name", ["../test", "a b", "", "-x"])
def test_a_helper_is_named_not_pathed(name: str, tmp_path: Path) -> None:
    helpers = {"credHelpers": {"quay.io": name}}
    with pytest.raises(InvalidSettings, match="not the name of a helper"):
        look_up(tmp_path, helpers, QUAY)
