# SPDX-License-Identifier: Apache-2.0
"""Lists cut into the messages of a stream."""

from pycri.cri.api import runtime_v1_pb2 as pb
from pycri.cri.chunks import CHUNK_BYTES, chunks


def test_a_stream_s_messages_are_bounded_and_hold_all_in_order() -> None:
    sizes = [10, CHUNK_BYTES - 20, 30, 3 * CHUNK_BYTES, 5, 5]
    items = [pb.Container(id=f"{number}" * size) for number, size in enumerate(sizes)]
    messages = list(chunks(items, pb.Container.ByteSize))
    assert [item for message in messages for item in message] == items
    assert [len(message) for message in messages] == [2, 1, 1, 2]
    assert list(chunks([], len)) == []
