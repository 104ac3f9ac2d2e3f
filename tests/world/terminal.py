# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.world.terminal exec|attach URL`: a session on this program's own terminal.

What `kubectl exec -it` does: the terminal is raw while the session lasts, its size is told at the
start and at every SIGWINCH, and the command's exit code becomes this program's. Run it under
script(1) or in a pty.
"""

import os
import select
import signal
import sys
import termios
import tty

from tests.world.commands import SpdyCommand
from tests.world.wires import CHUNK, Connection


def main() -> int:
    """Pass on both ways until the session ends. Returns the exit code."""
    session = SpdyCommand(sys.argv[1], ("stdin", "stdout", "resize"))
    wire = session.spdy.wire
    assert isinstance(wire, Connection)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGWINCH, lambda *_: None)
    signal.set_wakeup_fd(wake)
    session.resize(*os.get_terminal_size(0))
    before = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        _pass_on(session, wire, woken)
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
    return session.finish().exit_code


def _pass_on(session: SpdyCommand, wire: Connection, woken: int) -> None:
    stdout, error = session.streams["stdout"], session.streams["error"]
    while not (stdout.ended and error.ended):
        os.write(1, stdout.take())
        if wire.pending:
            session.spdy.pump()
            continue
        ready = select.select([wire.sock.fileno(), 0, woken], [], [])[0]
        if wire.sock.fileno() in ready:
            session.spdy.pump()
        if 0 in ready:
            session.write(os.read(0, CHUNK))
        if woken in ready:
            os.read(woken, CHUNK)
            session.resize(*os.get_terminal_size(0))
    os.write(1, stdout.take())


if __name__ == "__main__":
    sys.exit(main())
