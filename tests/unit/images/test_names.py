# SPDX-License-Identifier: Apache-2.0
import pytest

from pycri.images.names import ImageNames
from pycri.model.ids import ImageId
from pycri.model.image import Image, ImageConfig

FIRST = "ab" + "0" * 62
SECOND = "ac" + "1" * 62
MANIFEST = "sha256:" + "d" * 64


def image(hex_id: str, *, tags: tuple[str, ...] = (), digests: tuple[str, ...] = ()) -> Image:
    return Image(
        id=ImageId(f"sha256:{hex_id}"),
        tags=tags,
        digests=digests,
        size_bytes=1,
        config=ImageConfig(),
        architecture="amd64",
    )


@pytest.fixture
def names() -> ImageNames:
    names = ImageNames()
    repository = "docker.io/library/web"
    names.put(image(FIRST, tags=(f"{repository}:latest",), digests=(f"{repository}@{MANIFEST}",)))
    names.put(image(SECOND, tags=("quay.io/team/web:1", "docker.io/library/ab:latest")))
    return names


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("web", FIRST),
        ("web:latest", FIRST),
        ("library/web", FIRST),
        ("docker.io/web", FIRST),
        (f"web@{MANIFEST}", FIRST),
        (f"web:other@{MANIFEST}", FIRST),
        (FIRST, FIRST),
        (f"sha256:{FIRST}", FIRST),
        ("ab0", FIRST),
        ("sha256:ac", SECOND),
        ("quay.io/team/web:1", SECOND),
        ("ab", SECOND),
        ("a", None),
        ("web:1", None),
        ("quay.io/team/web", None),
        ("", None),
        ("sha256:", None),
        ("?", None),
    ],
)
def test_an_image_is_found_by_every_name_it_has(
    names: ImageNames, name: str, found: str | None
) -> None:
    """The name `ab` is both a tag and the beginning of an id: the tag is meant."""
    result = names.find(name)
    assert (result.id if result else None) == (f"sha256:{found}" if found else None)


def test_a_tag_that_moves_leaves_the_old_image_its_digest(names: ImageNames) -> None:
    moved = image("ee" * 32, tags=("docker.io/library/web:latest",))
    for changed in names.with_pulled(moved):
        names.put(changed)
    found, old = names.find("web"), names.find(f"web@{MANIFEST}")
    assert found and old
    assert (found.id, old.tags) == (moved.id, ())


def test_a_second_pull_adds_names_and_loses_none(names: ImageNames) -> None:
    (changed,) = names.with_pulled(image(FIRST, tags=("quay.io/copy:2",), digests=("x@y",)))
    assert changed.tags == ("docker.io/library/web:latest", "quay.io/copy:2")
    assert len(changed.digests) == 2


def test_a_discarded_image_has_no_name_left(names: ImageNames) -> None:
    names.discard(ImageId(f"sha256:{FIRST}"))
    assert names.find("web") is None and names.find(FIRST) is None
    assert len(names.images()) == 1


@pytest.mark.parametrize(
    ("pattern", "pinned"),
    [
        ("docker.io/library/web:latest", True),
        ("docker.io/*:latest", True),
        ("*/web@sha256:*", True),
        ("web", False),
        ("docker.io/library/we", False),
    ],
)
def test_an_image_with_a_name_that_fits_a_pattern_is_pinned(pattern: str, pinned: bool) -> None:
    names = ImageNames(pinned=("quay.io/*", pattern))
    repository = "docker.io/library/web"
    names.put(image(FIRST, tags=(f"{repository}:latest",), digests=(f"{repository}@{MANIFEST}",)))
    names.put(image(SECOND, tags=("ghcr.io/team/web:1",)))
    assert [found.pinned for found in names.images()] == [pinned, False]


def test_an_image_that_loses_its_pinned_name_is_pinned_no_more() -> None:
    names = ImageNames(pinned=("*:stable",))
    names.put(image(FIRST, tags=("quay.io/web:stable",), digests=("quay.io/web@" + MANIFEST,)))
    for changed in names.with_pulled(image(SECOND, tags=("quay.io/web:stable",))):
        names.put(changed)
    assert {found.id[7:]: found.pinned for found in names.images()} == {FIRST: False, SECOND: True}
