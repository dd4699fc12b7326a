"""Errors as HTTP responses: the status of each, and one JSON form."""

from typing import Any

from starlette.responses import JSONResponse

from runtime.errors import BusyError, ClosedError, ConfigError, DeviceError, ImageError, OutputError, one_line


class RequestRefusedError(Exception):
    """A request that is answered with an error; `str(error)` is one line for its sender."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.headers = status, {name.replace("_", "-"): text for name, text in headers.items()}


class ClientGoneError(Exception):
    """The client hung up, so nobody reads an answer."""


CLIENT_GONE = 499
"""Status in logs and metrics of a request whose client hung up."""

STATUS = (
    (BusyError, 429),
    (ClosedError, 503),
    (DeviceError, 503),
    (MemoryError, 503),  # also an ImageMemoryError
    (ImageError, 400),
    (ConfigError, 400),
    (OutputError, 400),
)
"""Status of each kind of error that a request may meet; the first entry that fits counts."""

MAX_TEXT = 2_000
"""Characters of an error, which may repeat what the client sent."""

INTERNAL = "internal error; the server's log has it under this request_id"


def status_of(error: BaseException) -> int:
    """Return the HTTP status of an error; 500 of one that nobody expected."""
    if isinstance(error, RequestRefusedError):
        return error.status
    return next((status for kind, status in STATUS if isinstance(error, kind)), 500)


def text_of(error: BaseException) -> str:
    """Return one line about an error for the sender of a request, who learns nothing of one that nobody expected."""
    if status_of(error) == 500:
        return INTERNAL
    if isinstance(error, ClosedError):
        return "server: is stopping; ask again"
    return one_line(str(error))[:MAX_TEXT] or "out of memory; send a smaller image, or give tile"


def problem_response(status: int, text: str, request_id: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return the response of an error."""
    content: dict[str, Any] = {"error": text, "request_id": request_id}
    return JSONResponse(content, status, headers=headers)
