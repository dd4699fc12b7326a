"""Service: what all requests share: settings, models, queue and metrics."""

import asyncio
import multiprocessing
import os
import secrets
import signal
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from starlette.requests import Request

from runtime.errors import DeviceError, UnetError, one_line
from runtime.serve.admission import Admission
from runtime.serve.bodies import unless_gone
from runtime.serve.logs import LOG, RequestRecord
from runtime.serve.metrics import ServerMetrics
from runtime.serve.models import Generation, ModelStore
from runtime.serve.problems import RequestRefusedError
from runtime.serve.settings import ServerSettings

T = TypeVar("T")

HEALTH_SECONDS = 1.0
"""Time that the answer of a health check is good for, so that it costs no more than one run a second."""


class Service:
    """The models of a process and all that requests share.

    Raises:
        UnetError: a model cannot be opened.
    """

    def __init__(self, settings: ServerSettings, api_key: str | None) -> None:
        self.settings, self._api_key = settings, api_key
        self.metrics = ServerMetrics()
        self.admission = Admission(settings.queue)
        self.store = ModelStore(settings, lambda name, count: self.metrics.batches.labels(name).observe(count))
        self.metrics.capacity.set(settings.queue)
        for name, model in self.store.models.items():
            self._describe(name, model.current, 1)
        self._checking = asyncio.Lock()
        self._health: tuple[float, dict[str, dict[str, Any]]] | None = None

    def allows(self, request: Request) -> bool:
        """Return True if no API key is needed, or the request has it."""
        if self._api_key is None:
            return True
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            given = request.headers.get("x-api-key", "")
        return secrets.compare_digest(given.strip().encode(), self._api_key.encode())

    def admit(self, record: RequestRecord) -> None:
        """Hold a place for a request until its answer is sent, since the answer is in memory until then.

        Raises:
            RequestRefusedError: the queue is full.
        """
        record.held.enter_context(self.admission.place())
        record.held.enter_context(self.metrics.in_progress.track_inprogress())

    async def answer(self, request: Request, record: RequestRecord, work: Coroutine[Any, Any, T]) -> T:
        """Await the answer to a request whose body is read, in what is left of its time.

        Raises:
            RequestRefusedError: the answer was not there in time.
            ClientGoneError: the client hung up.
        """
        left = max(0.0, self.settings.seconds - record.milliseconds / 1e3)
        try:
            async with asyncio.timeout(left):
                return await unless_gone(request, work)
        except TimeoutError:
            raise RequestRefusedError(
                504, f"server: no answer within {self.settings.seconds:g} s; send a smaller image, or ask again later"
            ) from None

    async def health(self) -> dict[str, dict[str, Any]]:
        """Replay the golden sample of each model, at most once a second; a model that fails has an "error"."""
        async with self._checking:
            if self._health is None or time.monotonic() - self._health[0] > HEALTH_SECONDS:
                found = {name: await self._replay(model.current) for name, model in self.store.models.items()}
                self._health = time.monotonic(), found
            return self._health[1]

    async def _replay(self, generation: Generation) -> dict[str, Any]:
        with generation.used() as used:
            try:
                async with asyncio.timeout(self.settings.seconds):
                    error = await asyncio.to_thread(used.predictor.replay)
            except (UnetError, TimeoutError) as problem:
                return {"error": one_line(str(problem)) or f"no answer within {self.settings.seconds:g} s"}
            return {"golden_error": error, "golden_limit": used.predictor.report.golden_limit}

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Look for replaced model files within the block, and close all models at its end."""
        watch = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
            await asyncio.to_thread(self.store.close)

    async def _watch(self) -> None:
        parent = multiprocessing.parent_process()
        while True:
            await asyncio.sleep(self.settings.look_seconds)
            if parent is not None and not parent.is_alive():
                os.kill(os.getpid(), signal.SIGTERM)  # a worker whose parent was killed would serve for ever
            for name, model in self.store.models.items():
                before = model.current
                try:
                    swapped = await model.look()
                except Exception:
                    LOG.exception("model was not swapped")
                    swapped = False
                if swapped is not None:
                    self.metrics.swaps.labels(name, "swapped" if swapped else "refused").inc()
                if swapped:
                    self._health = None
                    self._describe(name, before, 0)
                    self._describe(name, model.current, 1)

    def _describe(self, name: str, generation: Generation, value: int) -> None:
        report, card = generation.predictor.report, generation.predictor.card
        self.metrics.models.labels(name, generation.sha256, report.device, card.precision).set(value)


def failure_of(health: dict[str, dict[str, Any]]) -> DeviceError | None:
    """Return an error about the models whose golden sample failed, if any."""
    failed = [f"{name}: {found['error']}" for name, found in health.items() if "error" in found]
    return DeviceError("; ".join(failed)) if failed else None
