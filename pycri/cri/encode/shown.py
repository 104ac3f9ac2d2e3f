# SPDX-License-Identifier: Apache-2.0
"""Records as they are shown, encoded once: a kubelet lists all of them every second.

A message's bytes are those of its fields one after the other, in any order and any number of
pieces (protobuf, "Encoding"). So a list is the bytes of its items, each behind the number of the
repeated field and its length; nothing is encoded anew unless its record was replaced.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, Protocol, TypeVar

from pycri.model.container import ContainerRecord
from pycri.model.pod import PodRecord

_LENGTH_DELIMITED = 2
_MOST_KNOWN = 2048
"""More than there are on a node; then all are encoded anew, which takes some milliseconds."""


class _Message(Protocol):
    def SerializeToString(self) -> bytes: ...  # noqa: N802  protobuf's name


R = TypeVar("R", PodRecord, ContainerRecord)


class Shown(Generic[R]):
    """The bytes of records as fields of a message. Of records that are gone only these are kept."""

    def __init__(self, encode: Callable[[R], _Message], *, field: int = 1) -> None:
        """encode: depends on nothing but the record. field: its number in the message."""
        self._encode: Callable[[R], _Message] = encode
        self._field = field
        self._known: dict[str, tuple[weakref.ref[R], bytes]] = {}

    def one(self, record: R) -> bytes:
        """Return the field of a record."""
        known = self._known.get(record.id)
        if known is not None and known[0]() is record:
            return known[1]
        data = framed(self._encode(record), field=self._field)
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        self._known[record.id] = weakref.ref(record), data
        return data

    def all(self, records: Iterable[R]) -> Iterator[bytes]:
        """Yield the fields of records."""
        return map(self.one, records)


def framed(message: _Message, *, field: int = 1) -> bytes:
    """Return a message as a field of another."""
    data = message.SerializeToString()
    return _varint(field << 3 | _LENGTH_DELIMITED) + _varint(len(data)) + data


def _varint(number: int) -> bytes:
    """Encode a number, seven bits a byte, the lowest first."""
    data = bytearray()
    while number > 0x7F:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    data.append(number)
    return bytes(data)
