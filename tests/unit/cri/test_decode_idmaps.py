# SPDX-License-Identifier: Apache-2.0
"""Maps of user namespaces and of mounts."""

import pytest

from pycri.cri.api import runtime_v1_pb2 as pb
from pycri.cri.decode.idmaps import decode_mount_ids, decode_user_namespace
from pycri.errors import InvalidRequest
from pycri.model.security import IdMapping, IdMappings

MAX = (1 << 32) - 1


def line(host_id: int = 1000, container_id: int = 0, length: int = 100) -> pb.IDMapping:
    return pb.IDMapping(host_id=host_id, container_id=container_id, length=length)


def decoded(host_id: int = 1000, container_id: int = 0, length: int = 100) -> IdMapping:
    return IdMapping(host_id=host_id, container_id=container_id, length=length)


def test_one_line_of_each_makes_a_user_namespace() -> None:
    message = pb.UserNamespace(mode=pb.POD, uids=[line()], gids=[line(host_id=5)])
    expected = IdMappings(uids=(decoded(),), gids=(decoded(host_id=5),))
    assert decode_user_namespace(message, "at") == expected


def test_the_node_s_is_none() -> None:
    assert decode_user_namespace(pb.UserNamespace(mode=pb.NODE), "at") is None


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (pb.UserNamespace(mode=pb.POD), "uids"),
        (pb.UserNamespace(mode=pb.POD, uids=[line()]), "gids"),
        (pb.UserNamespace(mode=pb.POD, uids=[line(), line(container_id=200)]), "uids"),
        (pb.UserNamespace(mode=pb.POD, uids=[line(container_id=1)]), "uids[0].container_id"),
        (pb.UserNamespace(mode=pb.POD, uids=[line()], gids=[line(length=0)]), "gids[0].length"),
        (pb.UserNamespace(mode=pb.POD, uids=[line(host_id=MAX - 9, length=10)]), "uids[0].length"),
        (pb.UserNamespace(mode=pb.POD, uids=[line(host_id=MAX)]), "uids[0].length"),
        (pb.UserNamespace(mode=pb.CONTAINER), "mode"),
        (pb.UserNamespace(mode=pb.TARGET), "mode"),
        (pb.UserNamespace(mode=7), "mode"),  # type: ignore[arg-type]  # of a later version
        (pb.UserNamespace(mode=pb.NODE, uids=[line()]), "uids"),
        (pb.UserNamespace(mode=pb.NODE, gids=[line()]), "gids"),
    ],
)
def test_what_makes_no_user_namespace_is_refused(message: pb.UserNamespace, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode_user_namespace(message, "at")
    assert caught.value.field == f"at.{field}"


def test_the_last_id_but_nobody_s_can_be_mapped() -> None:
    message = pb.UserNamespace(
        mode=pb.POD, uids=[line(host_id=MAX - 10, length=10)], gids=[line(host_id=0, length=MAX)]
    )
    assert decode_user_namespace(message, "at") is not None


def test_a_mount_may_have_several_lines() -> None:
    lines = [line(), line(host_id=9, container_id=300, length=1)]
    found = decode_mount_ids(pb.Mount(uidMappings=lines, gidMappings=[line()]), "at")
    assert found is not None
    assert [found.host_uid(0), found.host_uid(300), found.host_uid(100)] == [1000, 9, None]


def test_a_mount_without_maps_is_not_mapped() -> None:
    assert decode_mount_ids(pb.Mount(), "at") is None


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (pb.Mount(uidMappings=[line()]), "gidMappings"),
        (pb.Mount(gidMappings=[line()]), "uidMappings"),
        (pb.Mount(uidMappings=[line(length=0)], gidMappings=[line()]), "uidMappings[0].length"),
    ],
)
def test_half_a_map_of_a_mount_is_refused(message: pb.Mount, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode_mount_ids(message, "at")
    assert caught.value.field == f"at.{field}"
