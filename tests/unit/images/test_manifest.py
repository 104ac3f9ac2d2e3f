# SPDX-License-Identifier: Apache-2.0
import json
from typing import Any

import pytest

from pycri.errors import CorruptImage, NotFound, Unsupported
from pycri.images.manifest import (
    Index,
    Manifest,
    Platform,
    choose_platform,
    host_platform,
    parse_config,
    parse_document,
    suits,
)
from pycri.model.ids import Digest, ImageId

DIGEST = Digest("sha256:" + "ab" * 32)
OCI = "application/vnd.oci.image."
CONFIG = {"mediaType": OCI + "config.v1+json", "digest": DIGEST, "size": 2}
LAYER: dict[str, Any] = {"mediaType": OCI + "layer.v1.tar+gzip", "digest": DIGEST, "size": 3}


def encode(**document: Any) -> bytes:
    return json.dumps({"schemaVersion": 2} | document).encode()


def index_of(*platforms: tuple[str, str] | None) -> Index:
    entries = [
        {"digest": "sha256:" + f"{number:064x}", "size": 1}
        | ({"platform": {"os": "linux", "architecture": p[0], "variant": p[1]}} if p else {})
        for number, p in enumerate(platforms)
    ]
    index = parse_document(encode(manifests=entries), "")
    assert isinstance(index, Index)
    return index


def chosen(host: str, *platforms: tuple[str, str] | None) -> int:
    digest = choose_platform(index_of(*platforms), host_platform(host), "web").digest
    return int(digest.removeprefix("sha256:"), 16)


def test_a_manifest_is_read_without_its_own_media_type() -> None:
    manifest = parse_document(encode(config=CONFIG, layers=[LAYER]), OCI + "manifest.v1+json")
    assert isinstance(manifest, Manifest)
    assert (manifest.config.digest, manifest.layers[0].size) == (DIGEST, 3)


@pytest.mark.parametrize(
    ("written", "kept"),
    [({"a": "b"}, {"a": "b"}), (None, {}), ({"a": "b", "long": "x" * 65_536}, {})],
)
def test_annotations_are_kept_if_they_are_no_burden(
    written: dict[str, str] | None, kept: dict[str, str]
) -> None:
    manifest = parse_document(encode(config=CONFIG, layers=[], annotations=written), "")
    assert isinstance(manifest, Manifest) and manifest.annotations == kept


@pytest.mark.parametrize(
    ("document", "media_type", "error"),
    [
        (encode(config=CONFIG, layers=[LAYER], manifests=[]), "", CorruptImage),
        (encode(manifests=[]), OCI + "manifest.v1+json", CorruptImage),
        (encode(config=CONFIG, layers=[]), OCI + "index.v1+json", CorruptImage),
        (encode(config=CONFIG), "", CorruptImage),
        (encode(config=CONFIG | {"digest": "sha256:../x"}, layers=[]), "", CorruptImage),
        (encode(config=CONFIG, layers=[LAYER | {"size": -1}]), "", CorruptImage),
        (encode(config=CONFIG, layers=[LAYER | {"size": "1"}]), "", CorruptImage),
        (b"{", "", CorruptImage),
        (b'{"schemaVersion": 1, "fsLayers": [], "history": []}', "", Unsupported),
        (encode(config=CONFIG | {"mediaType": "application/x-chart"}, layers=[]), "", Unsupported),
        (
            encode(
                config=CONFIG, layers=[LAYER | {"mediaType": LAYER["mediaType"] + "+encrypted"}]
            ),
            "",
            Unsupported,
        ),
        (encode(config=CONFIG, layers=[LAYER] * 501), "", Unsupported),
    ],
)
def test_a_manifest_that_is_not_one_image_is_refused(
    document: bytes, media_type: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        parse_document(document, media_type)


def test_the_platform_of_the_host_is_chosen() -> None:
    assert chosen("x86_64", ("s390x", ""), ("amd64", ""), ("arm64", "v8")) == 1
    assert chosen("aarch64", ("arm", "v7"), ("arm64", ""), ("amd64", "")) == 1


def test_the_nearest_variant_that_the_host_can_run_is_chosen() -> None:
    arm = [("arm", "v5"), ("arm", "v6"), ("arm", "v7"), ("arm", "v8")]
    assert chosen("armv7l", *arm) == 2
    assert chosen("armv6l", *arm) == 1
    assert chosen("armv7l", ("arm", "v5"), ("arm", "v6")) == 1
    assert chosen("x86_64", ("amd64", "v3"), ("amd64", "")) == 1


V2 = ["cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"]
V3 = [*V2, *["abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"]]
V4 = [*V3, *["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"]]


@pytest.mark.parametrize(
    ("machine", "flags", "platform"),
    [
        ("x86_64", [], "linux/amd64"),
        ("x86_64", ["sse2", "lm"], "linux/amd64"),
        ("x86_64", V2, "linux/amd64/v2"),
        ("x86_64", V2[1:], "linux/amd64"),
        ("x86_64", V3, "linux/amd64/v3"),
        ("x86_64", [flag for flag in V3 if flag != "abm"], "linux/amd64/v2"),
        ("x86_64", [flag for flag in V4 if flag != "movbe"], "linux/amd64/v2"),
        ("x86_64", V4, "linux/amd64/v4"),
        ("x86_64", [*V4, "amx_tile"], "linux/amd64/v4"),
        ("aarch64", V4, "linux/arm64/v8"),
        ("armv8l", [], "linux/arm/v8"),
        ("armv7l", [], "linux/arm/v7"),
        ("armv6l", [], "linux/arm/v6"),
        ("armv5tel", [], "linux/arm/v5"),
        ("i586", V4, "linux/386"),
        ("riscv64", [], "linux/riscv64"),
        ("loongarch64", [], "linux/loong64"),
    ],
)
def test_a_machine_is_a_platform_of_its_level(
    machine: str, flags: list[str], platform: str
) -> None:
    assert str(host_platform(machine, flags)) == platform


AMD64 = [("amd64", ""), ("amd64", "v2"), ("amd64", "v3"), ("amd64", "v4"), ("386", "")]
ARM64 = [("arm64", "v8"), ("arm64", "v8.5"), ("arm64", "v8.6"), ("arm64", "v9"), ("arm64", "v9.2")]


@pytest.mark.parametrize(
    ("host", "offered", "place"),
    [
        (("amd64", ""), AMD64, 0),
        (("amd64", "v2"), AMD64, 1),
        (("amd64", "v3"), AMD64, 2),
        (("amd64", "v4"), AMD64, 3),
        (("amd64", "v3"), [("amd64", "v4"), ("amd64", "v1"), ("amd64", "v2")], 2),
        (("amd64", "v3"), [("386", ""), ("amd64", "")], 1),
        (("amd64", "v3"), [("amd64", "v4"), ("386", "")], 1),
        (("arm64", "v8"), ARM64, 0),
        (("arm64", "v8.6"), ARM64, 2),
        (("arm64", "v9"), ARM64, 3),
        (("arm64", "v9"), ARM64[:3], 1),
        (("arm64", "v9.1"), ARM64[:3], 2),
        (("arm64", "v9.4"), [("arm64", "v8.9"), ("arm64", "v8.2")], 0),
        (("arm64", "v9"), [("arm", "v7"), ("arm", "v8"), ("arm", "v6")], 1),
        (("arm64", "v8"), [("arm", "v5"), ("arm", "v6")], 1),
        (("arm", "v8"), [("arm", ""), ("arm", "v6")], 0),
        (("arm", "v6"), [("arm", ""), ("arm", "v5")], 1),
    ],
)
def test_the_best_variant_that_the_host_runs_is_chosen(
    host: tuple[str, str], offered: list[tuple[str, str]], place: int
) -> None:
    platform = Platform(os="linux", architecture=host[0], variant=host[1])
    digest = choose_platform(index_of(*offered), platform, "web").digest
    assert digest == index_of(*offered).manifests[place].digest


def test_an_older_architecture_serves_where_there_is_nothing_else() -> None:
    assert chosen("x86_64", ("386", ""), ("amd64", "v1")) == 1
    assert chosen("x86_64", ("s390x", ""), ("386", ""), ("amd64", "v2")) == 1
    assert chosen("aarch64", ("arm", "v5"), ("arm", "v7"), ("arm", "v6")) == 1
    assert chosen("aarch64", ("arm64", "v8.2"), ("arm64", "v9"), ("arm64", "v8")) == 2
    with pytest.raises(NotFound):
        chosen("armv7l", ("arm64", "v8"), ("386", ""))


def test_attestations_of_builders_are_no_platform() -> None:
    assert chosen("x86_64", ("unknown", ""), ("amd64", "")) == 1
    with pytest.raises(NotFound):
        chosen("x86_64", ("unknown", ""))


@pytest.mark.parametrize(
    ("media_type", "words"),
    [
        (OCI + "layer.nondistributable.v1.tar+gzip", "not in registries"),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "not in registries"),
        (OCI + "layer.v1.tar+gzip+encrypted", "encrypted"),
        (OCI + "layer.v1.tar+brotli", "cannot be unpacked"),
        ("application/vnd.wasm.content.layer.v1+wasm", "cannot be unpacked"),
        ("", "cannot be unpacked"),
    ],
)
def test_a_layer_of_an_unknown_type_is_refused_by_its_name(media_type: str, words: str) -> None:
    layers = [LAYER, LAYER | {"mediaType": media_type}]
    with pytest.raises(Unsupported, match=words) as refused:
        parse_document(encode(config=CONFIG, layers=layers), "")
    assert repr(media_type) in str(refused.value)


def test_an_entry_without_a_platform_is_the_last_resort() -> None:
    assert chosen("x86_64", None, ("amd64", "")) == 1
    assert chosen("x86_64", None, ("arm64", "")) == 0


def test_an_index_without_the_platform_says_what_there_is() -> None:
    with pytest.raises(NotFound, match=r"web for linux/amd64.*linux/s390x"):
        chosen("x86_64", ("s390x", ""))


def test_a_config_that_names_no_platform_suits_all() -> None:
    assert suits(Platform(), host_platform("x86_64"))
    assert not suits(Platform(os="linux", architecture="arm64"), host_platform("x86_64"))
    assert not suits(Platform(os="windows", architecture="amd64"), host_platform("x86_64"))


def test_a_config_may_have_null_for_whatever_is_not_set() -> None:
    nulls = dict.fromkeys(
        ("Cmd", "Entrypoint", "Env", "Volumes", "Labels", "User", "WorkingDir", "StopSignal")
    )
    body = json.dumps({"config": nulls, "rootfs": {"diff_ids": None}, "created": None}).encode()
    config = parse_config(body, DIGEST, 0)
    assert (config.config.cmd, config.config.user, config.created) == ((), "", "")


def test_a_config_is_read_whole() -> None:
    body = json.dumps(
        {
            "architecture": "arm64",
            "os": "linux",
            "variant": "v8",
            "created": "2024-01-01T00:00:00Z",
            "config": {
                "Entrypoint": ["/a"],
                "Cmd": ["b"],
                "Env": ["C=d"],
                "WorkingDir": "/e",
                "User": "f",
                "Volumes": {"/g": {}},
                "StopSignal": "SIGHUP",
                "Labels": {"h": "i"},
            },
            "rootfs": {"type": "layers", "diff_ids": [DIGEST]},
        }
    ).encode()
    parsed = parse_config(body, DIGEST, 1)
    assert parsed.id == ImageId(DIGEST)
    assert (parsed.diff_ids, parsed.platform.variant) == ((DIGEST,), "v8")
    config = parsed.config
    assert (config.entrypoint, config.cmd, config.env) == (("/a",), ("b",), ("C=d",))
    assert (config.working_dir, config.user, config.volumes) == ("/e", "f", ("/g",))
    assert (config.stop_signal, config.labels) == ("SIGHUP", {"h": "i"})


@pytest.mark.parametrize("diff_ids", [[], [DIGEST, DIGEST], ["../../etc"]])
def test_a_config_must_name_a_diff_id_for_each_layer(diff_ids: list[str]) -> None:
    body = json.dumps({"rootfs": {"diff_ids": diff_ids}}).encode()
    with pytest.raises(CorruptImage):
        parse_config(body, DIGEST, 1)
