"""The requests of /v1: an image to an answer in any format, and what is known of the models."""

import asyncio
import json
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from runtime.errors import ConfigError
from runtime.image import Limits
from runtime.images.overlay import COLOURS
from runtime.inference.predict_options import MAX_PIXELS, resolve_options
from runtime.output_formats import FORMATS, TABLES, Format, TableFormat
from runtime.result import Segmentation, Times
from runtime.serve.bodies import in_time, read_image
from runtime.serve.front import record_of
from runtime.serve.logs import RequestRecord
from runtime.serve.models import Generation, ServedModel
from runtime.serve.problems import RequestRefusedError
from runtime.serve.service import Service
from runtime.support.sizes import size_text
from runtime.support.version import installed_version

ANSWERS: dict[str, Format | TableFormat] = {**FORMATS, **TABLES}
"""Formats of answers, by name."""

PARAMETERS = ("model", "format", "threshold", "size", "tile", "tta")

TABLE_TYPES = {".csv": "text/csv; charset=utf-8", ".json": "application/json"}

BINARY = {"schema": {"type": "string", "format": "binary"}}
ANSWER_KINDS: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}} | {
    form.media_type: {"schema": {"type": "object"}} for form in FORMATS.values() if form.media_type.endswith("json")
}
ANSWER_KINDS["*/*"] = BINARY
PROBLEM = {
    "description": "An error in one line.",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["error", "request_id"],
                "properties": {"error": {"type": "string"}, "request_id": {"type": "string"}},
            }
        }
    },
}
PROBLEMS: dict[int | str, dict[str, Any]] = {"default": PROBLEM}
"""Responses of errors, whatever the status."""

IMAGE_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {"image": {"type": "string", "format": "binary"}}
                    | {name: {"type": "string"} for name in PARAMETERS},
                }
            },
            "application/octet-stream": BINARY,
            "image/*": BINARY,
        },
    }
}


def routes(service: Service) -> APIRouter:
    """Make the routes of /v1."""
    router = APIRouter(prefix="/v1", tags=["images"], responses=PROBLEMS)

    @router.post(
        "/predict",
        response_class=Response,
        responses={200: {"description": "The answer.", "content": ANSWER_KINDS}},
        openapi_extra=IMAGE_BODY,
        summary="Segment an image",
    )
    async def predict(
        request: Request,
        model: Annotated[str | None, Query(description="Name of the model; the first one by default.")] = None,
        format: Annotated[  # noqa: A002
            str | None,
            Query(description="Format of the answer.", json_schema_extra={"enum": list(ANSWERS)}),
        ] = None,
        threshold: Annotated[str | None, Query(description="Probability threshold, between 0 and 1.")] = None,
        size: Annotated[str | None, Query(description="Size for the network, WIDTHxHEIGHT or native.")] = None,
        tile: Annotated[str | None, Query(description="Size of tiles, WIDTHxHEIGHT.")] = None,
        tta: Annotated[str | None, Query(description="Test-time augmentation, flip or d4.")] = None,
    ) -> Response:
        """Answer an image, which is the body or the part `image` of a multipart body, in a format of your choice."""
        given = {"model": model, "format": format, "threshold": threshold, "size": size, "tile": tile, "tta": tta}
        asked = {name: text for name, text in given.items() if text is not None}
        service.admit(record_of(request))
        return await predicted(service, request, asked)

    @router.get("/models", summary="The models, and the limits of requests")
    async def models() -> JSONResponse:
        """Tell all about the models that are open; the first one is the default."""
        return JSONResponse(description(service))

    return router


async def predicted(service: Service, request: Request, asked: dict[str, str]) -> Response:
    """Read an image from a request, predict it and encode the answer."""
    record, settings = record_of(request), service.settings
    body = await in_time(settings.seconds, read_image(request, settings.max_bytes))
    record.received, record.stages["receive"] = len(body.content), record.milliseconds
    unknown = {*request.query_params, *body.fields} - set(PARAMETERS)
    if unknown:
        raise ConfigError(f"{min(unknown)[:100]}: is no parameter, expected {', '.join(PARAMETERS)}")
    asked = asked | body.fields
    model = service.store.named(asked.get("model"))
    record.model = model.name
    with model.current.used() as generation:
        predictor = generation.predictor
        form = answer_format(asked.get("format"), generation)
        record.form = form.name
        options = predict_options(asked)
        limits = limits_for(service, generation, options)

        async def work() -> tuple[Segmentation, bytes]:
            before = record.milliseconds
            result = await predictor.predict_async(body.content, limits=limits, **options)
            note_times(record, result.times, record.milliseconds - before)
            before = record.milliseconds
            encode = form.encode if isinstance(form, Format) else partial(form.encode, body.name)
            content = await asyncio.to_thread(encode, result)
            record.stages["encode"] = record.milliseconds - before
            return result, content

        result, content = await service.answer(request, record, work())
        headers = answer_headers(generation, model.name, record) | {"X-Image-Size": size_text(result.shape)}
    kind = form.media_type if isinstance(form, Format) else TABLE_TYPES[form.suffix]
    return Response(content, media_type=kind, headers=headers)


def answer_format(name: str | None, generation: Generation) -> Format | TableFormat:
    """Return the format that a request asks for, by default the mask's.

    Raises:
        RequestRefusedError: there is no such format.
        OutputError: it cannot hold the model's answers.
    """
    output = generation.predictor.card.output
    if name is None:
        return FORMATS["tiff" if output.overlapping else "mask"]
    if name not in ANSWERS:
        raise RequestRefusedError(400, f"format: found {name!a}, expected one of {', '.join(ANSWERS)}")
    form = ANSWERS[name]
    if isinstance(form, Format):
        form.check(output, f"format {name}")
    return form


def predict_options(asked: Mapping[str, str]) -> dict[str, Any]:
    """Return the options of `Predictor.predict` that a request asks for.

    Raises:
        ConfigError: the threshold is no number; other options are checked by the predictor.
    """
    options: dict[str, Any] = {name: asked[name] for name in ("size", "tile", "tta") if name in asked}
    if "threshold" in asked:
        try:
            options["threshold"] = float(asked["threshold"])
        except ValueError:
            raise ConfigError(f"threshold: found {asked['threshold']!r}, expected a number between 0 and 1") from None
    return options


def limits_for(service: Service, generation: Generation, options: dict[str, Any]) -> Limits:
    """Return the limits of an image, so that the network sees no more pixels at once than the server allows.

    Raises:
        ConfigError: an option is invalid, or a size or tile is too large.
    """
    most = min(service.settings.max_network_pixels, MAX_PIXELS)
    card = generation.predictor.card
    resolved = resolve_options(card, **options)
    if resolved.tile is None and resolved.spec.fit == "native":
        return service.settings.limits(int(most / resolved.spec.scale**2))
    name, sides = ("tile", resolved.tile) if resolved.tile else ("size", resolved.spec.size)
    if sides[0] * sides[1] > most and name in options:
        raise ConfigError(f"{name}: found {size_text(sides)}, expected at most {most} pixels")
    return service.settings.limits()


def note_times(record: RequestRecord, times: Times | None, elapsed: float) -> None:
    """Put the milliseconds of each stage into a request's record; what they leave of `elapsed` is waiting."""
    if times is not None:
        stages = {name: float(value) for name, value in vars(times).items()}
        record.stages |= {"wait": max(0.0, elapsed - times.total), **stages}


def answer_headers(generation: Generation, name: str, record: RequestRecord) -> dict[str, str]:
    """Return the headers of an answer: which model gave it, where, and how long each stage took."""
    stages = record.stages | {"total": record.milliseconds}
    headers = {
        "X-Model": name,
        "X-Model-Sha256": generation.sha256,
        "X-Device": generation.predictor.report.device,
        "Server-Timing": ", ".join(f"{stage};dur={value:.2f}" for stage, value in stages.items()),
    }
    if record.warnings:
        text = " | ".join(record.warnings)
        headers["X-Warning"] = text.encode("ascii", "backslashreplace").decode()[:2_000]
    return headers


def description(service: Service) -> dict[str, Any]:
    """Return everything about the server and its models that clients may know, for JSON."""
    settings = service.settings
    return {
        "server": "unet-serve",
        "version": installed_version(),
        "limits": {
            "bytes": settings.max_bytes,
            "pixels": settings.max_pixels,
            "network_pixels": settings.max_network_pixels,
            "seconds": settings.seconds,
            "queue": settings.queue,
        },
        "formats": list(ANSWERS),
        "models": [model_description(model) for model in service.store.models.values()],
    }


def model_description(model: ServedModel) -> dict[str, Any]:
    """Return what is known of a model, for JSON."""
    generation = model.current
    report, card = generation.predictor.report, generation.predictor.card
    first = card.output.first_foreground
    colours = [None] * first + [COLOURS[index % len(COLOURS)] for index in range(len(card.output.classes) - first)]
    return {
        "name": model.name,
        "version": "1",
        "sha256": generation.sha256,
        "loaded": generation.loaded.isoformat(timespec="seconds"),
        "device": report.device,
        "provider": report.provider,
        "engine": report.engine,
        "arithmetic": report.arithmetic,
        "requested_device": report.requested,
        "skipped": report.skipped,
        "threads": report.threads,
        "golden_error": report.golden_error,
        "golden_limit": report.golden_limit,
        "onnxruntime": report.onnxruntime,
        "classes": card.output.classes,
        "activation": card.output.activation,
        "threshold": card.output.threshold if card.output.thresholded else None,
        "colours": colours,
        "precision": card.precision,
        "card": json.loads(card.to_json()),
    }
