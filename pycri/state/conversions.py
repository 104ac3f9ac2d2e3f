# SPDX-License-Identifier: Apache-2.0
"""Conversions of stored records that SQL cannot make: functions for the migrations to call.

Each turns a record's MessagePack map of one version into that of the next, untyped: the types of
then are no more.
"""

import sqlite3
from typing import Any

import msgspec


def register(connection: sqlite3.Connection) -> None:
    """Make the conversions known to SQL by their names."""
    for convert in (attachment_with_interfaces, mac_of_ipv4, packed_ipv4):
        connection.create_function(convert.__name__, 1, convert, deterministic=True)


def attachment_with_interfaces(blob: bytes) -> bytes:
    """Of a pod: address, prefix_length and host_interface become a list of one interface."""
    record: dict[str, Any] = msgspec.msgpack.decode(blob)
    if old := record.get("attachment"):
        interface = {
            "name": "eth0",
            "addresses": [f"{old['address']}/{old['prefix_length']}"],
            "host_interface": old["host_interface"],
        }
        record["attachment"] = {"interfaces": [interface]}
    return msgspec.msgpack.encode(record)


def packed_ipv4(number: int) -> bytes:
    """Of an address: the number becomes four bytes."""
    return number.to_bytes(4, "big")


def mac_of_ipv4(number: int) -> str:
    """Of an address: the MAC that its pod was given."""
    return f"0a:58:{packed_ipv4(number).hex(':')}"
