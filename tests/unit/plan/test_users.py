# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycri.errors import InvalidRequest
from pycri.model.security import ContainerSecurity, SupplementalGroupsPolicy, User
from pycri.plan.users import MAX_FILE_BYTES, MAX_GROUPS, home_directory, resolve_user

PASSWD = b"""\
root:x:0:0:root:/root:/bin/sh
# a comment
short:x:1
words:x:one:1::/:/bin/sh
:x:5:5::/:/bin/sh
huge:x:99999999999999999999:1::/:/bin/sh
high:x:4294967295:1::/:/bin/sh
web:x:101:102:web:/var/www:/bin/false
web:x:999:999:the second of a name is not looked at:/:/bin/false
lost:x:103:103::relative:/bin/false
"""
GROUP = b"""\
root:x:0:
none
bad:x:zz:web
:x:7:web
www:x:102:
logs:x:4:adm,web
disk:x:6:web
"""
SECURITY = "config.linux.security_context"


def resolve(security: ContainerSecurity | None = None, image_user: str = "") -> User:
    return resolve_user(security or ContainerSecurity(), image_user, PASSWD, GROUP)


def refused(
    security: ContainerSecurity | None = None, image_user: str = ""
) -> pytest.ExceptionInfo[InvalidRequest]:
    with pytest.raises(InvalidRequest) as caught:
        resolve(security, image_user)
    return caught


@pytest.mark.parametrize(
    ("image_user", "expected"),
    [
        ("", User(uid=0, gid=0, groups=(0,))),
        ("root", User(uid=0, gid=0, groups=(0,))),
        ("web", User(uid=101, gid=102, groups=(102, 4, 6))),
        ("101", User(uid=101, gid=102, groups=(102, 4, 6))),
        ("web:disk", User(uid=101, gid=6, groups=(6, 4))),
        ("web:77", User(uid=101, gid=77, groups=(77, 4, 6))),
        ("5000", User(uid=5000, gid=0, groups=(0,))),
        ("5000:5001", User(uid=5000, gid=5001, groups=(5001,))),
        (":disk", User(uid=0, gid=6, groups=(6,))),
    ],
)
def test_the_user_of_an_image_may_be_names_or_numbers(image_user: str, expected: User) -> None:
    assert resolve(image_user=image_user) == expected


def test_the_request_wins_over_the_image() -> None:
    assert resolve(ContainerSecurity(run_as_user=101), "root").uid == 101
    assert resolve(ContainerSecurity(run_as_username="web"), "root").uid == 101
    assert resolve(ContainerSecurity(run_as_user=0, run_as_username="web")).uid == 0


def test_the_group_of_the_request_wins_over_the_users_own() -> None:
    security = ContainerSecurity(run_as_user=101, run_as_group=3000)
    assert resolve(security) == User(uid=101, gid=3000, groups=(3000, 4, 6))


def test_merge_adds_memberships_and_strict_does_not() -> None:
    merge = ContainerSecurity(run_as_user=101, supplemental_groups=(6, 50))
    strict = ContainerSecurity(
        run_as_user=101,
        supplemental_groups=(6, 50),
        supplemental_groups_policy=SupplementalGroupsPolicy.STRICT,
    )
    assert resolve(merge).groups == (102, 4, 6, 50)
    assert resolve(strict).groups == (102, 6, 50)


@pytest.mark.parametrize("name", ["nobody", "short", "words", "huge", "high", "# a comment"])
def test_an_unknown_user_names_the_field(name: str) -> None:
    error = refused(ContainerSecurity(run_as_username=name)).value
    assert error.field == f"{SECURITY}.run_as_username"
    assert refused(image_user=name).value.field == "config.image"


def test_an_unknown_group_of_the_image_is_refused() -> None:
    assert "group 'bad' is not in" in refused(image_user="web:bad").value.reason


def test_an_id_out_of_range_is_refused() -> None:
    assert "out of range" in refused(image_user="4294967295").value.reason
    assert refused(ContainerSecurity(run_as_user=1 << 40)).value.field == f"{SECURITY}.run_as_user"


def test_a_group_needs_a_user() -> None:
    error = refused(ContainerSecurity(run_as_group=5), "web").value
    assert error.field == f"{SECURITY}.run_as_group"


@pytest.mark.parametrize("large", ["passwd", "group"])
def test_a_user_file_that_is_too_large_is_refused_not_cut(large: str) -> None:
    files = {"passwd": b"", "group": b"", large: b"x" * (MAX_FILE_BYTES + 1)}
    with pytest.raises(InvalidRequest, match=f"/etc/{large} of the image"):
        resolve_user(ContainerSecurity(), "", files["passwd"], files["group"])


def test_more_groups_than_the_kernel_takes_are_refused() -> None:
    security = ContainerSecurity(supplemental_groups=tuple(range(MAX_GROUPS + 1)))
    assert refused(security).value.field == f"{SECURITY}.supplemental_groups"


def test_home_comes_from_passwd_and_is_absolute() -> None:
    assert home_directory(User(uid=101), PASSWD) == "/var/www"
    assert home_directory(User(uid=103), PASSWD) == "/"
    assert home_directory(User(uid=5000), PASSWD) == "/"


@given(st.binary(max_size=200), st.binary(max_size=200), st.sampled_from(["", "web", "7", "a:b"]))
def test_no_user_file_breaks_the_parser(passwd: bytes, group: bytes, image_user: str) -> None:
    try:
        user = resolve_user(ContainerSecurity(), image_user, passwd, group)
    except InvalidRequest:
        return
    assert 0 <= user.uid < 1 << 32
    assert user.groups[0] == user.gid
