# SPDX-License-Identifier: Apache-2.0
"""`scripts/bench-streams`: what exec and port-forward cost, in time, throughput and memory.

All runtimes run at once and take turns, as in `bench.py`; one client of our own serves all, over
SPDY, which every runtime speaks, so that what the client costs is the same for all.

    start-up      Exec, connect, all streams, `true`, its status
    connection    a further connection to a port: a pair of streams, one byte there and back
    out, in       MEGABYTES out of a command, into one
    forward       MEGABYTES out of a port
    sessions      SESSIONS commands at once, each echoes a line: memory of the runtime's processes

Whoever fails in one of these, or takes longer than LIMIT_S for it once, is out of it, and the
others go on; the reason is told below the table.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import grpc
import msgspec

from pycri.cri.api import runtime_v1_pb2 as cri
from pycri.cri.api import runtime_v1_pb2_grpc as cri_grpc
from tests.performance import containerd, memory, report
from tests.performance.bench import _read_host, _say, _start_containerds
from tests.performance.client import Client
from tests.performance.contestants import Contestant, start_pycri
from tests.world import leaks, session
from tests.world.commands import SpdyCommand, SpdyPorts
from tests.world.images import Images
from tests.world.registry import Registry
from tests.world.wires import DEADLINE_S, Refused

SESSIONS = 200
SETTLE_S = 3.0
LIMIT_S = 60
ECHO_PORT, FLOOD_PORT = 7, 19
"""As services of RFC 862 (echo) and RFC 864 (a generator) have them."""

_SERVERS = (
    f"nc -ll -p {ECHO_PORT} -e cat & "
    f"nc -ll -p {FLOOD_PORT} -e head -c {{size}} /dev/zero & "
    "head -c {size} /dev/zero >/big; echo ready; wait"
)
_TIMEOUT_S = 60.0


class Streams:
    """The client of one contestant: a pod with a container that serves two ports.

    samples: milliseconds or MB/s, by the label of what was measured. failures: reasons likewise.
    """

    def __init__(self, contestant: Contestant, image: str, size: int) -> None:
        self.contestant = contestant
        self.size = size
        self.samples: dict[str, list[float]] = {}
        self.failures: dict[str, str] = {}
        self.crowd: dict[str, memory.Memory] = {}
        self._ports: SpdyPorts | None = None
        self._client = Client(contestant, image)
        self._client.pull()
        self.version = self._client.read_version()
        self._pod = self._client.run_pod()
        command = ["sh", "-c", _SERVERS.format(size=size)]
        self._container = self._client.create_container(self._pod, "main", command)
        self._client.start_container(self._container)
        self._channel = grpc.insecure_channel(f"unix:{contestant.socket}")
        self._runtime = cri_grpc.RuntimeServiceStub(self._channel)

    def close(self) -> None:
        """Hang up. The pod is removed with the runtime."""
        self._channel.close()
        self._client.close()

    def attempt(self, figure: str) -> None:
        """Measure a figure once, unless it has failed before."""
        if figure in self.failures:
            return
        try:
            with _limited():
                FIGURES[figure](self)
        except (AssertionError, OSError, Refused, grpc.RpcError) as error:
            reason = error.details() if isinstance(error, grpc.Call) else str(error)
            self.failures[figure] = f"{type(error).__name__}: {reason}"
            _say(f"{self.contestant.name}: {figure}: {self.failures[figure]}")

    def wait_ready(self) -> None:
        """Wait until the servers listen and the file is there."""
        deadline = time.monotonic() + DEADLINE_S
        script = f"test $(stat -c %s /big) = {self.size} && netstat -lnt | grep -q :{FLOOD_PORT}"
        while self._exec("sh", "-c", script).finish().status["status"] != "Success":
            assert time.monotonic() < deadline, "the container does not get ready"
            time.sleep(0.1)

    def start_up(self) -> None:
        """Time a command that does nothing."""
        with self._timed("exec of true, ms"):
            assert self._exec("true").finish().exit_code == 0

    def connection(self) -> None:
        """Time a further connection to a port."""
        self._ports = ports = self._ports or self._forward()
        with self._timed("connection to a port, ms"):
            forwarded = ports.connect(ECHO_PORT)
            forwarded.data.write(b"x")
            assert forwarded.data.read_until(b"x") == b"x"
        forwarded.data.close()
        forwarded.data.read_all()

    def output(self) -> None:
        """Rate of a command's output."""
        with self._rated("exec cat, out, MB/s"):
            command = self._exec("cat", "/big")
            command.streams["stdout"].sink = True
            assert command.finish().exit_code == 0
            assert command.received() == self.size

    def input(self) -> None:
        """Rate of a command's input."""
        block = memoryview(bytes(1 << 20))
        with self._rated("exec cat, in, MB/s"):
            command = self._exec("sh", "-c", "cat | wc -c", stdin=True)
            for _ in range(self.size >> 20):
                command.streams["stdin"].write(block)
            command.close_stdin()
            assert int(command.finish().stdout) == self.size

    def download(self) -> None:
        """Rate of a forwarded port."""
        ports = self._forward()
        with self._rated("port-forward, out, MB/s"):
            forwarded = ports.connect(FLOOD_PORT)
            forwarded.data.sink = True
            forwarded.data.read_all()
            assert forwarded.data.received == self.size
        ports.close()

    def sessions(self) -> None:
        """Hold SESSIONS commands at once; find the memory they add, by role."""
        time.sleep(SETTLE_S)
        before = memory.read_memory(self.contestant)
        sessions = [self._exec("cat", stdin=True) for _ in range(SESSIONS)]
        for number, command in enumerate(sessions):
            command.write(b"session %d\n" % number)
        for number, command in enumerate(sessions):
            command.read_until(b"session %d\n" % number)
        time.sleep(SETTLE_S)
        for role, held in memory.read_memory(self.contestant).items():
            empty = before.get(role, memory.Memory())
            self.crowd[role] = memory.Memory(
                pss=held.pss - empty.pss, anonymous=held.anonymous - empty.anonymous
            )
        for command in sessions:
            command.close_stdin()
        assert all(command.finish().exit_code == 0 for command in sessions)

    def _forward(self) -> SpdyPorts:
        request = cri.PortForwardRequest(pod_sandbox_id=self._pod)
        return SpdyPorts(self._runtime.PortForward(request, timeout=_TIMEOUT_S).url)

    def _exec(self, *cmd: str, stdin: bool = False) -> SpdyCommand:
        request = cri.ExecRequest(
            container_id=self._container, cmd=cmd, stdin=stdin, stdout=True, stderr=True
        )
        url = self._runtime.Exec(request, timeout=_TIMEOUT_S).url
        return SpdyCommand(url, (*(["stdin"] if stdin else []), "stdout", "stderr"))

    @contextlib.contextmanager
    def _timed(self, label: str) -> Iterator[None]:
        start = time.perf_counter_ns()
        yield
        self.samples.setdefault(label, []).append((time.perf_counter_ns() - start) / 1e6)

    @contextlib.contextmanager
    def _rated(self, label: str) -> Iterator[None]:
        start = time.perf_counter_ns()
        yield
        seconds = (time.perf_counter_ns() - start) / 1e9
        self.samples.setdefault(label, []).append(self.size / 1e6 / seconds)


FIGURES: dict[str, Callable[[Streams], None]] = {
    "start-up": Streams.start_up,
    "connection": Streams.connection,
    "out": Streams.output,
    "in": Streams.input,
    "forward": Streams.download,
    "sessions": Streams.sessions,
}
_OF_BYTES = ("out", "in", "forward")


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Raise TimeoutError in what takes longer than LIMIT_S, wherever it waits."""

    def expire(*_: object) -> None:
        raise TimeoutError(f"not done within {LIMIT_S} s")

    signal.signal(signal.SIGALRM, expire)
    signal.alarm(LIMIT_S)
    try:
        yield
    finally:
        signal.alarm(0)


class Result(msgspec.Struct, kw_only=True):
    """One runtime's numbers; see Streams."""

    name: str
    version: str
    samples: dict[str, list[float]]
    crowd: dict[str, memory.Memory]
    failures: dict[str, str]


@click.command()
@click.option(
    "--figure",
    "figures",
    multiple=True,
    type=click.Choice(list(FIGURES)),
    help="What to measure, again and again for more; all of them by default.",
)
@click.option("--rounds", default=30, show_default=True, help="Start-ups, connections.")
@click.option("--transfers", default=3, show_default=True, help="Transfers of each kind.")
@click.option("--megabytes", default=1024, show_default=True, help="Size of a transfer, in MiB.")
@click.option(
    "--peer", "peers", multiple=True, type=click.Choice(["containerd"]), help="Beside pycri."
)
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write every sample here.")
def main(
    figures: tuple[str, ...],
    rounds: int,
    transfers: int,
    megabytes: int,
    peers: tuple[str, ...],
    file: Path | None,
) -> None:
    """Measure exec and port-forward of pycri, beside other runtimes if asked for."""
    if os.geteuid() != 0:
        raise click.ClickException("needs root")
    if peers and (missing := containerd.find_missing_packages()):
        raise click.ClickException(f"run: apt-get install {' '.join(missing)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    session.claim_session()
    counts = {"start-up": rounds, "connection": rounds, "sessions": 1}
    counts |= dict.fromkeys(_OF_BYTES, transfers)
    wanted = {figure: counts[figure] for figure in figures or FIGURES}
    with contextlib.ExitStack() as stack:
        folder = Path(
            stack.enter_context(
                tempfile.TemporaryDirectory(prefix=f"{leaks.NAME_PREFIX}{session.session_id}-")
            )
        )
        registry = stack.enter_context(Registry.start(folder / "registry"))
        contestants = [stack.enter_context(start_pycri(folder))]
        if peers:
            contestants += _start_containerds(stack, folder, registry)
        results = measure(contestants, Images(registry)["busybox"], wanted, megabytes << 20)
    host = _read_host(rounds, peers)
    click.echo(render(host, results))
    if file is not None:
        file.write_bytes(msgspec.json.format(msgspec.json.encode((host, results))))
    sys.exit(any(result.failures for result in results))


def measure(
    contestants: list[Contestant], image: str, figures: dict[str, int], size: int
) -> list[Result]:
    """Measure all contestants in turns. figures: how many times each; size: of a transfer."""
    size = size if set(figures) & set(_OF_BYTES) else 1
    with contextlib.ExitStack() as stack:
        clients = []
        for contestant in contestants:
            clients.append(Streams(contestant, image, size))
            stack.callback(clients[-1].close)
        for client in clients:
            client.wait_ready()
        for figure, count in figures.items():
            _say(f"{figure}, {count} times")
            # Connections come one behind another, as a browser makes them; all else in turns.
            stretch = count if figure == "connection" else 1
            for _ in range(count // stretch):
                for client in clients:
                    for _ in range(stretch):
                        client.attempt(figure)
    return [
        Result(
            name=client.contestant.name,
            version=client.version,
            samples=client.samples,
            crowd=client.crowd,
            failures=client.failures,
        )
        for client in clients
    ]


def render(host: dict[str, str], results: list[Result]) -> str:
    """Return the results as Markdown."""
    rows = [["median", *(result.name for result in results)]]
    for label in dict.fromkeys(label for result in results for label in result.samples):
        digits = 0 if label.endswith("MB/s") else 2
        samples = [result.samples.get(label) for result in results]
        cells = (f"{report.median(each):.{digits}f}" if each else "failed" for each in samples)
        rows.append([label, *cells])
    roles = sorted({role for result in results for role in result.crowd} - {memory.CONTAINERS})
    for role in roles:
        sizes = [result.crowd.get(role, memory.Memory()).anonymous / 1e6 for result in results]
        rows.append([f"{SESSIONS} sessions: {role}, MB more", *(f"{size:.1f}" for size in sizes)])
    facts = [f"{name}: {value}" for name, value in host.items()]
    failures = [f"{r.name}: {f}: {reason}" for r in results for f, reason in r.failures.items()]
    return "\n".join([*facts, "", *report.render_table(rows), *(["", *failures] * bool(failures))])


if __name__ == "__main__":
    main(prog_name="scripts/bench-streams")
