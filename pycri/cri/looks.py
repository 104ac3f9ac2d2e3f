# SPDX-License-Identifier: Apache-2.0
"""Answering who only looks.

A method that is a plain function only looks at what is in memory: it is answered at once, in the
thread that takes the call.
"""

import contextvars
import itertools
import secrets
from collections.abc import Callable, Generator, Sequence
from typing import Any

import msgspec
from google.protobuf import message_factory
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError

from pycri.cri.account import Account, Watch
from pycri.cri.call import Call
from pycri.cri.rpc import Code
from pycri.logs import request_id


class Method(msgspec.Struct, frozen=True, kw_only=True):
    """One method of a service. parse: the request, from its bytes.

    behaviour: called with the request; returns a message or its bytes, or yields such. None, from a
    stream: it has begun.
    """

    name: str
    parse: Callable[[bytes], Any]
    behaviour: Callable[[Any], Any]
    streams: bool


class Looks:
    """Methods that only look, by their path "/package.Service/Method"."""

    def __init__(self, watches: Sequence[Watch]) -> None:
        self._watches = watches
        self._methods: dict[str, Method] = {}
        # From anywhere, so that two processes' do not meet in a log. Not chance for each: to ask
        # the kernel for that lets go of the interpreter's lock.
        self._numbers = itertools.count(secrets.randbits(32))

    def add(self, descriptor: ServiceDescriptor, service: object) -> None:
        """Serve what `service` has of the methods of a service."""
        for method in descriptor.methods:
            if behaviour := self._behaviour(service, method.name):
                self._methods[f"/{descriptor.full_name}/{method.name}"] = Method(
                    name=method.name,
                    parse=message_factory.GetMessageClass(method.input_type).FromString,
                    behaviour=behaviour,
                    streams=method.server_streaming,
                )

    def _behaviour(self, service: object, name: str) -> Callable[[Any], Any] | None:
        """Return what answers calls of a method; None where nothing is to be said to them."""
        behaviour: Callable[[Any], Any] | None = getattr(service, name, None)
        return behaviour

    def serves(self, path: str) -> bool:
        """Tell whether calls with this path are answered here."""
        return path in self._methods

    def take(self, call: Call) -> None:
        """Answer a call, or refuse it."""
        method = self._methods.get(call.path)
        if method is None:
            call.end(Code.UNIMPLEMENTED, f"unknown method {call.path}")
            return
        try:
            request = method.parse(call.message)
        except DecodeError:
            call.end(Code.INTERNAL, "the request cannot be read")
            return
        self._perform(method, request, call)

    def _perform(self, method: Method, request: Any, call: Call) -> None:
        if method.streams:
            # A context of its own: others are answered before it is over.
            context = contextvars.copy_context()
            context.run(self._stream_here, method, request, call, context)
        else:
            self._answer_here(method, request, call)

    def _account(self, method: Method, request: Any, call: Call) -> Account:
        request_id.set(f"{next(self._numbers) & 0xFFFFFFFF:08x}")
        return Account(method.name, request, call, self._watches)

    def _answer_here(self, method: Method, request: Any, call: Call) -> None:
        account = self._account(method, request, call)
        try:
            response = method.behaviour(request)
            account.done(response, serialize(response))
        except Exception as error:  # noqa: BLE001  the RPC edge: nothing may pass it unanswered
            account.failed(error)

    def _stream_here(
        self, method: Method, request: Any, call: Call, context: contextvars.Context
    ) -> None:
        account = self._account(method, request, call)
        messages: Generator[Any, None, None] = method.behaviour(request)

        def send() -> None:
            """Send as much as the client takes; called again when it has taken that."""
            try:
                for message in messages:
                    call.write(serialize(message))
                    if call.must_wait(lambda: context.run(send)):
                        return
                    if call.gone:
                        messages.close()
                        account.cancelled()
                        return
            except Exception as error:  # noqa: BLE001  the RPC edge, as above
                account.failed(error)
            else:
                account.done()

        send()


def serialize(response: Any) -> bytes:
    """Return the bytes of an answer, which may be that already."""
    return response if isinstance(response, bytes) else response.SerializeToString()
