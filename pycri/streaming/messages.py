# SPDX-License-Identifier: Apache-2.0
"""Messages of the WebSocket sub-protocols that have several channels in one connection.

binary       number of the channel (8), payload
text         number of the channel, a digit; payload in base64 (the kinds base64.*)
"""

import base64
import binascii

from pycri.errors import ProtocolViolation
from pycri.streaming.websocket import Chunk, render_head


class MessageReader:
    """Reads messages part by part. text: of the base64 kinds."""

    def __init__(self, *, text: bool) -> None:
        self._text = text
        self._channel: int | None = None
        self._rest = b""

    def receive(self, chunk: Chunk) -> tuple[int | None, bytes]:
        """Return the channel and what is known of the payload so far.

        The channel is None while not even its number has come. Raises ProtocolViolation.
        """
        payload = chunk.payload
        if chunk.first:
            self._channel, self._rest = None, b""
        if self._channel is None and payload:
            self._channel = payload[0] - ord("0") if self._text else payload[0]
            payload = payload[1:]
        return self._channel, self._decode(payload) if self._text else payload

    def _decode(self, text: bytes) -> bytes:
        """Decode all groups of four letters; what is left over waits for the next part."""
        text = self._rest + text
        whole = len(text) & ~3
        self._rest = text[whole:]
        try:
            return base64.b64decode(text[:whole], validate=True)
        except binascii.Error as error:
            raise ProtocolViolation(f"a message that is not base64: {error}") from error


def render_message(channel: int, data: memoryview | bytes, *, text: bool) -> bytes:
    """Return a whole message."""
    if text:
        encoded = b"%d" % channel + base64.b64encode(data)
        return render_head(len(encoded), text=True) + encoded
    return render_message_head(channel, len(data)) + data


def render_message_head(channel: int, size: int) -> bytes:
    """Return what goes in front of `size` bytes of payload, binary."""
    return render_head(size + 1) + bytes([channel])
