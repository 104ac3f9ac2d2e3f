# SPDX-License-Identifier: Apache-2.0
"""Images that the node's policy lets in, and those it does not; verifiers are real programs."""

import asyncio
import json
import os
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import grpc
import pytest

from pycri.errors import SignatureRejected
from tests.world.daemon import Node, refused
from tests.world.image_stores import FaultyRegistry, list_layers, make_rules, open_store
from tests.world.images import build_layered

UNKNOWN = grpc.StatusCode.UNKNOWN


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def write_verifier(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


async def pull(
    folder: Path, registry: FaultyRegistry, verdict: Any = "verify", **rules: Any
) -> str:
    async with open_store(folder, rules=make_rules(folder, {"*": verdict}, **rules)) as store:
        return (await store.pull(registry.reference, None)).id


def test_a_verifier_sees_what_the_name_was_resolved_to(tmp_path: Path) -> None:
    built = build_layered()
    script = f'echo "$@" >{tmp_path}/arguments; cat >{tmp_path}/stdin'
    write_verifier(tmp_path / "verifiers", "yes", script)

    async def main() -> None:
        async with FaultyRegistry.start(built) as registry:
            assert await pull(tmp_path, registry) == built.config
            assert (tmp_path / "arguments").read_text().split() == [
                "-name", registry.reference, "-digest", built.root.digest,
                "-stdin-media-type", "application/vnd.oci.descriptor.v1+json",
            ]  # fmt: skip
        assert json.loads((tmp_path / "stdin").read_text()) == {
            "mediaType": built.root.media_type,
            "digest": built.root.digest,
            "size": built.root.size,
        }

    run(main())


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo not signed by us; exit 3", r"verifier b-no \(status 3\): not signed by us"),
        ("kill -9 $$", r"verifier b-no \(status -9\)"),
        ("exec 1>&-; exit 1", r"verifier b-no \(status 1\): $"),
        ("yes | head -c 10000000; exit 1", r"verifier b-no \(status 1\): (y ){10,250}"),
    ],
)
def test_what_a_verifier_rejects_is_not_fetched(script: str, words: str, tmp_path: Path) -> None:
    write_verifier(tmp_path / "verifiers", "a-yes", "exit 0")
    write_verifier(tmp_path / "verifiers", "b-no", script)
    write_verifier(tmp_path / "verifiers", "c-never", f"touch {tmp_path}/asked")

    async def main() -> None:
        async with FaultyRegistry.start(build_layered()) as registry:
            with pytest.raises(SignatureRejected, match=words) as caught:
                await pull(tmp_path, registry)
            assert len(str(caught.value)) < 1000
            assert not any("/blobs/" in request for request in registry.requests)
        assert list_layers(tmp_path) == [] and not (tmp_path / "asked").exists()

    run(main())


def test_a_verifier_that_hangs_rejects_and_leaves_no_process(tmp_path: Path) -> None:
    script = f"sleep 1000 & echo $! >{tmp_path}/child; sleep 1000"
    write_verifier(tmp_path / "verifiers", "slow", script)

    async def main() -> None:
        async with FaultyRegistry.start(build_layered()) as registry:
            start = time.monotonic()
            with pytest.raises(SignatureRejected, match="slow did not answer within 1 s"):
                await pull(tmp_path, registry, timeout_s=1)
            assert time.monotonic() - start < 10

    run(main())
    child = (tmp_path / "child").read_text().strip()
    assert not Path("/proc", child).exists() or "Z" in Path("/proc", child, "stat").read_text()


def no_verifier(folder: Path) -> None:
    """Leave the folder missing."""


def not_a_program(folder: Path) -> None:
    write_verifier(folder, "text", "exit 0")
    os.chmod(folder / "text", 0o644)


def too_many(folder: Path) -> None:
    for number in range(3):
        write_verifier(folder, f"yes{number}", "exit 0")


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (no_verifier, "holds no verifier"),
        (not_a_program, "verifier text: Permission denied"),
        (too_many, "holds 3 verifiers, over 2"),
    ],
)
def test_a_verification_that_cannot_be_made_rejects(
    prepare: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    prepare(tmp_path / "verifiers")

    async def main() -> None:
        async with FaultyRegistry.start(build_layered()) as registry:
            with pytest.raises(SignatureRejected, match=words):
                await pull(tmp_path, registry, most=2)

    run(main())


def test_a_registry_that_is_rejected_is_not_even_asked(tmp_path: Path) -> None:
    async def main() -> None:
        async with FaultyRegistry.start(build_layered()) as registry:
            with pytest.raises(SignatureRejected, match="rule for '\\*' rejects it"):
                await pull(tmp_path, registry, "reject")
            assert registry.requests == []

    run(main())


def test_a_pull_asks_again_about_an_image_that_is_there(tmp_path: Path) -> None:
    write_verifier(tmp_path / "verifiers", "fickle", f"test ! -e {tmp_path}/revoked")

    async def main() -> None:
        async with (
            FaultyRegistry.start(build_layered()) as registry,
            open_store(tmp_path, rules=make_rules(tmp_path, {"*": "verify"})) as store,
        ):
            image = await store.pull(registry.reference, None)
            (tmp_path / "revoked").touch()
            with pytest.raises(SignatureRejected, match="fickle"):
                await store.pull(registry.reference, None)
            assert store.images() == (image,)

    run(main())


def test_the_kubelet_reads_a_rejection_by_its_name(
    make_node: Callable[..., Node], images: Any, tmp_path: Path
) -> None:
    write_verifier(tmp_path / "verifiers", "no", "echo unsigned; exit 1")
    host = images["busybox"].partition("/")[0]
    node = make_node(
        f'[images.policy]\nverifier_dir = "{tmp_path}/verifiers"\n'
        f'[images.policy.rules]\n"{host}" = "verify"\n"{host}/tests/busybox" = "accept"\n'
        '"quay.io" = "reject"\n'
    )
    assert node.pull(images["busybox"]) == images.image("busybox").config
    for name, words in ((images["layered"], "unsigned"), ("quay.io/team/web", "rejects it")):
        with refused(UNKNOWN, "SignatureValidationFailed: ", words):
            node.pull(name)
        try:
            node.pull(name)
        except grpc.RpcError as error:
            assert str(error.details()).startswith("SignatureValidationFailed: ")
