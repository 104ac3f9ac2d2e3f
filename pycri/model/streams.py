# SPDX-License-Identifier: Apache-2.0
"""What Exec, Attach and PortForward ask for. A request is kept until its URL is used."""

import msgspec

from pycri.model.ids import ContainerId, PodId


class ExecRequest(msgspec.Struct, frozen=True, kw_only=True):
    """CRI ExecRequest. At least one stream is wanted; tty excludes stderr."""

    container_id: ContainerId
    cmd: tuple[str, ...]
    tty: bool = False
    stdin: bool = False
    stdout: bool = False
    stderr: bool = False


class AttachRequest(msgspec.Struct, frozen=True, kw_only=True):
    """CRI AttachRequest. At least one stream is wanted; tty excludes stderr."""

    container_id: ContainerId
    tty: bool = False
    stdin: bool = False
    stdout: bool = False
    stderr: bool = False


class PortForwardRequest(msgspec.Struct, frozen=True, kw_only=True):
    """CRI PortForwardRequest.

    port: what the WebSocket channels stand for, in order; over SPDY each stream names its own.
    """

    pod_id: PodId
    port: tuple[int, ...] = ()
