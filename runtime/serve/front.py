"""The first and last code of every request: its id, its API key, its line in the log, its metrics, its errors."""

import re
import secrets
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtime.errors import one_line
from runtime.serve.logs import CURRENT, LOG, RequestRecord, tell
from runtime.serve.problems import (
    CLIENT_GONE,
    ClientGoneError,
    RequestRefusedError,
    problem_response,
    status_of,
    text_of,
)
from runtime.serve.service import Service
from runtime.serve.settings import name_of

if TYPE_CHECKING:
    from starlette.routing import Route

RECORD = "unet_record"
"""Key of the `RequestRecord` in a request's scope."""

PIECE = 2**18
"""Bytes of an answer that are given to the connection at once."""

SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
LOCKED = ("/v1", "/v2", "/metrics")
"""Beginnings of the paths that need the API key, if there is one; the live and ready requests of /v2 do not."""

OPEN = re.compile(r"/v2/health/(live|ready)")


class Front:
    """An ASGI application around another one."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method: str = scope["method"]
        if method == "HEAD":  # as GET, of which the HTTP library keeps the body back
            scope = {**scope, "method": "GET"}
        request = Request(scope, receive)
        given = request.headers.get("x-request-id", "")
        record = RequestRecord(id=given if SANE_ID.fullmatch(given) else secrets.token_hex(8))
        scope[RECORD] = record
        CURRENT.set(record)  # each request has a context of its own
        status = 0

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", record.id.encode())]
            body: bytes = message.get("body", b"")
            last = max(0, (len(body) - 1) // PIECE * PIECE)
            for start in range(0, last, PIECE):  # waits until the client has read most of what was sent before
                record.sent += PIECE
                await send({"type": message["type"], "body": body[start : start + PIECE], "more_body": True})
            record.sent += len(body) - last
            await send({**message, "body": body[last:]} if last else message)

        try:
            with record.held:
                self._check_host(request)
                self._check_key(request)
                await self._app(scope, receive, send_on)
        except ClientGoneError:
            status = CLIENT_GONE
        except Exception as error:
            found = status_of(error)
            if found == 500:
                LOG.exception("request failed", extra={"facts": {"id": record.id}})
            if not status:
                headers = error.headers if isinstance(error, RequestRefusedError) else None
                await problem_response(found, text_of(error), record.id, headers)(scope, receive, send_on)
            status = found
        self._count(request, method, record, status)

    def _check_host(self, request: Request) -> None:
        host = request.headers.get("host", "")
        if not self._service.settings.allows_host(host):
            raise RequestRefusedError(
                421,
                f"Host: {one_line(name_of(host))[:200]}: is not a name of this server, expected localhost; or start it "
                "with --allow-host NAME",
            )

    def _check_key(self, request: Request) -> None:
        path: str = request.scope["path"]
        if path.startswith(LOCKED) and not OPEN.fullmatch(path) and not self._service.allows(request):
            raise RequestRefusedError(
                401,
                "API key: is missing or wrong; send the header Authorization: Bearer KEY, or X-API-Key: KEY",
                WWW_Authenticate="Bearer",
            )

    def _count(self, request: Request, method: str, record: RequestRecord, status: int) -> None:
        """Write the request's line into the log, and add it to the metrics."""
        route: Route | None = request.scope.get("route")
        endpoint = getattr(route, "path", "") or "unknown"  # the path itself would be a new label for each
        metrics = self._service.metrics
        metrics.requests.labels(endpoint, record.model, str(status)).inc()
        metrics.seconds.labels(endpoint, record.model).observe(record.milliseconds / 1e3)
        for stage, milliseconds in record.stages.items():
            metrics.stages.labels(record.model, stage).observe(milliseconds / 1e3)
        facts: dict[str, object] = {
            "id": record.id,
            "client": request.client.host if request.client else None,
            "method": method,
            "endpoint": endpoint,
            "status": status,
            "ms": round(record.milliseconds, 2),
            "received": record.received,
            "sent": record.sent,
        }
        if record.model:
            facts |= {"model": record.model, "format": record.form}
        if record.stages:
            facts["stages"] = {stage: round(value, 2) for stage, value in record.stages.items()}
        if record.warnings:
            facts["warnings"] = record.warnings
        tell("info", "request", **facts)


def record_of(request: Request) -> RequestRecord:
    """Return the record of a request."""
    record: RequestRecord = request.scope[RECORD]
    return record


async def http_problem(request: Request, error: Exception) -> Response:
    """Return the response of an error that the framework raises, such as for a path that does not exist."""
    number = record_of(request).id
    if isinstance(error, HTTPException):
        headers, path = dict(error.headers or {}), one_line(request.url.path)[:200]
        said = {
            404: f"{path}: is no path of this server; /openapi.json lists them",
            405: f"{path}: takes {headers.get('Allow', 'other methods')}, and not {request.method}",
        }.get(error.status_code, one_line(str(error.detail)))
        return problem_response(error.status_code, said, number, headers)
    return problem_response(400, one_line(f"request: {error}")[:500], number)
