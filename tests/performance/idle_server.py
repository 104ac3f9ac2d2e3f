# SPDX-License-Identifier: Apache-2.0
"""A server that has nothing else to do: what a list takes on this machine at this moment, at best.

    python -m tests.performance.idle_server SOCKET BYTES

It answers every call with a message of so many bytes, through pycri's own front; "ready" is printed
once it listens.
"""

import socket
import sys

from pycri.cri.call import Call
from pycri.cri.front import Front


def main(path: str, size: int) -> None:
    """Serve until SIGTERM."""
    # An unknown field (number 15) of any message: one that every client skips.
    payload = bytes(max(0, size - 4))
    body = b"\x7a" + _varint(len(payload)) + payload

    def take(call: Call) -> None:
        call.answer(body)

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    front = Front(take, max_message_bytes=1 << 20)
    listener.listen()
    front.accept_from(listener)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    front.run()


def _varint(number: int) -> bytes:
    data = bytearray()
    while number > 0x7F:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*data, number])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
