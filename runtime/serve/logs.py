"""Logs as lines of JSON, and the record of each request from which its line is made."""

import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from runtime.errors import DeviceWarning, ImageWarning, one_line

LOG = logging.getLogger("runtime.serve")


@dataclass(kw_only=True)
class RequestRecord:
    """The facts of a request: `stages` in milliseconds, `warnings` about its image.

    `held` is what the request occupies until its answer is sent.
    """

    id: str
    began: float = field(default_factory=time.perf_counter)
    model: str = ""
    form: str = ""
    received: int = 0
    sent: int = 0
    stages: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    held: ExitStack = field(default_factory=ExitStack)

    @property
    def milliseconds(self) -> float:
        """Time since the request came."""
        return 1e3 * (time.perf_counter() - self.began)


CURRENT: ContextVar[RequestRecord | None] = ContextVar("unet_request", default=None)
"""The record of the request that a task, or a thread that it started, works on."""


class JsonFormatter(logging.Formatter):
    """Writes a log record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage().strip(),
            "process": record.process,
        }
        line |= getattr(record, "facts", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


LOG_CONFIG: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": "runtime.serve.logs.JsonFormatter"}},
    "handlers": {"stdout": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout", "formatter": "json"}},
    "root": {"level": "INFO", "handlers": ["stdout"]},
    "loggers": {
        "uvicorn.error": {"level": "INFO"},
        "uvicorn.access": {"level": "WARNING"},
        "python_multipart": {"level": "ERROR"},  # a damaged body is told in its request's line
    },
}
"""The configuration of all loggers: everything to standard output."""


@contextmanager
def warnings_in_records() -> Iterator[None]:
    """Within the block, put a warning about an image into the record of its request, and all others into the log."""
    with warnings.catch_warnings():
        default: Callable[..., None] = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
            record = CURRENT.get()
            if issubclass(category, ImageWarning) and record is not None:
                record.warnings.append(one_line(str(message)))
            elif issubclass(category, ImageWarning | DeviceWarning):
                LOG.warning(one_line(str(message)))
            else:
                default(message, category, *rest, **named)

        warnings.showwarning = show
        for category in (DeviceWarning, ImageWarning):
            warnings.simplefilter("always", category)
        yield


Level = Literal["info", "warning", "error"]


def tell(level: Level, message: str, **facts: object) -> None:
    """Log a message with facts as fields of its line."""
    LOG.log(getattr(logging, level.upper()), message, extra={"facts": facts})
