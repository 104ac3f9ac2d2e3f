# SPDX-License-Identifier: Apache-2.0
"""How an exec or attach session ended, as its client is told on the error channel.

From version 4 of the protocol on it is a Status of Kubernetes' API (meta/v1) in JSON:

    {"metadata": {}, "status": "Success"}
    {"metadata": {}, "status": "Failure", "reason": "NonZeroExitCode", "message": "...",
     "details": {"causes": [{"reason": "ExitCode", "message": "3"}]}}
    {"metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500, "message": "...",
     "details": {"causes": [{"message": "..."}]}}

Before it is the message of a failure as text, and nothing after a success.
"""

import json
from typing import Any

import msgspec


class Exited(msgspec.Struct, frozen=True):
    """The process has ended."""

    code: int

    def __str__(self) -> str:
        return f"exit code {self.code}"


class Failure(msgspec.Struct, frozen=True):
    """The process could not be started, or nobody knows how it ended."""

    reason: str

    def __str__(self) -> str:
        return self.reason


Outcome = Exited | Failure

_STATUS_VERSION = 4


def render_outcome(outcome: Outcome, version: int) -> bytes:
    """Return what is written to the error channel."""
    status = _status(outcome)
    if version >= _STATUS_VERSION:
        return json.dumps({"metadata": {}, **status}).encode()
    return str(status.get("message", "")).encode()


def _status(outcome: Outcome) -> dict[str, Any]:
    match outcome:
        case Exited(code=0):
            return {"status": "Success"}
        case Exited(code=code):
            return {
                "status": "Failure",
                "reason": "NonZeroExitCode",
                "message": f"command terminated with non-zero exit code: {code}",
                "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
            }
        case Failure(reason=reason):
            return {
                "status": "Failure",
                "reason": "InternalError",
                "code": 500,
                "message": reason,
                "details": {"causes": [{"message": reason}]},
            }
