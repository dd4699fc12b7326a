"""Submissions: single images in, batches to the network, single answers out, as `Predictor.submit` promises."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from runtime.devices.session import CLOSED
from runtime.inference.batcher import GPU_BATCH, Batcher, Batching
from runtime.inference.pipeline import NetworkOutput, PreparedImage
from runtime.result import Segmentation
from runtime.support.concurrency import FairSemaphore

if TYPE_CHECKING:
    import asyncio

Infer = Callable[[Sequence[PreparedImage], "AllAbandoned"], list[NetworkOutput]]
Postprocess = Callable[[PreparedImage, NetworkOutput], Segmentation]


@dataclass(frozen=True, slots=True, eq=False)
class SubmittedImage:
    """An image in the queue.

    `postprocess_here` is True if the thread that runs the batch also brings the answer back to the image's size.
    `abandoned` is set when nobody waits for the answer any more.
    """

    image: PreparedImage
    postprocess_here: bool
    abandoned: threading.Event = field(default_factory=threading.Event)


class AllAbandoned:
    """True, as an event is set, once nobody waits for any image of a batch; looked at before each of many tiles."""

    def __init__(self, entries: Sequence[SubmittedImage]) -> None:
        self._entries = entries

    def is_set(self) -> bool:
        """Return True if nobody waits for the batch."""
        return all(entry.abandoned.is_set() for entry in self._entries)


class Submissions:
    """Gathers images from threads and coroutines into batches, which one thread runs; see `Batcher`.

    Args:
        infer: answers images of one key together.
        postprocess: brings an answer back to its image's own size.
        batching: how images are gathered.
    """

    def __init__(self, infer: Infer, postprocess: Postprocess, batching: Batching) -> None:
        self._postprocess = postprocess
        max_batch = batching.max_batch or GPU_BATCH
        self._decoding = FairSemaphore(batching.max_waiting + max_batch, "")
        self._batcher: Batcher[SubmittedImage, NetworkOutput | Segmentation] = Batcher(
            partial(_run, infer, postprocess, batching.on_batch),
            key=lambda entry: entry.image.key,
            max_batch=max_batch,
            max_delay_ms=batching.max_delay_ms,
            max_waiting=batching.max_waiting,
            closed=CLOSED,
            full=f"predictor: {batching.max_waiting} images wait already (Batching.max_waiting); try again later, "
            "or in a coroutine await predict_async",
        )

    def submit(self, image: PreparedImage, *, timeout: float | None) -> Future[Segmentation]:
        """See `Predictor.submit`. The Future's callbacks run in the batches' thread, which restores the answer too."""
        future: Future[Segmentation] = self._batcher.submit(SubmittedImage(image, True), timeout=timeout)  # type: ignore[assignment]
        return future

    async def predict(self, preprocess: Callable[[], PreparedImage]) -> Segmentation:
        """Decode and restore in threads beside the event loop, run in a batch between."""
        import asyncio  # costs an app that does not use it 30 ms at its start

        await self._decoding.acquire_async()  # or decoded images would pile up before the batches
        decoding = asyncio.ensure_future(asyncio.to_thread(preprocess))
        try:
            image = await asyncio.shield(decoding)
            answer = await self.run(image)
        finally:  # a thread that decodes what nobody awaits any more keeps its place until it is done
            if decoding.done() or decoding.get_loop().is_closed():
                self._release(decoding)
            else:
                decoding.add_done_callback(self._release)
            del decoding  # an error has this frame, and would keep itself and the image until a garbage collection
        return await asyncio.to_thread(self._postprocess, image, answer)

    async def run(self, image: PreparedImage) -> NetworkOutput:
        """Run a decoded image in a batch with others; if the task is cancelled, an image in tiles is given up."""
        entry = SubmittedImage(image, False)
        try:
            answer = await self._batcher.run_async(entry)
        except BaseException:
            entry.abandoned.set()
            raise
        assert isinstance(answer, NetworkOutput)
        return answer

    def _release(self, decoding: "asyncio.Future[PreparedImage]") -> None:
        if decoding.done() and not decoding.cancelled():
            decoding.exception()  # or asyncio tells of an error that nobody has taken
        self._decoding.release()

    def is_current(self) -> bool:
        """Return True if the caller runs in the batches' thread, as callbacks of Futures do."""
        return self._batcher.is_current()

    def close(self) -> None:
        """Finish what was submitted, and take no more; not to be called where `is_current`."""
        self._batcher.close()


def _run(
    infer: Infer, postprocess: Postprocess, on_batch: Callable[[int], object] | None, entries: list[SubmittedImage]
) -> list[NetworkOutput | Segmentation]:
    if on_batch is not None:
        on_batch(len(entries))
    answers = infer([entry.image for entry in entries], AllAbandoned(entries))
    return [
        postprocess(entry.image, answer) if entry.postprocess_here else answer
        for entry, answer in zip(entries, answers, strict=True)
    ]
