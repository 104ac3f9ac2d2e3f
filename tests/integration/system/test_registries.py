# SPDX-License-Identifier: Apache-2.0
"""Real registries, with TLS, passwords and tokens, as hosts.toml and credentials describe them."""

import asyncio
import base64
import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from pycri import errors
from pycri.model.image import RegistryAuth
from tests.world import session
from tests.world.certificates import Authority
from tests.world.daemon import Node, refused
from tests.world.faulty_proxy import FaultyProxy
from tests.world.image_stores import answers, list_layers, open_store
from tests.world.oci import Image, Layer, build_image
from tests.world.registry import PASSWORD, USERNAME, Registry
from tests.world.token_service import IDENTITY, TokenService

KIM = RegistryAuth(username=USERNAME, password=PASSWORD)

StartRegistry = Callable[..., Registry]


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def small_image(text: str = "content") -> Image:
    return build_image([Layer().file("a", text).tar()], {})


def describe(folder: Path, registry: str, text: str) -> Path:
    """Write a hosts.toml for a registry, and return it."""
    file = folder / "certs.d" / registry / "hosts.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


@pytest.fixture
def start_registry(scope: Any, tmp_path: Path) -> Iterator[StartRegistry]:
    """Start a registry of the test's own; its arguments are those of Registry.start."""
    with contextlib.ExitStack() as stack:

        def start(name: str = "registry", **words: Any) -> Registry:
            found = stack.enter_context(Registry.start(tmp_path / name, **words))
            scope.adopted.add(found.pid)
            return found

        yield start


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


async def pull(folder: Path, name: str, auth: RegistryAuth | None = None) -> str:
    """Pull into a store of its own and return the id; what is left of a failure is nothing."""
    async with open_store(folder) as store:
        try:
            image = await store.pull(name, auth)
        except errors.PycriError:
            assert store.images() == () and list_layers(folder) == []
            raise
        await store.remove(image.id)
        return image.id


def test_a_mirror_goes_before_the_registry_and_is_told_its_name(
    registry: Registry, tmp_path: Path
) -> None:
    built = small_image()
    registry.push(built, "library/mirrored")

    async def main() -> None:
        async with FaultyProxy.start(registry.address) as proxy:
            describe(tmp_path, "docker.io", f'[host."http://{proxy.address}"]')
            assert await pull(tmp_path, "mirrored") == built.config
            assert set(proxy.queries) == {"ns=docker.io"}

    run(main())


def test_every_name_of_the_folder_and_the_default_one_is_found(
    registry: Registry, tmp_path: Path
) -> None:
    built = small_image()
    registry.push(built, "tests/found")
    server = f'server = "http://{registry.address}"'

    async def main() -> None:
        for folder in ("x.test_5000_", "x.test:5000", "_default"):
            file = describe(tmp_path, folder, server)
            assert await pull(tmp_path, "x.test:5000/tests/found") == built.config
            file.unlink()
            file.parent.rmdir()

    run(main())


def test_hosts_are_read_at_each_pull(registry: Registry, tmp_path: Path) -> None:
    built = small_image()
    registry.push(built, "tests/read")

    async def main() -> None:
        async with open_store(tmp_path) as store:
            file = describe(tmp_path, "x.test", 'servr = "x"')
            with pytest.raises(errors.InvalidSettings, match=f"{file}: servr: unknown key"):
                await store.pull("x.test/tests/read", None)
            file.write_text(f'server = "http://{registry.address}"')
            assert (await store.pull("x.test/tests/read", None)).id == built.config

    run(main())


def test_an_api_below_another_path_is_asked_there(registry: Registry, tmp_path: Path) -> None:
    built = small_image()
    registry.push(built, "tests/below/image")
    url = f"http://{registry.address}/v2/tests/below"

    async def main() -> None:
        describe(tmp_path, "x.test", f'server = "{url}"\noverride_path = true')
        assert await pull(tmp_path, "x.test/image") == built.config

    run(main())


def test_a_mirror_that_may_not_resolve_gives_only_content_by_digest(
    registry: Registry, tmp_path: Path
) -> None:
    """It would say that the tag is an old image; the registry knows better."""
    old, new = small_image("old"), small_image("new")
    for built in (old, new):
        registry.push(built, "tests/moving")

    async def main() -> None:
        async with FaultyProxy.start(registry.address) as mirror:
            text = f"""
            server = "http://{registry.address}"
            [host."http://{mirror.address}"]
            capabilities = ["pull"]
            """
            describe(tmp_path, "x.test", text)
            mirror.faults["/latest"] = answers(200, old.blobs[old.root.digest])
            assert await pull(tmp_path, "x.test/tests/moving") == new.config
            assert mirror.asked("/latest") == 0
            assert mirror.asked(new.root.digest) == mirror.asked(new.layers[0]) == 1

    run(main())


def test_headers_are_sent_to_their_host_only(registry: Registry, tmp_path: Path) -> None:
    built = small_image()
    registry.push(built, "tests/headers")

    async def main() -> None:
        async with (
            FaultyProxy.start(registry.address) as mirror,
            FaultyProxy.start(registry.address) as upstream,
        ):
            text = f"""
            server = "http://{upstream.address}"
            [host."http://{mirror.address}"]
            [host."http://{mirror.address}".header]
            x-site = ["four", "five"]
            """
            describe(tmp_path, "x.test", text)
            mirror.faults |= dict.fromkeys(built.blobs, answers(404))
            await pull(tmp_path, "x.test/tests/headers")
            assert mirror.headers[0].getall("x-site") == ["four", "five"]
            assert upstream.headers and not any("x-site" in one for one in upstream.headers)

    run(main())


def test_a_host_that_does_not_take_up_a_connection_costs_its_dial_timeout(
    registry: Registry, tmp_path: Path
) -> None:
    """The kernel takes the connection up, but nobody answers for TLS."""
    built = small_image()
    registry.push(built, "tests/dialled")

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            address = f"127.0.0.1:{silent.getsockname()[1]}"
            text = f"""
            server = "http://{registry.address}"
            [host."https://{address}"]
            dial_timeout = "100ms"
            """
            describe(tmp_path, "x.test", text)
            assert await pull(tmp_path, "x.test/tests/dialled") == built.config
            describe(tmp_path, "x.test", f'server = "https://{address}"\ndial_timeout = "100ms"')
            with pytest.raises(errors.RegistryUnavailable, match="cannot be reached: time-out"):
                await pull(tmp_path, "x.test/tests/dialled")

    run(main())


@contextlib.asynccontextmanager
async def tunnelling(target: str) -> AsyncIterator[tuple[str, list[str]]]:
    """Serve CONNECT, whatever host is named, by a way to `target`; yield URL and what was named."""
    named: list[str] = []
    pumps: set[asyncio.Task[None]] = set()

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError), contextlib.closing(sink):
            while piece := await source.read(65536):
                sink.write(piece)
                await sink.drain()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        named.append(head.split()[1])
        onward = await asyncio.open_connection(*target.split(":"))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        for source, sink in ((reader, onward[1]), (onward[0], writer)):
            pumps.add(asyncio.create_task(pump(source, sink)))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield "http://{}:{}".format(*server.sockets[0].getsockname()[:2]), named
    for task in pumps:
        task.cancel()
    await asyncio.gather(*pumps, return_exceptions=True)


def test_a_proxy_is_the_way_to_a_host_that_names_one(
    start_registry: StartRegistry, authority: Authority, registry: Registry, tmp_path: Path
) -> None:
    secure, built = start_registry(authority=authority), small_image()
    for found in (secure, registry):
        found.push(built, "tests/proxied")

    async def main() -> None:
        async with FaultyProxy.start(registry.address) as proxy:
            text = f'server = "http://y.test:81"\nproxy = "http://{proxy.address}"'
            describe(tmp_path, "x.test", text)
            assert await pull(tmp_path, "x.test/tests/proxied") == built.config
            assert proxy.asked("/manifests/latest") == 1
        async with tunnelling(secure.address) as (url, named):
            # The certificate is of localhost; nothing listens there.
            text = (
                f'server = "https://localhost:1"\nca = "{authority.certificate}"\nproxy = "{url}"'
            )
            describe(tmp_path, "x.test", text)
            assert await pull(tmp_path, "x.test/tests/proxied") == built.config
            assert set(named) == {"localhost:1"}

    run(main())


def test_tls_is_verified_by_the_authority_that_hosts_toml_names(
    start_registry: StartRegistry, authority: Authority, tmp_path: Path
) -> None:
    registry, built = start_registry(authority=authority), small_image()
    registry.push(built, "tests/tls")
    name = registry.reference("tests/tls")
    other = Authority(tmp_path / "other")

    async def main() -> None:
        server = f'server = "https://{registry.address}"\n'
        for unverified in ("", f'ca = "{other.certificate}"'):
            describe(tmp_path, registry.address, server + unverified)
            with pytest.raises(errors.RegistryUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
                await pull(tmp_path, name)
        for verified in (
            f'ca = "{authority.certificate}"',
            f'ca = ["{other.certificate}", "{authority.certificate}"]',
            "skip_verify = true",
        ):
            describe(tmp_path, registry.address, server + verified)
            assert await pull(tmp_path, name) == built.config
        # A folder of certificates alone, as Docker has it; relative names.
        file = describe(tmp_path, registry.address, 'ca = "a.crt"')
        (file.parent / "a.crt").write_bytes(authority.certificate.read_bytes())
        assert await pull(tmp_path, name) == built.config
        file.unlink()
        assert await pull(tmp_path, name) == built.config

    run(main())


@pytest.mark.parametrize("form", ["one-file", "pair", "second-pair", "docker"])
def test_a_registry_that_asks_for_a_client_certificate_gets_it(
    form: str, start_registry: StartRegistry, authority: Authority, tmp_path: Path
) -> None:
    registry, built = start_registry(authority=authority, clients=True), small_image()
    registry.push(built, "tests/mutual")
    name = registry.reference("tests/mutual")
    certificate, key = authority.issue("client")
    wrong, wrong_key = Authority(tmp_path / "other").issue("stranger")
    both = tmp_path / "both.pem"
    both.write_text(certificate.read_text() + key.read_text())
    ca = f'server = "https://{registry.address}"\nca = "{authority.certificate}"\n'
    client = {
        "one-file": f'client = "{both}"',
        "pair": f'client = [["{certificate}", "{key}"]]',
        "second-pair": f'client = [["{wrong}", "{wrong_key}"], ["{both}", ""]]',
        "docker": "",
    }[form]

    async def main() -> None:
        file = describe(tmp_path, registry.address, ca)
        with pytest.raises(errors.RegistryUnavailable, match=registry.address):
            await pull(tmp_path, name)
        file.write_text(ca + client)
        if form == "docker":
            file.unlink()
            for source, target in (
                (authority.certificate, "a.crt"),
                (certificate, "a.cert"),
                (key, "a.key"),
            ):
                (file.parent / target).write_bytes(source.read_bytes())
        assert await pull(tmp_path, name) == built.config

    run(main())


def test_certificates_that_cannot_be_used_are_named(authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.issue("client")
    locked = authority.encrypt(key)
    text = tmp_path / "text"
    text.write_text("no certificate")

    async def main() -> None:
        for line, named in (
            ('ca = "absent.pem"', f"{tmp_path}/certs.d/x.test/absent.pem: No such file"),
            (f'ca = "{text}"', f"{text}: holds no certificates"),
            (f'client = "{text}"', f"{text}: not a certificate"),
            (f'client = [["{certificate}", "{locked}"]]', f"{locked}: not a certificate and its"),
        ):
            describe(tmp_path, "x.test", line)
            with pytest.raises(errors.InvalidSettings, match=named):
                await pull(tmp_path, "x.test/a")

    run(main())


def test_tls_is_tried_first_where_a_host_in_the_open_has_tls_settings(
    start_registry: StartRegistry, authority: Authority, registry: Registry, tmp_path: Path
) -> None:
    secure, built = start_registry(authority=authority), small_image()

    async def main() -> None:
        for found in (secure, registry):
            found.push(built, "tests/either")
            describe(tmp_path, "x.test", f'server = "http://{found.address}"\nskip_verify = true')
            assert await pull(tmp_path, "x.test/tests/either") == built.config

    run(main())


def test_a_password_opens_a_registry_that_asks_for_one(
    start_registry: StartRegistry, tmp_path: Path
) -> None:
    registry, built = start_registry(auth=True), small_image()
    registry.push(built, "tests/secret")
    name = registry.reference("tests/secret")
    file = tmp_path / "credentials.json"

    async def main() -> None:
        for wrong in (
            None,
            RegistryAuth(username=USERNAME, password="guess"),
            RegistryAuth(username=USERNAME, password=PASSWORD, server_address="quay.io"),
            RegistryAuth(identity_token="identity"),
        ):
            with pytest.raises(errors.Denied, match="tests/secret") as caught:
                await pull(tmp_path, name, wrong)
            assert PASSWORD not in str(caught.value) and "guess" not in str(caught.value)
        async with FaultyProxy.start(registry.address) as proxy:
            with pytest.raises(errors.Denied):
                wrong = RegistryAuth(username=USERNAME, password="guess")
                await pull(tmp_path, f"{proxy.address}/tests/secret", wrong)
            # Wrong passwords are counted where there are locks.
            assert [bool(sent) for sent in proxy.authorizations] == [False, True]
        assert await pull(tmp_path, name, KIM) == built.config
        pair = base64.b64encode(f"{USERNAME}:{PASSWORD}".encode()).decode()
        file.write_text(json.dumps({"auths": {registry.address: {"auth": pair}}}))
        assert await pull(tmp_path, name) == built.config
        elsewhere = RegistryAuth(username="x", password="y", server_address="quay.io")
        assert await pull(tmp_path, name, elsewhere) == built.config

    run(main())


def test_a_credential_helper_opens_a_registry(
    start_registry: StartRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, built = start_registry(auth=True), small_image()
    registry.push(built, "tests/secret")
    helper = tmp_path / "docker-credential-test"
    answer = json.dumps({"Username": USERNAME, "Secret": PASSWORD})
    helper.write_text(f"#!/bin/sh\necho asked >>{tmp_path}/asked\necho '{answer}'\n")
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    file = tmp_path / "credentials.json"
    file.write_text(json.dumps({"credHelpers": {registry.address: "test"}}))

    async def main() -> None:
        assert await pull(tmp_path, registry.reference("tests/secret")) == built.config
        # Once a pull, and only because it was asked for.
        assert (tmp_path / "asked").read_text() == "asked\n"

    run(main())


def test_a_pull_secret_is_not_sent_to_a_mirror(
    start_registry: StartRegistry, tmp_path: Path
) -> None:
    registry, built = start_registry(auth=True), small_image()
    registry.push(built, "tests/secret")

    async def main() -> None:
        async with FaultyProxy.start(registry.address) as mirror:
            text = f'server = "http://{registry.address}"\n[host."http://{mirror.address}"]'
            describe(tmp_path, "x.test", text)
            assert await pull(tmp_path, "x.test/tests/secret", KIM) == built.config
            assert mirror.requests and set(mirror.authorizations) == {""}
            named = RegistryAuth(
                username=USERNAME, password=PASSWORD, server_address=mirror.address
            )
            assert await pull(tmp_path, "x.test/tests/secret", named) == built.config
            assert mirror.authorizations[-1].startswith("Basic ")

    run(main())


@contextlib.asynccontextmanager
async def token_registry(
    start_registry: StartRegistry, authority: Authority, built: Image
) -> AsyncIterator[tuple[Registry, TokenService]]:
    """Start a registry that holds `built` as tests/secret and wants tokens, and their service."""
    start_registry("tokens").push(built, "tests/secret")
    async with TokenService(authority).serving() as service:
        realm = f"http://{service.address}/token"
        starting = asyncio.to_thread(
            start_registry, "tokens", tokens=(realm, authority.certificate)
        )
        yield await starting, service


@pytest.mark.parametrize("kind", ["password", "identity", "registry-token"])
def test_a_token_opens_a_registry_that_asks_for_one(
    kind: str, start_registry: StartRegistry, authority: Authority, tmp_path: Path
) -> None:
    built = small_image()

    async def main() -> None:
        async with token_registry(start_registry, authority, built) as (registry, service):
            token = service.make_token("repository:tests/secret:pull")
            auth = {
                "password": KIM,
                "identity": RegistryAuth(identity_token=IDENTITY),
                "registry-token": RegistryAuth(registry_token=token),
            }[kind]
            name = registry.reference("tests/secret")
            assert await pull(tmp_path, name, auth) == built.config
            wanted = [] if kind == "registry-token" else ["repository:tests/secret:pull"]
            assert service.granted == wanted
            with pytest.raises(errors.Denied, match=r"an anonymous user.*who are you"):
                await pull(tmp_path, name)
            with pytest.raises(errors.Denied, match="a registry token of the pull secret"):
                await pull(tmp_path, name, RegistryAuth(registry_token="guess"))

    run(main())


def test_a_token_service_that_is_busy_is_asked_again(
    start_registry: StartRegistry, authority: Authority, tmp_path: Path
) -> None:
    built = small_image()

    async def main() -> None:
        async with token_registry(start_registry, authority, built) as (registry, service):
            busy = answers(429, headers={"Retry-After": "0"})
            service.faults["/token"] = service.times(busy, 2)
            name = registry.reference("tests/secret")
            assert await pull(tmp_path, name, KIM) == built.config
            assert service.asked("/token") == 3

    run(main())


def test_the_kubelet_sees_why_a_pull_failed(
    make_node: Callable[..., Node], registry: Registry, tmp_path: Path
) -> None:
    """It tells kinds of errors apart by code and first word (CRI, ErrRegistryUnavailable)."""
    registry.push(small_image(), "tests/seen")
    certs = tmp_path / "certs.d"
    node = make_node(f'[images]\ncerts_dir = "{certs}"\ncredentials_file = "{tmp_path}/c.json"')
    file = describe(tmp_path, "x.test", 'server = "http://127.0.0.1:1"')
    with refused(grpc.StatusCode.UNKNOWN, "RegistryUnavailable: http://127.0.0.1:1"):
        node.pull("x.test/tests/seen")
    file.write_text("server = 3")
    with refused(grpc.StatusCode.FAILED_PRECONDITION, f"{file}: server: Expected `str`"):
        node.pull("x.test/tests/seen")
    file.write_text(f'server = "http://{registry.address}"')
    with refused(grpc.StatusCode.NOT_FOUND, "x.test/tests/none"):
        node.pull("x.test/tests/none")
    assert node.pull("x.test/tests/seen")


def test_explain_says_what_a_pull_would_do_without_secrets(tmp_path: Path) -> None:
    describe(
        tmp_path,
        "docker.io",
        """
        [host."https://mirror.test:5000"]
        capabilities = ["pull"]
        proxy = "http://user:hidden@proxy.test"
        [host."https://mirror.test:5000".header]
        x-key = "hidden"
        """,
    )
    describe(tmp_path, "broken.test", 'ca = "absent.pem"')
    auths = {"docker.io": {"username": "kim", "password": "hidden"}}
    (tmp_path / "credentials.json").write_text(json.dumps({"auths": auths}))
    (tmp_path / "config.toml").write_text(
        f'[images]\ncerts_dir = "{tmp_path}/certs.d"\n'
        f'credentials_file = "{tmp_path}/credentials.json"\n'
    )

    def explain(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pycri", "registry", "explain"]
        return subprocess.run(
            [*command, "--config", str(tmp_path / "config.toml"), *words],
            capture_output=True,
            text=True,
            check=False,
            env=session.environment(),
        )

    text = explain("busybox")
    assert text.returncode == 0 and "hidden" not in text.stdout + text.stderr
    for word in ("1. https://mirror.test:5000/v2", "2. https://registry-1.docker.io/v2", "x-key"):
        assert word in text.stdout
    hosts = json.loads(explain("busybox", "--json").stdout)["hosts"]
    assert ["user kim" in host["credentials"] for host in hosts] == [False, True]
    assert hosts[0]["asked_for"] == "content by digest"
    broken = explain("broken.test/a")
    assert broken.returncode == 1 and "absent.pem: No such file" in broken.stdout
