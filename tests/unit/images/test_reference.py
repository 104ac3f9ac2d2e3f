# SPDX-License-Identifier: Apache-2.0
import pytest

from pycri.errors import InvalidRequest
from pycri.images.reference import NameDefaults, parse_reference

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36"),
        ("team/web", "docker.io/team/web:latest"),
        ("docker.io/busybox", "docker.io/library/busybox:latest"),
        ("index.docker.io/busybox", "docker.io/library/busybox:latest"),
        ("localhost/web", "localhost/web:latest"),
        ("localhost:5000/web:a_b.C-1", "localhost:5000/web:a_b.C-1"),
        ("registry.k8s.io/e2e-test-images/nginx:1.14-2", None),
        ("127.0.0.1:5000/a/b/c:1", None),
        ("[::1]:5000/web:1", None),
        ("quay.io/a__b/c--d.e:1", None),
        (f"busybox@sha256:{HEX}", f"docker.io/library/busybox@sha256:{HEX}"),
        (f"node:5000/web:1.2@sha256:{HEX}", f"node:5000/web@sha256:{HEX}"),
    ],
)
def test_a_reference_is_completed(text: str, full: str | None) -> None:
    assert str(parse_reference(text)) == (full or text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Busybox",
        "busybox:",
        "busybox:a/b:c d",
        "-a.b/c",
        "a..b/c",
        "web:" + "x" * 129,
        "busybox@sha256:123",
        "busybox@md5:" + HEX,
        "/busybox",
        "quay.io/",
        "quay.io/../etc",
        "quay.io/a?b=c",
        "quay.io/a%2fb",
        "host@evil/web",
        "127.0.0.1:65536/web",
        "[::1::]:5000/web",
        "quay.io:12345678901/web",
        "a" * 300,
        "web:1\n",
    ],
)
def test_what_cannot_name_an_image_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_reference(text)
    assert caught.value.field == "image"


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("web", "node.local:5000/mirror/web:latest"),
        ("team/web:1", "node.local:5000/team/web:1"),
        ("docker.io/web", "docker.io/library/web:latest"),
        ("quay.io/web:1", "quay.io/web:1"),
        ("tools", "quay.io/ops/tools:latest"),
        ("tools:2", "quay.io/ops/tools:2"),
        (f"tools@sha256:{HEX}", f"quay.io/ops/tools@sha256:{HEX}"),
        ("tools/more", "node.local:5000/tools/more:latest"),
        ("base", "docker.io/library/base:latest"),
    ],
)
def test_a_node_has_defaults_and_names_of_its_own(text: str, full: str) -> None:
    aliases = {"tools": "quay.io/ops/tools", "base": "docker.io/base"}
    defaults = NameDefaults(prefix="node.local:5000/mirror", aliases=aliases)
    assert str(parse_reference(text, defaults)) == full
