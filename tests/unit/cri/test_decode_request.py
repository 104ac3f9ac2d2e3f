# SPDX-License-Identifier: Apache-2.0
"""Ids, filters, times, credentials; and that no message whatever breaks a decoder."""

import base64
from collections.abc import Callable
from typing import Any, cast

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pycri.cri.api import runtime_v1_pb2 as pb
from pycri.cri.decode import request as decode
from pycri.cri.decode.container import decode_container_spec
from pycri.cri.decode.image import decode_auth, decode_image_spec
from pycri.cri.decode.pod import decode_pod_spec
from pycri.cri.decode.resources import decode_resources
from pycri.cri.decode.security import decode_container_security, decode_namespaces
from pycri.errors import InvalidRequest, PycriError
from pycri.model.container import ContainerState
from pycri.model.image import RegistryAuth
from pycri.model.pod import PodState


def test_an_unset_state_differs_from_state_zero() -> None:
    assert decode.decode_pod_filter(pb.PodSandboxFilter()).state is None
    asked = pb.PodSandboxFilter(state=pb.PodSandboxStateValue(state=pb.SANDBOX_READY))
    assert decode.decode_pod_filter(asked).state is PodState.READY
    container = pb.ContainerFilter(
        id="ab",
        pod_sandbox_id="cd",
        state=pb.ContainerStateValue(state=pb.CONTAINER_CREATED),
        label_selector={"a": "b"},
    )
    assert decode.decode_container_filter(container) == decode.ContainerFilter(
        id_prefix="ab", pod_prefix="cd", state=ContainerState.CREATED, labels={"a": "b"}
    )


def test_an_empty_id_is_refused_because_it_would_be_a_prefix_of_all() -> None:
    with pytest.raises(InvalidRequest, match="container_id: is missing"):
        decode.decode_id("", "container_id")


def test_a_timeout_is_capped_and_never_negative() -> None:
    assert decode.decode_timeout(0, "timeout") == 0
    assert decode.decode_timeout(2**63 - 1, "timeout") == 2**31
    with pytest.raises(InvalidRequest, match="timeout: -1 is below 0"):
        decode.decode_timeout(-1, "timeout")


@pytest.mark.parametrize("command", [[], [""], ["a\0"]])
def test_a_command_must_be_executable(command: list[str]) -> None:
    with pytest.raises(InvalidRequest, match="cmd"):
        decode.decode_command(pb.ExecSyncRequest(cmd=command))


@pytest.mark.parametrize(
    ("cidr", "good"),
    [("", True), ("10.1.0.0/16", True), ("10.1.0.0/16,fd00::/64", True), ("10.1.0.1/16", False)],
)
def test_a_pod_cidr_is_one_range_or_two(cidr: str, good: bool) -> None:
    message = pb.UpdateRuntimeConfigRequest()
    message.runtime_config.network_config.pod_cidr = cidr
    if good:
        assert decode.decode_pod_cidr(message) == cidr
    else:
        with pytest.raises(InvalidRequest, match=r"runtime_config\.network_config\.pod_cidr"):
            decode.decode_pod_cidr(message)


def pull(**auth: str) -> pb.PullImageRequest:
    return pb.PullImageRequest(auth=pb.AuthConfig(**auth))


def test_credentials_are_split_and_a_plain_user_wins() -> None:
    basic = base64.b64encode(b"me:pass:word").decode()
    assert decode_auth(pb.PullImageRequest()) is None
    assert decode_auth(pull()) is None
    assert decode_auth(pull(auth=basic)) == RegistryAuth(username="me", password="pass:word")
    named = pull(auth=basic, username="other", password="x", server_address="example.test")
    assert decode_auth(named) == RegistryAuth(
        username="other", password="x", server_address="example.test"
    )


@pytest.mark.parametrize("secret", ["c2VjcmV0", "%%%", "//8="])
def test_an_error_never_quotes_a_credential(secret: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode_auth(pull(auth=secret))
    assert str(caught.value) == "auth.auth: is not base64 of user:password"


# Arbitrary messages: texts that matter to decoders, numbers at the edges, nested to the bottom.

TEXTS = st.sampled_from(
    ["", "a", "/a", "a\0", "..", "/a/../b", "net.a", "kernel.shm_x", "localhost/x", "é", "pycri"]
) | st.text(max_size=8)
INTEGERS = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_ENUM: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
}


def values(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.message_type is not None:
        return messages(field.message_type)
    if field.type in INTEGERS:
        least, most = INTEGERS[field.type]
        return st.integers(max(least, -2), 5) | st.integers(least, most)
    if field.type == FieldDescriptor.TYPE_BOOL:
        return st.booleans()
    return TEXTS if field.type == FieldDescriptor.TYPE_STRING else st.binary(max_size=4)


def entries(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    """The value a keyword argument of the message takes: one, a list, or a map."""
    if not field.is_repeated:
        return values(field)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        value = field.message_type.fields_by_name["value"]
        return st.dictionaries(TEXTS, values(value), max_size=2)
    return st.lists(values(field), max_size=2)


def messages(descriptor: Descriptor) -> st.SearchStrategy[Message]:
    """Messages with any subset of fields; those of Windows stay out, nobody reads them."""
    kind: Callable[..., Message] = getattr(pb, descriptor.name)

    def later(field: FieldDescriptor) -> st.SearchStrategy[Any]:
        return st.deferred(lambda: entries(field))

    optional = {
        field.name: later(field) for field in descriptor.fields if "indows" not in field.name
    }
    return st.fixed_dictionaries({}, optional=optional).map(lambda fields: kind(**fields))


def decode_image_of_pull(message: pb.PullImageRequest) -> None:
    decode_image_spec(message.image, "image")
    decode_auth(message)


def decode_limits(message: pb.LinuxContainerResources) -> None:
    decode_resources(message, "config.linux.resources")


def decode_context(message: pb.LinuxContainerSecurityContext) -> None:
    decode_container_security(message, "config.linux.security_context")


def decode_options(message: pb.NamespaceOption) -> None:
    decode_namespaces(message, "namespace_options", pod=False)


DECODERS: list[tuple[type[Message], Callable[[Any], object]]] = [
    (pb.RunPodSandboxRequest, decode_pod_spec),
    (pb.CreateContainerRequest, decode_container_spec),
    (pb.LinuxContainerResources, decode_limits),
    (pb.LinuxContainerSecurityContext, decode_context),
    (pb.NamespaceOption, decode_options),
    (pb.PullImageRequest, decode_image_of_pull),
    (pb.PodSandboxFilter, decode.decode_pod_filter),
    (pb.ContainerFilter, decode.decode_container_filter),
    (pb.ExecSyncRequest, decode.decode_command),
    (pb.UpdateRuntimeConfigRequest, decode.decode_pod_cidr),
]


@pytest.mark.parametrize(("kind", "decoder"), DECODERS, ids=lambda value: value.__name__)
def test_no_message_makes_a_decoder_raise_anything_but_ours(
    kind: type[Message], decoder: Callable[[Any], object]
) -> None:
    @settings(
        max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(messages(cast(Descriptor, kind.DESCRIPTOR)))
    def run(message: Message) -> None:
        try:
            decoder(message)
        except PycriError as error:
            assert ": " in str(error)

    run()
