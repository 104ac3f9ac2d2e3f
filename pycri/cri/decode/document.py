# SPDX-License-Identifier: Apache-2.0
"""A request as a document: the JSON form of a RunPodSandboxRequest or a CreateContainerRequest.

Format: protobuf's JSON mapping; names of fields as in the CRI, or in lowerCamelCase.
"""

from typing import TypeVar

import msgspec
from google.protobuf import json_format
from google.protobuf.message import Message

from pycri.cri.api import runtime_v1_pb2 as pb
from pycri.cri.decode.container import decode_container_spec
from pycri.cri.decode.pod import decode_pod_spec
from pycri.errors import InvalidRequest, Unsupported
from pycri.model.container import ContainerSpec
from pycri.model.pod import PodSpec

M = TypeVar("M", bound=Message)

_OF_CONTAINER = {"sandbox_config", "sandboxConfig", "pod_sandbox_id", "podSandboxId"}


def decode_document(text: str) -> tuple[PodSpec, ContainerSpec | None]:
    """Return the pod, and for a CreateContainerRequest the container in it.

    Raises: InvalidRequest, Unsupported, each naming the field.
    """
    if not _is_of_container(text):
        return decode_pod_spec(_parse(text, pb.RunPodSandboxRequest())), None
    request = _parse(text, pb.CreateContainerRequest())
    return _decode_sandbox_config(request), decode_container_spec(request)


def _is_of_container(text: str) -> bool:
    """Tell which of the two it is: only a container has an image."""
    try:
        fields = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise InvalidRequest("request", f"is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise InvalidRequest("request", "is not a JSON object")
    config = fields.get("config")
    return bool(_OF_CONTAINER & fields.keys()) or (isinstance(config, dict) and "image" in config)


def _parse(text: str, message: M) -> M:
    try:
        return json_format.Parse(text, message)
    except json_format.ParseError as error:
        raise InvalidRequest("request", str(error)) from error


def _decode_sandbox_config(request: pb.CreateContainerRequest) -> PodSpec:
    if not request.HasField("sandbox_config"):
        raise InvalidRequest("sandbox_config", "is missing: a container is planned in its pod")
    try:
        return decode_pod_spec(pb.RunPodSandboxRequest(config=request.sandbox_config))
    except InvalidRequest as error:
        raise InvalidRequest(f"sandbox_{error.field}", error.reason) from error
    except Unsupported as error:
        raise Unsupported(f"sandbox_{error}") from error
