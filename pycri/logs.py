# SPDX-License-Identifier: Apache-2.0
"""Logging: one line an event on stderr, `key=value` all through, or JSON objects if asked for.

    time=2026-01-31T09:15:00.123Z level=info request=5f3a01 event="pod ready" pod=9c… ms=7.1

The event is constant text; what varies is in fields. Fields are scalars only, so that no struct
that holds an environment or a password can be printed by mistake. The request id comes from
`request_id`, set by the interceptor and inherited by every task a request starts.
Lines of other libraries take the same way, with their text as the event.
"""

import json
import logging
import re
import sys
import time
from contextvars import ContextVar

Field = str | int | float | bool | None

request_id: ContextVar[str] = ContextVar("request_id", default="")

_PLAIN = re.compile(r"[A-Za-z0-9_./:@%+,-]+")


class Log:
    """Writes events of one part of pycri."""

    def __init__(self, part: str) -> None:
        self._logger = logging.getLogger(f"pycri.{part}")

    def shows_debug(self) -> bool:
        """Tell whether lines at debug are written."""
        return self._logger.isEnabledFor(logging.DEBUG)

    def debug(self, event: str, **fields: Field) -> None:
        self._write(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Field) -> None:
        self._write(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Field) -> None:
        self._write(logging.WARNING, event, fields)

    def error(self, event: str, **fields: Field) -> None:
        self._write(logging.ERROR, event, fields)

    def exception(self, event: str, error: BaseException, **fields: Field) -> None:
        """Log an unexpected error with its traceback, as one field."""
        if self._logger.isEnabledFor(logging.ERROR):
            self._logger.error(event, extra={"fields": fields}, exc_info=error)

    def _write(self, level: int, event: str, fields: dict[str, Field]) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, event, extra={"fields": fields})


class KeyValueFormatter(logging.Formatter):
    """Renders a record as one line of key=value."""

    def format(self, record: logging.LogRecord) -> str:
        return " ".join(f"{name}={_render(value)}" for name, value in self._fields(record).items())

    def _fields(self, record: logging.LogRecord) -> dict[str, Field]:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields: dict[str, Field] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
        }
        if request := request_id.get():
            fields["request"] = request
        fields["event"] = record.getMessage()
        fields |= getattr(record, "fields", {})
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return fields


class JsonFormatter(KeyValueFormatter):
    """Renders a record as one line that is a JSON object, with the same keys."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(self._fields(record), ensure_ascii=False)


def _render(value: Field) -> str:
    text = f"{value:.1f}" if isinstance(value, float) else str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)


def configure(level: str, form: str = "text") -> None:
    """Send everything at or above `level` ("debug" ... "error") to stderr, once a process.

    form: "text" or "json".
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else KeyValueFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("pycri").setLevel(level.upper())
