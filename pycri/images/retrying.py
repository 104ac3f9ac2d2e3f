# SPDX-License-Identifier: Apache-2.0
"""When a registry is asked again, and how long after. Pure but for the clock and chance."""

import secrets
import time
from email.utils import parsedate_to_datetime
from typing import Final

BUSY: Final = frozenset({429, 500, 502, 503, 504})
"""Answers that may be better the next time."""

_PAUSES_S: Final = (0.5, 1.0, 2.0, 4.0)
_LONGEST_PAUSE_S: Final = 60.0
_PARTS: Final = 1000


def pause_s(tries: int, retry_after: str | None) -> float | None:
    """Return the seconds to wait after so many retries, or None to give up.

    retry_after: the header's value, which is obeyed up to a minute; above it, giving up is better:
    the kubelet comes again. Without it the pause grows, by chance up to a half longer, so that a
    thousand nodes do not come back at once.
    """
    if tries >= len(_PAUSES_S):
        return None
    asked = _parse(retry_after) if retry_after else None
    if asked is not None:
        return asked if asked <= _LONGEST_PAUSE_S else None
    return _PAUSES_S[tries] * (1 + secrets.randbelow(_PARTS) / _PARTS / 2)


def _parse(value: str) -> float | None:
    """Return the seconds of a Retry-After: a number, or a date (RFC 9110 §10.2.3)."""
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
