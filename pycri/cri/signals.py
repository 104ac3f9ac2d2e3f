# SPDX-License-Identifier: Apache-2.0
"""CRI Signal, an enum of names, to and from the numbers of signal(7) on this machine."""

import re
import signal

from pycri.cri.api import runtime_v1_pb2 as pb
from pycri.errors import InvalidRequest

_REAL_TIME = re.compile(r"SIG(RTMIN|RTMAX)(?:(PLUS|MINUS)(\d+))?")
_ALIASES = {"SIGCLD", "SIGIOT", "SIGPOLL"}
"""Second names of SIGCHLD, SIGABRT and SIGIO; never shown."""


def _number(name: str) -> int:
    """Return the number of SIGNAME; real-time names count from an end, RTMINPLUS3."""
    if real_time := _REAL_TIME.fullmatch(name):
        start = signal.SIGRTMIN if real_time[1] == "RTMIN" else signal.SIGRTMAX
        distance = int(real_time[3] or 0)
        return start + distance if real_time[2] != "MINUS" else start - distance
    return signal.Signals[name].value


_NUMBERS: dict[int, int] = {
    value: _number(name.removeprefix("SIGNAL_")) for name, value in pb.Signal.items() if value
}
_VALUES: dict[int, pb.Signal.ValueType] = {
    _number(name.removeprefix("SIGNAL_")): value
    for name, value in pb.Signal.items()
    if value and name.removeprefix("SIGNAL_") not in _ALIASES
}


def decode_signal(value: int, path: str) -> int:
    """Return the signal's number; 0 for SIGNAL_RUNTIME_DEFAULT."""
    if value == pb.SIGNAL_RUNTIME_DEFAULT:
        return 0
    if value not in _NUMBERS:
        raise InvalidRequest(path, f"{value} is not a known signal")
    return _NUMBERS[value]


def encode_signal(number: int) -> pb.Signal.ValueType:
    """Return the CRI's value; SIGNAL_RUNTIME_DEFAULT for 0 or a number it has no name for."""
    return _VALUES.get(number, pb.SIGNAL_RUNTIME_DEFAULT)
