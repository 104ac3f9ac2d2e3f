# SPDX-License-Identifier: Apache-2.0
"""One-time tokens."""

import pytest

from pycri.errors import OutOfResources
from pycri.model.ids import PodId
from pycri.model.streams import PortForwardRequest
from pycri.streaming.tokens import LIFETIME_S, MOST_WAITING, Tokens

ASKED = PortForwardRequest(pod_id=PodId("p" * 64))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_token_is_good_once() -> None:
    tokens = Tokens()
    first, second = tokens.issue(ASKED), tokens.issue(ASKED)
    assert first != second
    assert tokens.redeem(first) is ASKED
    assert tokens.redeem(first) is None
    assert tokens.redeem(second) is ASKED
    assert tokens.redeem("") is None


def test_a_token_is_good_for_a_minute() -> None:
    clock = Clock()
    tokens = Tokens(clock)
    old = tokens.issue(ASKED)
    clock.now = LIFETIME_S - 0.001
    young = tokens.issue(ASKED)
    clock.now = LIFETIME_S
    assert tokens.redeem(old) is None
    assert tokens.redeem(young) is ASKED


def test_no_more_than_a_thousand_wait() -> None:
    clock = Clock()
    tokens = Tokens(clock)
    for _ in range(MOST_WAITING):
        token = tokens.issue(ASKED)
    with pytest.raises(OutOfResources, match="1000"):
        tokens.issue(ASKED)
    tokens.redeem(token)
    tokens.issue(ASKED)
    clock.now = LIFETIME_S
    tokens.issue(ASKED)
