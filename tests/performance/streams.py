# SPDX-License-Identifier: Apache-2.0
"""`scripts/bench-streams`: what exec and port-forward cost, in time, throughput and memory.

All runtimes run at once and take turns, as in `bench.py`; one client of our own serves all, over
SPDY, which every runtime speaks, so that what the client costs is the same for all.

    start-up      Exec, connect, all streams, `true`, its status
    connection    a further connection to a port: a pair of streams, one byte there and back
    throughput    BYTES out of a command, into one, and out of a port
    sessions      SESSIONS commands at once, each echoes a line: memory of the runtime's processes
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
from tests.world.wires import DEADLINE_S

SESSIONS = 200
SETTLE_S = 3.0
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

    times: milliseconds by what was measured; rates: MB/s likewise.
    """

    def __init__(self, contestant: Contestant, image: str, size: int) -> None:
        self.contestant = contestant
        self.size = size
        self.times: dict[str, list[float]] = {}
        self.rates: dict[str, list[float]] = {}
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
        """Remove the pod and hang up."""
        self._channel.close()
        self._client.clear()
        self._client.close()

    def wait_ready(self) -> None:
        """Wait until the servers listen and the file is there."""
        deadline = time.monotonic() + DEADLINE_S
        script = f"test $(stat -c %s /big) = {self.size} && netstat -lnt | grep -q :{FLOOD_PORT}"
        while self._exec("sh", "-c", script).finish().status["status"] != "Success":
            assert time.monotonic() < deadline, "the container does not get ready"
            time.sleep(0.1)

    def start_up(self) -> None:
        """Time a command that does nothing."""
        with self._timed("exec of true"):
            assert self._exec("true").finish().exit_code == 0

    def connection(self, ports: SpdyPorts) -> None:
        """Time a connection to a port."""
        with self._timed("connection to a port"):
            forwarded = ports.connect(ECHO_PORT)
            forwarded.data.write(b"x")
            assert forwarded.data.read_until(b"x") == b"x"
        forwarded.data.close()
        forwarded.data.read_all()

    def output(self) -> None:
        """Rate of a command's output."""
        with self._rated("exec cat, out"):
            command = self._exec("cat", "/big")
            command.streams["stdout"].sink = True
            assert command.finish().exit_code == 0
            assert command.received() == self.size

    def input(self) -> None:
        """Rate of a command's input."""
        block = memoryview(bytes(1 << 20))
        with self._rated("exec cat, in"):
            command = self._exec("sh", "-c", "cat | wc -c", stdin=True)
            for _ in range(self.size >> 20):
                command.streams["stdin"].write(block)
            command.close_stdin()
            assert int(command.finish().stdout) == self.size

    def download(self) -> None:
        """Rate of a forwarded port."""
        ports = self.forward()
        with self._rated("port-forward, out"):
            forwarded = ports.connect(FLOOD_PORT)
            forwarded.data.sink = True
            forwarded.data.read_all()
            assert forwarded.data.received == self.size
        ports.close()

    def forward(self) -> SpdyPorts:
        """Begin a port-forward session."""
        request = cri.PortForwardRequest(pod_sandbox_id=self._pod)
        return SpdyPorts(self._runtime.PortForward(request, timeout=_TIMEOUT_S).url)

    def crowd(self) -> dict[str, memory.Memory]:
        """Hold SESSIONS commands at once; return the memory they add, by role."""
        time.sleep(SETTLE_S)
        before = memory.read_memory(self.contestant)
        sessions = [self._exec("cat", stdin=True) for _ in range(SESSIONS)]
        for number, command in enumerate(sessions):
            command.write(b"session %d\n" % number)
        for number, command in enumerate(sessions):
            command.read_until(b"session %d\n" % number)
        time.sleep(SETTLE_S)
        held = memory.read_memory(self.contestant)
        for command in sessions:
            command.close_stdin()
        assert all(command.finish().exit_code == 0 for command in sessions)
        return {
            role: memory.Memory(
                pss=size.pss - before.get(role, memory.Memory()).pss,
                anonymous=size.anonymous - before.get(role, memory.Memory()).anonymous,
            )
            for role, size in held.items()
        }

    def _exec(self, *cmd: str, stdin: bool = False) -> SpdyCommand:
        request = cri.ExecRequest(
            container_id=self._container, cmd=cmd, stdin=stdin, stdout=True, stderr=True
        )
        url = self._runtime.Exec(request, timeout=_TIMEOUT_S).url
        return SpdyCommand(url, (*(["stdin"] if stdin else []), "stdout", "stderr"))

    @contextlib.contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter_ns()
        yield
        self.times.setdefault(name, []).append((time.perf_counter_ns() - start) / 1e6)

    @contextlib.contextmanager
    def _rated(self, name: str) -> Iterator[None]:
        start = time.perf_counter_ns()
        yield
        seconds = (time.perf_counter_ns() - start) / 1e9
        self.rates.setdefault(name, []).append(self.size / 1e6 / seconds)


class Result(msgspec.Struct, kw_only=True):
    """One runtime's numbers; see Streams."""

    name: str
    version: str
    times: dict[str, list[float]]
    rates: dict[str, list[float]]
    crowd: dict[str, memory.Memory]


@click.command()
@click.option("--rounds", default=30, show_default=True, help="Start-ups, connections.")
@click.option("--transfers", default=5, show_default=True, help="Transfers of each kind.")
@click.option("--megabytes", default=1024, show_default=True, help="Size of a transfer, in MiB.")
@click.option(
    "--peer", "peers", multiple=True, type=click.Choice(["containerd"]), help="Beside pycri."
)
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write every sample here.")
def main(
    rounds: int, transfers: int, megabytes: int, peers: tuple[str, ...], file: Path | None
) -> None:
    """Measure exec and port-forward of pycri, beside other runtimes if asked for."""
    if os.geteuid() != 0:
        raise click.ClickException("needs root")
    if peers and (missing := containerd.find_missing_packages()):
        raise click.ClickException(f"run: apt-get install {' '.join(missing)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    session.claim_session()
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
        image = Images(registry)["busybox"]
        results = measure(contestants, image, rounds, transfers, megabytes << 20)
    host = _read_host(rounds, peers)
    click.echo(render(host, results))
    if file is not None:
        file.write_bytes(msgspec.json.format(msgspec.json.encode((host, results))))


def measure(
    contestants: list[Contestant], image: str, rounds: int, transfers: int, size: int
) -> list[Result]:
    """Measure all contestants in turns, and remove all pods."""
    with contextlib.ExitStack() as stack:
        clients = []
        for contestant in contestants:
            clients.append(Streams(contestant, image, size))
            stack.callback(clients[-1].close)
        for client in clients:
            client.wait_ready()
        _say("start-up, connections")
        _take_turns(clients, rounds, Streams.start_up)
        for client in clients:
            ports = client.forward()
            for _ in range(rounds):
                client.connection(ports)
            ports.close()
        _say("transfers")
        for action in (Streams.output, Streams.input, Streams.download):
            _take_turns(clients, transfers, action)
        results = []
        for client in clients:
            _say(f"{client.contestant.name}: {SESSIONS} sessions at once")
            results.append(
                Result(
                    name=client.contestant.name,
                    version=client.version,
                    times=client.times,
                    rates=client.rates,
                    crowd=client.crowd(),
                )
            )
        return results


def _take_turns(clients: list[Streams], rounds: int, action: Callable[[Streams], None]) -> None:
    for _ in range(rounds):
        for client in clients:
            try:
                action(client)
            except Exception as error:
                error.add_note(f"on {client.contestant.name}")
                raise


def render(host: dict[str, str], results: list[Result]) -> str:
    """Return the results as Markdown."""
    names = [result.name for result in results]
    rows = [["median", *names]]
    for name in results[0].times:
        cells = [f"{report.median(result.times[name]):.2f}" for result in results]
        rows.append([f"{name}, ms", *cells])
    for name in results[0].rates:
        cells = [f"{report.median(result.rates[name]):.0f}" for result in results]
        rows.append([f"{name}, MB/s", *cells])
    roles = sorted({role for result in results for role in result.crowd} - {memory.CONTAINERS})
    for role in roles:
        sizes = [result.crowd.get(role, memory.Memory()).anonymous / 1e6 for result in results]
        rows.append([f"{SESSIONS} sessions: {role}, MB more", *(f"{size:.1f}" for size in sizes)])
    facts = [f"{name}: {value}" for name, value in host.items()]
    return "\n".join([*facts, "", *report.render_table(rows)])


if __name__ == "__main__":
    main(prog_name="scripts/bench-streams")
