# SPDX-License-Identifier: Apache-2.0
"""What a process has written comes whole, however slowly it is taken."""

import asyncio
import fcntl
import os

from pycri.streaming.pump import PIPE_BYTES, Pump
from pycri.streaming.wire import BUFFER_BYTES, Buffers


def test_what_is_in_the_pipe_at_the_end_comes_whole_though_a_piece_was_under_way() -> None:
    """That piece was read before the end: it is no part of what the pipe held then."""

    async def carry() -> int:
        ours, theirs = os.pipe2(os.O_NONBLOCK)
        fcntl.fcntl(ours, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        received, begun, go_on = 0, asyncio.Event(), asyncio.Event()

        async def send(piece: memoryview) -> None:
            nonlocal received
            begun.set()
            await go_on.wait()
            received += len(piece)

        written = os.write(theirs, bytes(BUFFER_BYTES))
        pump = Pump(ours, send, Buffers())
        running = asyncio.create_task(pump.run())
        await begun.wait()
        written += os.write(theirs, bytes(PIPE_BYTES))
        assert written == BUFFER_BYTES + PIPE_BYTES
        # Somebody else still holds the pipe, so there is no end of file to wait for.
        pump.finish()
        go_on.set()
        await running
        os.close(ours)
        os.close(theirs)
        return written - received

    assert asyncio.run(carry()) == 0


def test_who_goes_on_writing_to_the_pipe_does_not_keep_the_session() -> None:
    async def carry() -> int:
        ours, theirs = os.pipe2(os.O_NONBLOCK)
        fcntl.fcntl(ours, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        received = 0

        async def send(piece: memoryview) -> None:
            nonlocal received
            received += len(piece)
            os.write(theirs, bytes(len(piece)))

        os.write(theirs, bytes(PIPE_BYTES))
        pump = Pump(ours, send, Buffers())
        pump.finish()
        await pump.run()
        os.close(ours)
        os.close(theirs)
        return received

    assert asyncio.run(carry()) == PIPE_BYTES
