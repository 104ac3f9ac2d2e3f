# SPDX-License-Identifier: Apache-2.0
"""Who a container's process is: the image's own passwd and group files, read from its layers.

Each file is looked up in the layers as an overlay would show them, and bounded in size, so that
neither a link nor a huge file in an image does harm. No root file system has to be mounted for it.
Results are kept per image: its layers never change.
"""

from pycri.errors import InvalidRequest
from pycri.images.merged import read_merged_file
from pycri.model.ids import ImageId
from pycri.model.image import Image
from pycri.model.security import ContainerSecurity, User
from pycri.plan.users import home_directory, resolve_user

FILE_LIMIT = 1 << 20
_CACHED_IMAGES = 256


class Identities:
    """Resolves users; remembers the files of images."""

    def __init__(self) -> None:
        self._files: dict[ImageId, tuple[bytes, bytes]] = {}

    def resolve(
        self, security: ContainerSecurity, image: Image, layers: tuple[str, ...]
    ) -> tuple[User, str]:
        """Return the user and its home directory. layers: host folders, topmost first.

        Raises: InvalidRequest for a name the image does not know, and for a user file that is a
            link to nothing, no plain file, or larger than FILE_LIMIT.
        """
        files = self._files.get(image.id)
        if files is None:
            if len(self._files) >= _CACHED_IMAGES:
                self._files.clear()
            files = read_file(layers, "etc/passwd"), read_file(layers, "etc/group")
            self._files[image.id] = files
        passwd, group = files
        user = resolve_user(security, image.config.user, passwd, group)
        return user, home_directory(user, passwd)


def read_file(layers: tuple[str, ...], path: str) -> bytes:
    """Return a file of the image; b"" when there is none."""
    try:
        content = read_merged_file(layers, path, FILE_LIMIT + 1)
    except OSError as error:
        raise InvalidRequest("config.image", f"its /{path} {error.strerror}") from error
    if content is not None and len(content) > FILE_LIMIT:
        raise InvalidRequest("config.image", f"its /{path} is larger than {FILE_LIMIT} bytes")
    return content or b""
