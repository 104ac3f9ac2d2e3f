# SPDX-License-Identifier: Apache-2.0
"""Who a container's process is: the image's own passwd and group files, read from its layers.

Each file is taken from the topmost layer that has it, opened beneath that layer and bounded in
size, so that neither a link nor a huge file in an image does harm. No root file system has to be
mounted for it. Results are kept per image: its layers never change.
"""

import os
import stat

from pycri.errors import InvalidRequest
from pycri.kernel.paths import open_beneath
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

        Raises: InvalidRequest for a name the image does not know.
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
    """Return a regular file as the stacked layers show it; b"" when there is none.

    path: a folder and a name in it. Raises: InvalidRequest when it is larger than FILE_LIMIT.
    """
    for layer in layers:
        root_fd = os.open(layer, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return _read_beneath(root_fd, path)
        except FileNotFoundError:
            if _hides_lower(root_fd, os.path.dirname(path)):
                return b""
        except OSError:
            # A link that loops, a folder that is none: no such file for a process either.
            return b""
        finally:
            os.close(root_fd)
    return b""


def _read_beneath(root_fd: int, path: str) -> bytes:
    fd = open_beneath(root_fd, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        # A whiteout (a 0/0 device) or anything else that is no such file.
        os.close(fd)
        return b""
    with open(fd, "rb") as file:
        content = file.read(FILE_LIMIT + 1)
    if len(content) > FILE_LIMIT:
        raise InvalidRequest("config.image", f"its /{path} is larger than {FILE_LIMIT} bytes")
    return content


def _hides_lower(root_fd: int, folder: str) -> bool:
    """Tell whether a layer's folder stands in for all below it (overlayfs.rst, "opaque")."""
    try:
        fd = open_beneath(root_fd, folder, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError:
        return False
    except OSError:
        # ENXIO: a whiteout in its place.
        return True
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            return True
        return os.getxattr(fd, "trusted.overlay.opaque") == b"y"
    except OSError:
        return False
    finally:
        os.close(fd)
