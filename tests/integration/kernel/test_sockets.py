# SPDX-License-Identifier: Apache-2.0
import fcntl
import os
import socket

import pytest

from pycri.kernel.sockets import open_tcp_sockets, open_tcp_sockets_in
from tests.integration.kernel.netns import Namespace

SIOCGSKNS = 0x894C


def network_of(sock: socket.socket) -> int:
    """Return the inode of the network namespace that a socket belongs to (linux/sockios.h)."""
    fd = fcntl.ioctl(sock, SIOCGSKNS)
    try:
        return os.fstat(fd).st_ino
    finally:
        os.close(fd)


def test_sockets_stay_in_the_namespace_they_were_made_in() -> None:
    pod = Namespace()
    own = os.stat("/proc/thread-self/ns/net").st_ino
    made = open_tcp_sockets_in(pod.path)
    assert os.stat("/proc/thread-self/ns/net").st_ino == own
    assert [each.family for each in made] == [socket.AF_INET, socket.AF_INET6]
    assert {network_of(each) for each in made} == {os.fstat(pod.fd).st_ino}
    for each in made:
        assert not each.getblocking()
        assert not each.get_inheritable()
        each.close()
    pod.close()


def test_a_pin_that_is_no_namespace_leaves_the_caller_where_it_was() -> None:
    own = os.stat("/proc/thread-self/ns/net").st_ino
    with pytest.raises(OSError, match="Invalid argument"):
        open_tcp_sockets_in("/dev/null")
    with pytest.raises(FileNotFoundError):
        open_tcp_sockets_in("/nonexistent")
    assert os.stat("/proc/thread-self/ns/net").st_ino == own


def test_without_a_namespace_they_are_the_caller_s() -> None:
    made = open_tcp_sockets()
    assert {network_of(each) for each in made} == {os.stat("/proc/thread-self/ns/net").st_ino}
    for each in made:
        each.close()
