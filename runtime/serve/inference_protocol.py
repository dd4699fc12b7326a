"""The requests of /v2, the Open Inference Protocol, which clients of KServe and NVIDIA Triton speak."""

import asyncio
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from runtime.card import CARD_KEY
from runtime.errors import one_line
from runtime.serve.bodies import in_time, read_bytes
from runtime.serve.front import record_of
from runtime.serve.models import ServedModel
from runtime.serve.predict_api import BINARY, PROBLEMS, answer_headers
from runtime.serve.problems import RequestRefusedError
from runtime.serve.service import Service, failure_of
from runtime.serve.tensors import (
    InferResponse,
    model_config,
    model_metadata,
    read_infer_request,
    write_infer_response,
)
from runtime.support.version import installed_version

VERSION = "1"
"""The only version of each model."""

HEADER_LENGTH = "Inference-Header-Content-Length"

TENSORS = {"application/json": {"schema": {"type": "object"}}, "application/octet-stream": BINARY}
INFER_BODY = {"requestBody": {"required": True, "content": TENSORS}}
INFER_ANSWER: dict[int | str, dict[str, Any]] = {200: {"description": "The probabilities.", "content": TENSORS}}


def routes(service: Service) -> APIRouter:
    """Make the routes of /v2."""
    router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"], responses=PROBLEMS)

    def model_of(name: str, version: str) -> ServedModel:
        if version != VERSION:
            raise RequestRefusedError(404, f"version: found {one_line(version)!r}, expected {VERSION}")
        return service.store.named(name)

    @router.get("", summary="The server and its extensions")
    async def server() -> dict[str, Any]:
        extensions = ["binary_tensor_data", "model_configuration", "model_repository(index)"]
        return {"name": "unet-serve", "version": installed_version(), "extensions": extensions}

    @router.get("/health/live", response_class=Response, summary="The process answers")
    async def live() -> Response:
        return Response()

    @router.get("/health/ready", response_class=Response, summary="All models answer their golden samples right")
    async def ready(request: Request) -> Response:
        failure = failure_of(await service.health())
        if failure is None:
            return Response()
        if service.allows(request):
            raise failure
        raise RequestRefusedError(503, "server: a model fails; GET /healthz with the API key tells why")

    @router.post("/repository/index", summary="The models")
    async def index() -> list[dict[str, str]]:
        return [{"name": name, "version": VERSION, "state": "READY"} for name in service.store.models]

    @router.get("/models/{model}/ready", response_class=Response, summary="The model answers")
    @router.get("/models/{model}/versions/{version}/ready", include_in_schema=False)
    async def model_ready(model: str, version: str = VERSION) -> Response:
        model_of(model, version)
        return Response()

    @router.get("/models/{model}/config", summary="The model's configuration, as Triton writes it")
    @router.get("/models/{model}/versions/{version}/config", include_in_schema=False)
    async def config(model: str, version: str = VERSION) -> dict[str, Any]:
        found = model_of(model, version)
        return model_config(found.current.predictor.card, found.name, CARD_KEY)

    @router.get("/models/{model}", summary="Names, types and shapes of the model's tensors")
    @router.get("/models/{model}/versions/{version}", include_in_schema=False)
    async def metadata(model: str, version: str = VERSION) -> dict[str, Any]:
        found = model_of(model, version)
        return model_metadata(found.current.predictor.card, found.name, VERSION)

    @router.post(
        "/models/{model}/infer",
        response_class=Response,
        responses=INFER_ANSWER,
        openapi_extra=INFER_BODY,
        summary="Run the model on a batch of images",
    )
    @router.post("/models/{model}/versions/{version}/infer", include_in_schema=False)
    async def infer(request: Request, model: str, version: str = VERSION) -> Response:
        found = model_of(model, version)
        service.admit(record_of(request))
        return await inferred(service, request, found)

    return router


async def inferred(service: Service, request: Request, model: ServedModel) -> Response:
    """Read a batch from a request, run it and write the probabilities."""
    record, settings = record_of(request), service.settings
    record.model, record.form = model.name, "tensor"
    body = await in_time(settings.seconds, read_bytes(request, settings.max_bytes))
    record.received, record.stages["receive"] = len(body), record.milliseconds
    with model.current.used() as generation:
        predictor = generation.predictor
        head = request.headers.get(HEADER_LENGTH)

        async def work() -> InferResponse:
            asked = await asyncio.to_thread(read_infer_request, body, head, predictor.card)
            count, height, width, _ = asked.batch.shape
            most = settings.max_network_pixels
            if height * width > most or count * height * width > settings.max_pixels:
                raise RequestRefusedError(
                    400,
                    f"shape: found {count} x {height} x {width} pixels, expected at most {most} an image and "
                    f"{settings.max_pixels} in all; send smaller images",
                )
            before = record.milliseconds
            probability = await predictor.run_async(asked.batch)
            record.stages["run"] = record.milliseconds - before
            return await asyncio.to_thread(write_infer_response, asked, probability, model.name, VERSION)

        answer = await service.answer(request, record, work())
        headers = answer_headers(generation, model.name, record)
    if answer.header_length is None:
        return Response(answer.content, media_type="application/json", headers=headers)
    headers[HEADER_LENGTH] = str(answer.header_length)
    return Response(answer.content, media_type="application/octet-stream", headers=headers)
