# SPDX-License-Identifier: Apache-2.0
import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycri.errors import Denied, RegistryUnavailable
from pycri.images.authorization import (
    Challenge,
    basic_header,
    parse_challenges,
    parse_token,
    plan_token_request,
    split_basic,
)
from pycri.images.hosts import RegistryHost
from pycri.model.image import RegistryAuth

QUAY = RegistryHost(url="https://quay.io/v2", registry="quay.io")
OPEN = RegistryHost(url="http://10.0.0.1:5000/v2", registry="10.0.0.1:5000")
LOCAL = RegistryHost(url="https://localhost:5000/v2", registry="localhost:5000")
KIM = RegistryAuth(username="kim", password="p:ß")


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


def test_basic_credentials_are_encoded_as_utf8() -> None:
    assert basic_header(KIM) == "Basic a2ltOnA6w58="


@pytest.mark.parametrize("text", ["a2ltOnA6w58=", "a2ltOnA6w58"])
def test_basic_credentials_are_split_with_their_padding_or_without(text: str) -> None:
    assert split_basic(text) == ("kim", "p:ß")


@pytest.mark.parametrize("text", ["a2lt", "%%%", base64.b64encode(b"\xff:x").decode()])
def test_what_is_no_user_and_password_is_not_quoted(text: str) -> None:
    with pytest.raises(ValueError, match="base64 of user") as caught:
        split_basic(text)
    assert text not in str(caught.value)


def test_a_token_is_asked_for_with_a_password_by_a_query() -> None:
    challenge = Challenge(
        scheme="bearer", realm="https://auth.x/t?a=b", service="x y", scope="s:1 s:2"
    )
    request = plan_token_request(challenge, KIM, QUAY, "team/web")
    assert request.url == "https://auth.x/t?a=b&service=x+y&scope=s%3A1&scope=s%3A2"
    assert (request.authorization, request.form) == (basic_header(KIM), None)


def test_a_token_is_asked_for_without_rights_where_there_are_none() -> None:
    challenge = Challenge(scheme="bearer", realm="https://auth.x/t")
    request = plan_token_request(challenge, RegistryAuth(), QUAY, "team/web")
    assert request.url == "https://auth.x/t?scope=repository%3Ateam%2Fweb%3Apull"
    assert (request.authorization, request.form) == ("", None)


def test_an_identity_token_goes_in_the_body_never_in_the_url() -> None:
    challenge = Challenge(scheme="bearer", realm="https://auth.x/t", service="x")
    auth = RegistryAuth(username="kim", password="p", identity_token="secret")
    request = plan_token_request(challenge, auth, QUAY, "team/web")
    assert request.url == "https://auth.x/t" and request.authorization == ""
    assert request.form == {
        "grant_type": "refresh_token",
        "refresh_token": "secret",
        "client_id": "pycri",
        "service": "x",
        "scope": "repository:team/web:pull",
    }


@pytest.mark.parametrize(
    ("host", "realm", "allowed"),
    [
        (QUAY, "https://elsewhere.example/t", True),
        (QUAY, "http://quay.io/t", False),
        (QUAY, "http://127.0.0.1:5001/t", False),
        (LOCAL, "http://127.0.0.1:5001/t", True),
        (OPEN, "http://10.0.0.1:5001/t", True),
        (OPEN, "http://10.0.0.2:5001/t", False),
    ],
)
def test_a_token_service_is_asked_in_the_open_only_where_the_registry_is(
    host: RegistryHost, realm: str, allowed: bool
) -> None:
    challenge = Challenge(scheme="bearer", realm=realm)
    if allowed:
        assert plan_token_request(challenge, KIM, host, "a").url.startswith(realm)
    else:
        with pytest.raises(Denied, match="unsafe token service"):
            plan_token_request(challenge, KIM, host, "a")


@pytest.mark.parametrize("realm", ["", "file:///etc/shadow", "https://", "http://[", "x"])
def test_what_is_no_token_service_is_not_asked(realm: str) -> None:
    with pytest.raises(RegistryUnavailable, match="no token service"):
        plan_token_request(Challenge(scheme="bearer", realm=realm), KIM, QUAY, "a")


@pytest.mark.parametrize("key", ["token", "access_token"])
def test_a_token_is_read_by_either_of_its_names(key: str) -> None:
    assert parse_token(b'{"%s": "good", "expires_in": 60}' % key.encode()) == "good"


@pytest.mark.parametrize("body", [b"", b"{}", b'{"token": ""}', b'{"token": "a\\nb"}', b"[1]"])
def test_an_answer_without_a_usable_token_is_an_error(body: bytes) -> None:
    with pytest.raises(ValueError):
        parse_token(body)


_PARTS = st.sampled_from(
    ["Bearer ", "Basic", "realm=", "scope=", '"', "\\", ",", "=", " ", "x", "http://["]
)


@given(header=st.one_of(st.text(), st.lists(_PARTS).map("".join)))
def test_any_challenge_is_read_and_answered_or_refused(header: str) -> None:
    for challenge in parse_challenges([header]):
        assert challenge.scheme in ("basic", "bearer")
        try:
            plan_token_request(challenge, KIM, QUAY, "a")
        except (Denied, RegistryUnavailable):
            continue
