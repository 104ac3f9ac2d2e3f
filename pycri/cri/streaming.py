# SPDX-License-Identifier: Apache-2.0
"""The part of RuntimeService that hands out the URLs of sessions."""
# ruff: noqa: N802  the methods bear the CRI's names

from pycri.cri.api import runtime_v1_pb2 as pb
from pycri.cri.application import Streaming
from pycri.cri.decode.streams import decode_attach, decode_exec, decode_port_forward


class StreamingService:
    """Exec, Attach, PortForward."""

    def __init__(self, streaming: Streaming) -> None:
        self._streaming = streaming

    def Exec(self, request: pb.ExecRequest) -> pb.ExecResponse:
        return pb.ExecResponse(url=self._streaming.url(decode_exec(request)))

    def Attach(self, request: pb.AttachRequest) -> pb.AttachResponse:
        return pb.AttachResponse(url=self._streaming.url(decode_attach(request)))

    def PortForward(self, request: pb.PortForwardRequest) -> pb.PortForwardResponse:
        return pb.PortForwardResponse(url=self._streaming.url(decode_port_forward(request)))
