# SPDX-License-Identifier: Apache-2.0
"""Texts of counters that the kernel keeps: pure parsers, and one quick way to read such a file.

    flat keyed      "KEY VALUE"                               memory.stat, cpu.stat
    pressure        "some avg10=0.00 ... total=0" / "full …"  cpu.pressure, memory.pressure ...
    limit           "max" or a number                         memory.max, memory.limit_in_bytes
    interfaces      /proc/net/dev

A key the kernel lacks is missing from the result; nothing here raises for one.
"""

import functools
import os

from pycri.model.stats import DeviceIo, InterfaceCounters, Pressure, PressureLine

_PIECE = 1 << 13
"""More than nearly all of these files hold; a much larger buffer costs more than the call."""
_UNLIMITED = 1 << 62
"""Version 1 shows "no limit" as the greatest multiple of a page below 2^63."""


def read(path: str) -> str | None:
    """Return a counter file's content, None if it is not there or its group is going (ENODEV).

    Without a file object: three system calls, and hundreds of these files are read at once.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        # A short read is no end: files of many records come a page at a time.
        text = piece = os.read(fd, _PIECE)
        while piece:
            piece = os.read(fd, _PIECE)
            text += piece
        return text.decode("ascii", "replace")
    except OSError:
        return None
    finally:
        os.close(fd)


def read_number(path: str) -> int | None:
    """Return the number a file consists of."""
    text = read(path)
    return None if text is None else int(text)


def read_limit(path: str) -> int | None:
    """Return a limit; None for none, and for a file that is not there."""
    text = read(path)
    return None if text is None else parse_limit(text)


def parse_numbers(text: str) -> dict[str, int]:
    """Parse a flat keyed file."""
    words = text.split()
    return {key: int(value) for key, value in zip(words[::2], words[1::2], strict=True)}


def parse_limit(text: str) -> int | None:
    """Parse a limit; None is no limit."""
    if text.startswith("max"):
        return None
    value = int(text)
    return None if value >= _UNLIMITED else value


def parse_pressure(text: str) -> Pressure:
    """Parse a pressure file; the kernel counts microseconds."""
    lines = {}
    for line in text.splitlines():
        kind, *words = line.split()
        values = dict(word.split("=", 1) for word in words)
        lines[kind] = PressureLine(
            avg10=float(values["avg10"]),
            avg60=float(values["avg60"]),
            avg300=float(values["avg300"]),
            total_ns=int(values["total"]) * 1000,
        )
    return Pressure(
        some=lines.get("some", PressureLine()),
        full=lines.get("full", PressureLine()),
    )


def parse_interfaces(text: str) -> dict[str, InterfaceCounters]:
    """Parse /proc/net/dev (proc_pid_net(5)): two lines of headings, then one an interface."""
    found = {}
    for line in text.splitlines()[2:]:
        name, _, rest = line.partition(":")
        numbers = [int(word) for word in rest.split()]
        found[name.strip()] = InterfaceCounters(
            name=name.strip(),
            rx_bytes=numbers[0],
            rx_packets=numbers[1],
            rx_errors=numbers[2],
            rx_dropped=numbers[3],
            tx_bytes=numbers[8],
            tx_packets=numbers[9],
            tx_errors=numbers[10],
            tx_dropped=numbers[11],
        )
    return found


def parse_blkio(sizes: str, counts: str) -> tuple[DeviceIo, ...]:
    """Parse two files of version 1: "MAJOR:MINOR OPERATION VALUE" a line, "Total VALUE" last."""
    found: dict[str, dict[str, int]] = {}
    for text, read_key, write_key in (
        (sizes, "read_bytes", "write_bytes"),
        (counts, "reads", "writes"),
    ):
        keys = {"Read": read_key, "Write": write_key}
        for words in map(str.split, text.splitlines()):
            if len(words) == 3 and words[1] in keys:
                found.setdefault(words[0], {})[keys[words[1]]] = int(words[2])
    return tuple(_device(number, values) for number, values in found.items())


def parse_io_stat(text: str) -> tuple[DeviceIo, ...]:
    """Parse io.stat of version 2: "MAJOR:MINOR rbytes=1 wbytes=2 rios=3 wios=4 ..." a line."""
    keys = {"rbytes": "read_bytes", "wbytes": "write_bytes", "rios": "reads", "wios": "writes"}
    found = []
    for number, *words in map(str.split, text.splitlines()):
        pairs = (word.partition("=") for word in words)
        values = {keys[key]: int(value) for key, _, value in pairs if key in keys}
        if values:
            found.append(_device(number, values))
    return tuple(found)


def _device(number: str, values: dict[str, int]) -> DeviceIo:
    major, _, minor = number.partition(":")
    return DeviceIo(device=device_name(number), major=int(major), minor=int(minor), **values)


@functools.lru_cache(64)
def device_name(number: str) -> str:
    """Return "/dev/NAME" of the block device "MAJOR:MINOR", or the number if there is no name."""
    for line in (read(f"/sys/dev/block/{number}/uevent") or "").splitlines():
        key, _, name = line.partition("=")
        if key == "DEVNAME":
            return f"/dev/{name}"
    return number
