# SPDX-License-Identifier: Apache-2.0
"""Who a container runs as: the request, then the image, over the image's own user files.

The parser is ours, not the C library's: no NSS module, no locale, nothing of the container's is
loaded. /etc/passwd and /etc/group come from whoever made the image, so every line that is not
well-formed is passed over and all sizes are bounded. Formats: passwd(5), group(5).
"""

from collections.abc import Iterator
from typing import NamedTuple

from pycri.errors import InvalidRequest
from pycri.model.security import ContainerSecurity, SupplementalGroupsPolicy, User

MAX_FILE_BYTES = 1 << 20
"""Beyond this a user file is refused: cut off in the middle it would hide a membership."""
MAX_GROUPS = 65536
"""NGROUPS_MAX, setgroups(2)."""
MAX_ID = (1 << 32) - 2
"""(uid_t) -1 means "leave alone" to setresuid(2)."""

_SECURITY = "config.linux.security_context"
_IMAGE = "config.image"
_Files = tuple[bytes, bytes]


class _Account(NamedTuple):
    """One line of passwd(5)."""

    name: bytes
    uid: int
    gid: int
    home: bytes


class _Group(NamedTuple):
    """One line of group(5)."""

    name: bytes
    gid: int
    members: frozenset[bytes]


def resolve_user(security: ContainerSecurity, image_user: str, passwd: bytes, group: bytes) -> User:
    """Return the identity asked for; without one in the request, the image's; else root.

    image_user: USER of the image, "user[:group]" by name or number. passwd, group: the content of
        the image's /etc/passwd and /etc/group, b"" where it has none.
    Returns: `groups` begins with the primary group, as containerd and CRI-O have it; then, unless
        the policy is STRICT, the user's memberships in /etc/group; then the request's own.
    Raises: InvalidRequest naming the field: an unknown name, an id out of range, a group without
        a user (CRI LinuxContainerSecurityContext.run_as_group), a user file that is too large.
    """
    for name, content in (("/etc/passwd", passwd), ("/etc/group", group)):
        if len(content) > MAX_FILE_BYTES:
            raise InvalidRequest(_IMAGE, f"{name} of the image is over {MAX_FILE_BYTES} bytes")
    field, text = _requested_user(security, image_user)
    user_text, _, group_text = text.partition(":")
    account = _find_account(field, user_text, passwd)
    gid = account.gid
    if security.run_as_group is not None:
        gid = security.run_as_group
    elif group_text:
        gid = _find_group(field, group_text, group)
    groups = [gid]
    if security.supplemental_groups_policy is SupplementalGroupsPolicy.MERGE and account.name:
        groups += [entry.gid for entry in _groups(group) if account.name in entry.members]
    groups += security.supplemental_groups
    unique = tuple(dict.fromkeys(groups))
    if len(unique) > MAX_GROUPS:
        raise InvalidRequest(f"{_SECURITY}.supplemental_groups", f"more than {MAX_GROUPS} groups")
    return User(uid=account.uid, gid=gid, groups=unique)


def home_directory(user: User, passwd: bytes) -> str:
    """Return the user's home folder by passwd(5), "/" if it has none."""
    for account in _accounts(passwd[:MAX_FILE_BYTES]):
        if account.uid == user.uid and account.home.startswith(b"/"):
            return account.home.decode("utf-8", "surrogateescape")
    return "/"


def _requested_user(security: ContainerSecurity, image_user: str) -> tuple[str, str]:
    """Return the field that names the user and its text, "" for root."""
    if security.run_as_user is not None:
        return f"{_SECURITY}.run_as_user", str(security.run_as_user)
    if security.run_as_username:
        return f"{_SECURITY}.run_as_username", security.run_as_username
    if security.run_as_group is not None:
        raise InvalidRequest(f"{_SECURITY}.run_as_group", "needs run_as_user or run_as_username")
    return _IMAGE, image_user


def _find_account(field: str, text: str, passwd: bytes) -> _Account:
    """Return the account; a number needs no line in passwd(5), its group is 0 then."""
    number = _parse_id(text) if text else 0
    if number is None and text.isdecimal():
        raise InvalidRequest(field, f"user id {text} is out of range")
    name = text.encode("utf-8", "surrogateescape")
    for account in _accounts(passwd):
        if account.uid == number if number is not None else account.name == name:
            return account
    if number is None:
        raise InvalidRequest(field, f"user {text!r} is not in the image's /etc/passwd")
    return _Account(b"", number, 0, b"/")


def _find_group(field: str, text: str, group: bytes) -> int:
    number = _parse_id(text)
    if number is not None:
        return number
    name = text.encode("utf-8", "surrogateescape")
    for entry in _groups(group):
        if entry.name == name:
            return entry.gid
    raise InvalidRequest(field, f"group {text!r} is not in the image's /etc/group")


def _accounts(passwd: bytes) -> Iterator[_Account]:
    for line in passwd.split(b"\n"):
        fields = line.split(b":")
        if len(fields) < 6 or not fields[0]:
            continue
        uid, gid = _parse_id(fields[2]), _parse_id(fields[3])
        if uid is not None and gid is not None:
            yield _Account(fields[0], uid, gid, fields[5])


def _groups(group: bytes) -> Iterator[_Group]:
    for line in group.split(b"\n"):
        fields = line.split(b":")
        if len(fields) < 4 or not fields[0]:
            continue
        gid = _parse_id(fields[2])
        if gid is not None:
            yield _Group(fields[0], gid, frozenset(fields[3].strip().split(b",")) - {b""})


def _parse_id(text: str | bytes) -> int | None:
    """Return a decimal id in range, or None. Length first: int() of a long text is slow."""
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(MAX_ID))):
        return None
    number = int(text)
    return number if number <= MAX_ID else None
