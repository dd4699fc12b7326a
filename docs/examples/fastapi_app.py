"""Segmentation as a part of your own web application: MODEL=model.onnx uvicorn fastapi_app:app

A service and nothing else is ready-made: unet-serve, with limits, metrics and a queue that answers 429.
"""

import asyncio
import io
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import FastAPI, File, HTTPException, Request, Response

import runtime

LIMITS = runtime.Limits(pixels=50_000_000, file_bytes=20 * 2**20)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the model once; close it when what is waiting was answered."""
    with runtime.Predictor(os.environ["MODEL"], limits=LIMITS) as predictor:
        predictor.prepare()  # so that the first user does not wait
        app.state.predictor = predictor
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/mask", response_class=Response)
async def mask(request: Request, image: Annotated[bytes, File()]) -> Response:
    """Answer an image by its mask as PNG."""
    predictor: runtime.Predictor = request.app.state.predictor
    try:
        result = await asyncio.wait_for(predictor.predict_async(image), 10)  # images that wait run as one batch
    except runtime.ImageError as error:
        raise HTTPException(422, str(error)) from error
    except TimeoutError as error:
        raise HTTPException(503, "busy; try again", {"Retry-After": "5"}) from error
    content = io.BytesIO()
    result.save(content, format="mask")
    return Response(content.getvalue(), media_type="image/png")
