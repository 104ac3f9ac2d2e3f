# SPDX-License-Identifier: Apache-2.0
"""The part of RuntimeService that hands out the URLs of sessions."""
# ruff: noqa: N802  the methods bear the CRI's names

import grpc  # noqa: TID251  the edge is its home

from pycri.cri.api import runtime_v1_pb2 as pb
from pycri.cri.api.runtime_v1_pb2_grpc import RuntimeServiceServicer
from pycri.cri.application import Streaming
from pycri.cri.decode.streams import decode_attach, decode_exec, decode_port_forward

Context = grpc.aio.ServicerContext[object, object]


class StreamingService(RuntimeServiceServicer):
    """Exec, Attach, PortForward."""

    def __init__(self, streaming: Streaming) -> None:
        self._streaming = streaming

    async def Exec(self, request: pb.ExecRequest, context: Context) -> pb.ExecResponse:
        return pb.ExecResponse(url=self._streaming.url(decode_exec(request)))

    async def Attach(self, request: pb.AttachRequest, context: Context) -> pb.AttachResponse:
        return pb.AttachResponse(url=self._streaming.url(decode_attach(request)))

    async def PortForward(
        self, request: pb.PortForwardRequest, context: Context
    ) -> pb.PortForwardResponse:
        return pb.PortForwardResponse(url=self._streaming.url(decode_port_forward(request)))
