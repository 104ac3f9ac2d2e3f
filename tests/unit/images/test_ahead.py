# SPDX-License-Identifier: Apache-2.0
import itertools
import threading
from collections.abc import Iterator

import pytest

from pycri.errors import CorruptImage
from pycri.images.ahead import ahead
from tests.world.daemon import wait_until


def test_pieces_taken_ahead_come_in_order_and_errors_at_their_place() -> None:
    def work() -> Iterator[int]:
        yield from range(100)
        raise CorruptImage("at the end")

    taken = []
    with pytest.raises(CorruptImage, match="at the end"):
        for number in ahead(work()):
            taken.append(number)
    assert taken == list(range(100))


def test_a_thread_ahead_ends_when_nobody_takes_its_results() -> None:
    begun = threading.active_count()
    taking = ahead(itertools.count())
    assert next(taking) == 0
    taking.close()  # type: ignore[attr-defined]
    wait_until(lambda: threading.active_count() == begun, what="the thread ends")
