# SPDX-License-Identifier: Apache-2.0
import email.utils
import time

import pytest

from pycri.images.retrying import pause_s


def test_pauses_grow_and_end() -> None:
    pauses = [pause_s(tries, None) for tries in range(5)]
    bounds = [(0.5, 0.75), (1, 1.5), (2, 3), (4, 6)]
    assert all(
        low <= (pause or 0) <= high for pause, (low, high) in zip(pauses, bounds, strict=False)
    )
    assert pauses[4] is None


@pytest.mark.parametrize(("value", "pause"), [("0", 0), ("7", 7), (" 60 ", 60), ("61", None)])
def test_what_a_registry_asks_for_is_obeyed_up_to_a_minute(value: str, pause: float | None) -> None:
    assert pause_s(0, value) == pause
    assert pause_s(4, value) is None


def test_a_date_is_understood() -> None:
    soon = email.utils.formatdate(time.time() + 30, usegmt=True)
    assert 28 <= (pause_s(0, soon) or 0) <= 30
    assert pause_s(0, "Thu, 01 Jan 1970 00:00:00 GMT") == 0
    assert pause_s(0, email.utils.formatdate(time.time() + 3600)) is None


@pytest.mark.parametrize("value", ["", "soon", "-1", "1e9", "²", "Thu, 99 Foo"])
def test_what_is_no_time_counts_as_not_said(value: str) -> None:
    assert 0.5 <= (pause_s(0, value) or 0) <= 0.75
