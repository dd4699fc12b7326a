"""The application: all routes around one `Service`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from runtime.page.files import StaticFile, server_files
from runtime.serve import inference_protocol, predict_api
from runtime.serve.front import Front, http_problem
from runtime.serve.logs import warnings_in_records
from runtime.serve.metrics import CONTENT_TYPE
from runtime.serve.service import Service, failure_of
from runtime.support.version import installed_version

PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "worker-src 'self' blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

UNHEALTHY: dict[int | str, dict[str, Any]] = {
    503: {"description": "A model fails.", "content": {"application/json": {"schema": {"type": "object"}}}}
}


def make_app(service: Service) -> FastAPI:
    """Make the application; it closes the models when it ends."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with warnings_in_records():
            async with service.watching():
                yield

    app = FastAPI(
        title="unet-serve",
        version=installed_version(),
        docs_url=None,  # their pages load scripts from another host
        redoc_url=None,
        redirect_slashes=False,  # to an address that the client's Host header would name
        lifespan=lifespan,
    )
    app.add_middleware(Front, service=service)
    app.add_exception_handler(HTTPException, http_problem)
    app.add_exception_handler(RequestValidationError, http_problem)
    app.include_router(predict_api.routes(service))
    app.include_router(inference_protocol.routes(service))
    app.include_router(observation_routes(service))
    app.include_router(page_routes())
    return app


def observation_routes(service: Service) -> APIRouter:
    """Make the routes for those who watch a server."""
    router = APIRouter(tags=["observation"], responses=predict_api.PROBLEMS)

    @router.get("/healthz", responses=UNHEALTHY, summary="Replay the golden samples")
    async def health(request: Request) -> JSONResponse:
        found = await service.health()
        failed = failure_of(found) is not None
        content: dict[str, Any] = {"status": "failed" if failed else "ok"}
        if service.allows(request):
            content["models"] = found
        return JSONResponse(content, 503 if failed else 200)

    @router.get("/metrics", response_class=PlainTextResponse, summary="Metrics in Prometheus' text format")
    async def metrics() -> Response:
        return Response(service.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    return router


def page_routes() -> APIRouter:
    """Make the routes of the page's files, which are listed once, so that no request names a path."""
    router = APIRouter(include_in_schema=False)
    for address, file in server_files().items():
        add_file(router, address, file)
    return router


def add_file(router: APIRouter, address: str, file: StaticFile) -> None:
    """Serve one file at one address."""

    @router.get(address)
    async def content() -> Response:
        return Response(file.content, media_type=file.media_type, headers=PAGE_HEADERS)
