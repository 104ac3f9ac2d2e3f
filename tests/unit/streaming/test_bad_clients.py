# SPDX-License-Identifier: Apache-2.0
"""Clients that break the rules: each gets a clear answer, and the server keeps serving."""

import asyncio
import ssl
import struct
import subprocess
from pathlib import Path

import pytest

from pycri.config import StreamingSettings
from pycri.errors import InvalidSettings, NotFound, Unavailable
from pycri.model.ids import ContainerId, PodId
from pycri.model.streams import ExecRequest, PortForwardRequest
from pycri.streaming.server import StreamingServer
from pycri.streaming.spdy import ResetStatus
from tests.unit.streaming import frames
from tests.unit.streaming.client import Client
from tests.unit.streaming.test_sessions import begin, finish, play, shell
from tests.world.fake_sessions import FakeSessions, impatient

UPGRADE = ("Connection: Upgrade", "Upgrade: SPDY/3.1")
V4 = "X-Stream-Protocol-Version: v4.channel.k8s.io"


async def still_serves(server: StreamingServer) -> None:
    client, streams = await begin(server, shell("echo served"))
    await finish(client, streams)
    assert client.outputs[streams["stdout"]] == b"served\n"


async def ask(url: str, *headers: str, method: str = "POST") -> tuple[int, str]:
    client = await Client.connect(url)
    answer = await client.ask(url, *headers, method=method)
    await client.close()
    return answer


class TestRequests:
    def test_a_token_is_used_up_by_the_first_request(self) -> None:
        async def scene(server: StreamingServer, sessions: FakeSessions) -> None:
            url = server.url(shell("true"))
            assert (await ask(url, *UPGRADE, "X-Other: 1"))[0] == 400
            assert (await ask(url, *UPGRADE, V4))[0] == 404
            await still_serves(server)

        play(scene)

    def test_each_kind_of_bad_request_has_its_status(self) -> None:
        async def scene(server: StreamingServer, sessions: FakeSessions) -> None:
            for status, change, headers, method in [
                (404, ("/exec/", "/exec/x"), (*UPGRADE, V4), "POST"),
                (404, ("/exec/", "/attach/"), (*UPGRADE, V4), "POST"),
                (404, ("/exec/", "/"), (*UPGRADE, V4), "POST"),
                (405, ("", ""), (*UPGRADE, V4), "PUT"),
                (405, ("", ""), (*UPGRADE, V4), "HEAD"),
                (400, ("", ""), (), "GET"),
                (400, ("", ""), UPGRADE, "POST"),
                (403, ("", ""), (*UPGRADE, "X-Stream-Protocol-Version: v9"), "POST"),
            ]:
                url = server.url(shell("true")).replace(*change)
                got, head = await ask(url, *headers, method=method)
                assert got == status, head
                if status == 403:
                    lines = [line for line in head.splitlines() if "-Accepted-" in line]
                    assert [line.split(": ")[1] for line in lines] == [
                        *(f"v{n}.channel.k8s.io" for n in (4, 3, 2)),
                        "channel.k8s.io",
                    ]
            await still_serves(server)

        play(scene)

    def test_ports_that_a_websocket_has_no_channels_for_are_refused(self) -> None:
        async def scene(server: StreamingServer, sessions: FakeSessions) -> None:
            for ports, protocol, status in [
                (0, "v4.channel.k8s.io", 400),
                (128, "v4.channel.k8s.io", 101),
                (129, "v4.channel.k8s.io", 400),
                (6, "v4.base64.channel.k8s.io", 400),
            ]:
                request = PortForwardRequest(pod_id=PodId("p"), port=(1,) * ports)
                got, head = await ask(
                    server.url(request),
                    "Connection: Upgrade",
                    "Upgrade: websocket",
                    "Sec-WebSocket-Version: 13",
                    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
                    f"Sec-WebSocket-Protocol: {protocol}",
                    method="GET",
                )
                assert got == status, head

        play(scene)

    def test_what_is_no_http_is_answered_400(self) -> None:
        async def scene(server: StreamingServer, sessions: FakeSessions) -> None:
            for sent in (b"\x16\x03\x01\r\n\r\n", b"x" * 70_000, b"GET / HTTP/1.1\r\n\r\n"):
                client = await Client.connect(server.url(shell("true")))
                await client.send(sent)
                assert (await client.reader.read(12)) == b"HTTP/1.1 400"
                client.vanish()
            await still_serves(server)

        play(scene)

    def test_a_client_that_says_nothing_is_cut_off(self) -> None:
        async def scene(server: StreamingServer, sessions: FakeSessions) -> None:
            client = await Client.connect(server.url(shell("true")))
            assert await client.reader.read() == b""
            await client.close()

        play(scene, impatient(creation_timeout_s=0.2))

    def test_what_is_not_admitted_gets_no_url(self) -> None:
        async def scene(server: StreamingServer, sessions: FakeSessions) -> None:
            request = ExecRequest(container_id=ContainerId("x"), cmd=("sh",), stdout=True)
            with pytest.raises(NotFound):
                server.url(request)

        play(scene)


class TestStreams:
    def test_broken_frames_are_told_on_the_error_stream_and_end_the_process(self) -> None:
        broken = {
            "control frame of": struct.pack("!II", 0x80030001, 0xFFFFFF),
            "version 2": struct.pack("!II", 0x80020001, 0),
            "terminal's size": frames.data(7, b"}"),
        }

        async def scene(server: StreamingServer, sessions: FakeSessions) -> None:
            for words, sent in broken.items():
                client, streams = await begin(server, shell("sleep 60", stdin=True, tty=True))
                await client.send(sent)
                status = await finish(client, streams)
                assert words in str(status["message"])
            await still_serves(server)

        play(scene)

    def test_headers_that_are_not_zlib_are_told_while_streams_are_awaited(self) -> None:
        """Behind the last one nobody reads headers any more, and each stream is refused."""

        async def scene(server: StreamingServer, sessions: FakeSessions) -> None:
            url = server.url(shell("sleep 60"))
            client = await Client.connect(url)
            await client.upgrade_spdy(url, "v4.channel.k8s.io")
            streams = await client.open("error")
            headers = struct.pack("!IIH", 99, 0, 0) + b"\xff" * 8
            await client.send(frames.control(1, headers))
            assert "not zlib" in str((await finish(client, streams))["message"])
            await still_serves(server)

        play(scene)

    def test_a_flood_of_streams_is_refused_stream_by_stream(self) -> None:
        async def scene(server: StreamingServer, sessions: FakeSessions) -> None:
            client, streams = await begin(server, shell("cat", stdin=True))
            for number in range(101, 4101, 2):
                await client.send(client.spdy.open(number, {"streamtype": "stdin"}))
            await client.send(frames.ping(9), frames.data(streams["stdin"], b"on", fin=True))
            await finish(client, streams)
            assert set(client.resets) == set(range(101, 4101, 2))
            assert set(client.resets.values()) <= set(ResetStatus)
            assert client.outputs[streams["stdout"]] == b"on"
            assert client.pongs == [9]

        play(scene)

    def test_a_websocket_against_the_rules_is_closed_with_its_code(self) -> None:
        async def scene(server: StreamingServer, sessions: FakeSessions) -> None:
            url = server.url(shell("sleep 60"))
            client = await Client.connect(url)
            await client.upgrade_websocket(url, "v4.channel.k8s.io")
            await client.send(b"\x82\x01x")
            assert (await client.reader.read()).endswith(b"\x88\x02\x03\xea")
            await client.close()
            await still_serves(server)

        play(scene)

    def test_clients_that_vanish_at_any_byte_leave_nothing(self) -> None:
        async def scene(server: StreamingServer, sessions: FakeSessions) -> None:
            head = "POST {} HTTP/1.1\r\nHost: h\r\n" + "\r\n".join((*UPGRADE, V4)) + "\r\n\r\n"
            opened = frames.SpdyClient()
            names = ("error", "stdout", "stderr")
            spdy = b"".join(
                opened.open(2 * i + 1, {"streamtype": name}) for i, name in enumerate(names)
            )
            for cut in range(0, len(head) + len(spdy), 9):
                url = server.url(shell("sleep 60"))
                client = await Client.connect(url)
                sent = head.format("/" + url.split("/", 3)[3]).encode() + spdy
                await client.send(sent[:cut])
                client.vanish()
            await still_serves(server)

        play(scene)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A certificate for 127.0.0.1 and its key, as paths."""
    folder: Path = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    command += " -subj /CN=test -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(
        [*command.split(), "-out", str(certificate), "-keyout", str(key)],
        check=True,
        capture_output=True,
    )
    return str(certificate), str(key)


class TestSettings:
    def test_tls_carries_the_same(self, certificate: tuple[str, str]) -> None:
        async def scene(server: StreamingServer, sessions: FakeSessions) -> None:
            url = server.url(shell("cat", stdin=True))
            assert url.startswith("https://127.0.0.1:")
            trust = ssl.create_default_context(cafile=certificate[0])
            client = await Client.connect(url, tls=trust)
            await client.upgrade_spdy(url, "v4.channel.k8s.io")
            streams = await client.open("error", "stdin", "stdout", "stderr")
            sent = bytes(range(256)) * 4000

            async def feed() -> None:
                for at in range(0, len(sent), 50_000):
                    await client.send(frames.data(streams["stdin"], sent[at : at + 50_000]))
                await client.send(frames.data(streams["stdin"], fin=True))

            feeding = asyncio.create_task(feed())
            await client.read_until(streams["error"], b"Success")
            await feeding
            assert client.outputs[streams["stdout"]] == sent
            await client.close()
            plain = await Client.connect(url)
            await plain.send(b"GET / HTTP/1.1\r\n\r\n")
            plain.vanish()

        cert, key = certificate
        play(scene, StreamingSettings(tls_cert=cert, tls_key=key))

    @pytest.mark.parametrize(
        ("address", "host"), [("::1", "[::1]"), ("0.0.0.0", "127.0.0.1"), ("::", "[::1]")]
    )
    def test_urls_name_an_address_that_can_be_reached(self, address: str, host: str) -> None:
        async def scene(server: StreamingServer, sessions: FakeSessions) -> None:
            assert server.url(shell("true")).startswith(f"http://{host}:")
            await still_serves(server)

        play(scene, StreamingSettings(address=address))

    def test_a_port_in_use_and_a_certificate_that_is_none_are_errors(self, tmp_path: Path) -> None:
        async def scene(server: StreamingServer, sessions: FakeSessions) -> None:
            port = int(server.url(shell("true")).split(":")[2].split("/")[0])
            with pytest.raises(Unavailable, match=f"127.0.0.1 port {port}: Address already"):
                await StreamingServer(StreamingSettings(port=port), sessions).start()
            nothing = str(tmp_path / "none.pem")
            settings = StreamingSettings(tls_cert=nothing, tls_key=nothing)
            with pytest.raises(InvalidSettings, match=r"streaming\.tls_cert"):
                await StreamingServer(settings, sessions).start()

        play(scene)
