# SPDX-License-Identifier: Apache-2.0
import pytest

from pycri.images.credentials import Challenge, basic_header, choose_credentials, parse_challenges
from pycri.model.image import RegistryAuth


def test_a_bearer_challenge_is_read() -> None:
    header = 'Bearer realm="https://auth.x/token",service="x, y",scope="repository:a/b:pull,push"'
    assert parse_challenges([header]) == (
        Challenge(
            scheme="bearer",
            realm="https://auth.x/token",
            service="x, y",
            scope="repository:a/b:pull,push",
        ),
    )


def test_several_challenges_in_one_header_or_many_keep_their_order() -> None:
    one = parse_challenges(['Basic realm="a", Bearer realm="b",service=c, Negotiate'])
    many = parse_challenges(['Basic realm="a"', 'bearer realm="b",service=c'])
    expected = [("basic", "a", ""), ("bearer", "b", "c")]
    assert [(c.scheme, c.realm, c.service) for c in one] == expected
    assert [(c.scheme, c.realm, c.service) for c in many] == expected


def test_a_challenge_of_another_scheme_is_passed_over() -> None:
    assert parse_challenges(["Negotiate", "", "Digest realm=x"]) == ()


@pytest.mark.parametrize(
    ("address", "host", "fits"),
    [
        ("", "quay.io", True),
        ("quay.io", "quay.io", True),
        ("https://quay.io/v2/", "quay.io", True),
        ("http://127.0.0.1:5000", "127.0.0.1:5000", True),
        ("https://index.docker.io/v1/", "docker.io", True),
        ("quay.io", "docker.io", False),
        ("quay.io:443", "quay.io", False),
        ("https://quay.io@evil.example", "quay.io", False),
    ],
)
def test_credentials_are_for_the_registry_they_name(address: str, host: str, fits: bool) -> None:
    auth = RegistryAuth(username="kim", password="pass", server_address=address)
    assert (choose_credentials(auth, host).username == "kim") is fits


def test_basic_credentials_are_encoded_as_utf8() -> None:
    assert basic_header(RegistryAuth(username="kim", password="p:ß")) == "Basic a2ltOnA6w58="
