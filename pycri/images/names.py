# SPDX-License-Identifier: Apache-2.0
"""The images in memory, and the ways to name one. No I/O."""

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Final

import msgspec

from pycri.errors import InvalidRequest, NotFound
from pycri.images.reference import FIELD_DEFAULTS, NameDefaults, parse_reference
from pycri.model.ids import ImageId
from pycri.model.image import Image

_ID: Final = re.compile(r"(?:sha256:)?([0-9a-f]{1,64})")


class ImageNames:
    """Images by id, tag and digest.

    defaults: what short names stand for. pinned: patterns of full names, as in a shell; an image
    with a name that fits one is pinned.
    """

    def __init__(
        self, defaults: NameDefaults = FIELD_DEFAULTS, pinned: tuple[str, ...] = ()
    ) -> None:
        self._defaults = defaults
        self._pinned = pinned
        self._images: dict[ImageId, Image] = {}
        self._by_name: dict[str, ImageId] = {}

    def images(self) -> tuple[Image, ...]:
        """Return all images, in the order in which they came."""
        return tuple(self._images.values())

    def by_id(self, image_id: ImageId) -> Image:
        """Return an image that is there."""
        return self._images[image_id]

    def put(self, image: Image) -> None:
        """Add an image, or what has become of one."""
        pinned = self._is_pinned(image)
        self._images[image.id] = msgspec.structs.replace(image, pinned=pinned)
        self._index()

    def discard(self, image_id: ImageId) -> None:
        """Forget an image; one that is not there is fine."""
        self._images.pop(image_id, None)
        self._index()

    def find(self, name: str) -> Image | None:
        """Return the image with this name: a reference, short or full; an id or its beginning.

        A name comes before the beginning of an id, and that must fit one image only.
        """
        image_id = self._by_name.get(name) or self._by_name.get(self._full(name))
        if image_id is not None:
            return self._images.get(image_id)
        if not (match := _ID.fullmatch(name)):
            return None
        fitting = [image for image in self.images() if image.id[7:].startswith(match[1])]
        return fitting[0] if len(fitting) == 1 else None

    def find_all(self, names: Iterable[str]) -> tuple[Image, ...]:
        """Return the images that `names` mean, each once, with the tags among these names.

        One that no tag among them names keeps all it has. Raises: NotFound.
        """
        found: dict[ImageId, Image] = {}
        asked: dict[ImageId, list[str]] = {}
        for name in names:
            image = self.find(name)
            if image is None:
                raise NotFound("image", name)
            found[image.id] = image
            tags = asked.setdefault(image.id, [])
            tags += [tag for tag in (name, self._full(name)) if tag in image.tags]
        return tuple(
            msgspec.structs.replace(image, tags=tuple(dict.fromkeys(asked[i])) or image.tags)
            for i, image in found.items()
        )

    def with_pulled(self, pulled: Image) -> tuple[Image, ...]:
        """Return the images that change when `pulled` is there: itself first, with the names it
        had, then those that lose a tag to it."""
        known = self._images.get(pulled.id)
        tags, digests = (known.tags, known.digests) if known else ((), ())
        merged = msgspec.structs.replace(
            pulled,
            tags=tuple(dict.fromkeys((*tags, *pulled.tags))),
            digests=tuple(dict.fromkeys((*digests, *pulled.digests))),
        )
        losers = (
            msgspec.structs.replace(
                image, tags=tuple(t for t in image.tags if t not in pulled.tags)
            )
            for image in self._images.values()
            if image.id != pulled.id and set(image.tags) & set(pulled.tags)
        )
        return merged, *losers

    def _index(self) -> None:
        self._by_name = {
            name: image.id
            for image in self._images.values()
            for name in (*image.tags, *image.digests, image.id)
        }

    def _is_pinned(self, image: Image) -> bool:
        names = (*image.tags, *image.digests)
        return any(fnmatchcase(name, pattern) for name in names for pattern in self._pinned)

    def _full(self, name: str) -> str:
        try:
            return str(parse_reference(name, self._defaults))
        except InvalidRequest:
            return ""
