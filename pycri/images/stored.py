# SPDX-License-Identifier: Apache-2.0
"""The images of a node as its database has them, for who only looks and is not the daemon."""

import os
from pathlib import Path

from pycri.images.names import ImageNames
from pycri.images.reference import NameDefaults
from pycri.model.ids import Digest
from pycri.model.image import Image, LayerRow, stack_keys
from pycri.state.database import read_database
from pycri.state.records import load_images, load_layers


class StoredImages:
    """Images by name, and where their layers are. directory: `layers/` is in it."""

    def __init__(
        self, directory: Path, images: list[Image], rows: list[LayerRow], defaults: NameDefaults
    ) -> None:
        self._layers = directory / "layers"
        self._rows = {row.digest: row for row in rows}
        self._names = ImageNames(defaults)
        for image in images:
            self._names.put(image)

    @classmethod
    def read(cls, directory: Path, database: Path, defaults: NameDefaults) -> "StoredImages":
        """Read them; a node without a database has none. Raises: Unsupported, Unavailable."""
        stored = read_database(database, lambda c: (load_images(c), load_layers(c)))
        return cls(directory, *(stored or ([], [])), defaults)

    def find(self, name: str) -> Image | None:
        """Return the image a user means, if all its layers are there."""
        image = self._names.find(name)
        if image is None or not all(map(os.path.isdir, self.layer_folders(image.layers))):
            return None
        return image

    def layer_folders(self, layers: tuple[Digest, ...]) -> tuple[str, ...]:
        """Return the folders of layers, given bottom first, topmost first (as in `layers.py`)."""
        keys = stack_keys(layers, self._rows)
        return tuple(str(self._layers / key.removeprefix("sha256:")) for key in keys)
