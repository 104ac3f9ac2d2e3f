# SPDX-License-Identifier: Apache-2.0
"""Image names and credentials."""

from pycri.cri.api import runtime_v1_pb2 as pb
from pycri.cri.decode import fields
from pycri.cri.decode.handlers import decode_runtime_handler
from pycri.errors import InvalidRequest
from pycri.images.authorization import split_basic
from pycri.model.container import ImageSpec
from pycri.model.image import RegistryAuth


def decode_image_spec(message: pb.ImageSpec, path: str) -> ImageSpec:
    """Return the image as named; that the name is a reference is for `images/` to say."""
    return ImageSpec(
        image=fields.word(message.image, f"{path}.image"),
        annotations=dict(message.annotations),
        user_specified_image=fields.one_line(
            message.user_specified_image, f"{path}.user_specified_image"
        ),
        runtime_handler=decode_runtime_handler(message.runtime_handler, f"{path}.runtime_handler"),
    )


def decode_auth(message: pb.PullImageRequest) -> RegistryAuth | None:
    """Return the credentials, or None where all fields are empty. Errors never quote them."""
    auth = message.auth
    username, password = auth.username, auth.password
    if auth.auth and not username:
        try:
            username, password = split_basic(auth.auth)
        except ValueError as error:
            raise InvalidRequest("auth.auth", str(error)) from None
    decoded = RegistryAuth(
        username=username,
        password=password,
        server_address=fields.one_line(auth.server_address, "auth.server_address"),
        identity_token=auth.identity_token,
        registry_token=auth.registry_token,
    )
    for name in ("username", "password", "identity_token", "registry_token"):
        fields.one_line(getattr(decoded, name), f"auth.{name}")
    return decoded if auth.ByteSize() else None


def decode_login(username: str, password: str) -> RegistryAuth | None:
    """Return the credentials of a person at the node; None where there is no user name."""
    if not username:
        return None
    return RegistryAuth(
        username=fields.one_line(username, "username"),
        password=fields.one_line(password, "password"),
    )
