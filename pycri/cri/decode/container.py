# SPDX-License-Identifier: Apache-2.0
"""ContainerConfig to ContainerSpec."""

import re

from pycri.cri.api import runtime_v1_pb2 as pb
from pycri.cri.decode import fields, resources, security
from pycri.cri.decode.devices import decode_cdi_devices, decode_device
from pycri.cri.decode.image import decode_image_spec
from pycri.cri.decode.mounts import decode_mount
from pycri.cri.signals import decode_signal
from pycri.errors import InvalidRequest
from pycri.model.container import ContainerMetadata, ContainerSpec
from pycri.model.resources import Resources
from pycri.model.security import ContainerSecurity
from pycri.plan.security import DEFAULT_MASKED_PATHS, DEFAULT_READONLY_PATHS

_ENV_NAME = re.compile(r"[^=\x00]+")


def decode_container_spec(message: pb.CreateContainerRequest) -> ContainerSpec:
    """Return the container as asked. The sandbox_config sent along repeats the pod's: not read."""
    if not message.HasField("config"):
        raise InvalidRequest("config", "is missing")
    config = message.config
    limits, context = _decode_linux(config.linux, "config.linux")
    return ContainerSpec(
        metadata=_decode_metadata(config),
        image=decode_image_spec(config.image, "config.image"),
        command=fields.arguments(config.command, "config.command"),
        args=fields.arguments(config.args, "config.args"),
        working_dir=fields.absolute_or_empty(config.working_dir, "config.working_dir"),
        env=tuple(_decode_env(entry, f"config.envs[{i}]") for i, entry in enumerate(config.envs)),
        mounts=tuple(
            decode_mount(mount, f"config.mounts[{i}]") for i, mount in enumerate(config.mounts)
        ),
        devices=tuple(
            decode_device(device, f"config.devices[{i}]") for i, device in enumerate(config.devices)
        ),
        cdi_devices=decode_cdi_devices(config.CDI_devices, config.annotations),
        labels=dict(config.labels),
        annotations=dict(config.annotations),
        log_path=_decode_log_path(config.log_path, "config.log_path"),
        stdin=config.stdin,
        stdin_once=config.stdin_once,
        tty=config.tty,
        resources=limits,
        security=context,
        stop_signal=decode_signal(config.stop_signal, "config.stop_signal"),
    )


def _decode_metadata(config: pb.ContainerConfig) -> ContainerMetadata:
    if not config.HasField("metadata"):
        raise InvalidRequest("config.metadata", "is missing")
    name = fields.required(config.metadata.name, "config.metadata.name")
    return ContainerMetadata(name=name, attempt=config.metadata.attempt)


def _decode_linux(
    message: pb.LinuxContainerConfig, path: str
) -> tuple[Resources, ContainerSecurity]:
    """Without a security context the paths of /proc that give the node away are hidden all the
    same. With one, its lists are taken as they are: empty ones unmask (the kubelet's procMount)."""
    limits = resources.decode_resources(message.resources, f"{path}.resources")
    if not message.HasField("security_context"):
        return limits, ContainerSecurity(
            masked_paths=DEFAULT_MASKED_PATHS, readonly_paths=DEFAULT_READONLY_PATHS
        )
    where = f"{path}.security_context"
    return limits, security.decode_container_security(message.security_context, where)


def _decode_env(message: pb.KeyValue, path: str) -> tuple[str, bytes]:
    """Return name and value. Neither is quoted in an error: values are secrets often enough."""
    if not _ENV_NAME.fullmatch(message.key):
        raise InvalidRequest(f"{path}.key", 'is empty or holds "=" or a NUL character')
    if b"\0" in message.value:
        raise InvalidRequest(f"{path}.value", "holds a NUL character")
    return message.key, message.value


def _decode_log_path(text: str, path: str) -> str:
    """Return a path inside the pod's log directory."""
    if text.startswith("/"):
        raise InvalidRequest(path, f"{text!r} is not relative to the pod's log_directory")
    return fields.beneath(text, path)
