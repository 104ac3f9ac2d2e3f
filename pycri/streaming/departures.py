# SPDX-License-Identifier: Apache-2.0
"""How a client of any sub-protocol leaves: events of `channels.py` and `ports.py` alike."""

import msgspec


class Left(msgspec.Struct, frozen=True):
    """The client has said good-bye."""


class Broken(msgspec.Struct, frozen=True):
    """The client broke the rules; nothing that comes from it means anything any more."""

    reason: str
