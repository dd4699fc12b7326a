"""The body of a request: read within its limits of bytes and time, unpacked, and given up when the client hangs up."""

import asyncio
import zlib
from collections.abc import AsyncGenerator, Awaitable, Coroutine
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, TypeVar

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from runtime.errors import one_line
from runtime.serve.problems import ClientGoneError, RequestRefusedError

T = TypeVar("T")

IMAGE = "image"
"""Name of the part of a multipart body that holds the image's file."""

MAX_FIELDS = 16

PIECE = 2**16
"""Bytes of a form that are parsed at once."""


@dataclass(frozen=True, kw_only=True)
class ImageBody:
    """An image's bytes, its name as the client gave it, and the form fields beside it."""

    content: bytes
    name: str = IMAGE
    fields: dict[str, str] = field(default_factory=dict)


class BoundedBody:
    """Receives a request's body and counts its bytes; use it as the request's `receive`.

    Raises:
        RequestRefusedError: there are more than `limit` bytes.
    """

    def __init__(self, request: Request, limit: int) -> None:
        self.received = 0
        self._receive, self._limit = request.receive, limit
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > limit:
            raise self._refusal(f"has {int(declared)} bytes")

    async def __call__(self) -> Message:
        message = await self._receive()
        self.received += len(message.get("body", b""))
        if self.received > self._limit:
            raise self._refusal("has more bytes")
        return message

    def _refusal(self, found: str) -> RequestRefusedError:
        return RequestRefusedError(413, f"body: {found}, expected at most {self._limit}; send a smaller file")


async def read_bytes(request: Request, limit: int) -> bytes:
    """Return the whole body, unpacked if its Content-Encoding is gzip or deflate.

    Raises:
        RequestRefusedError: it is larger than `limit`, packed or unpacked, or its encoding is unknown or damaged.
        ClientGoneError: the client hung up before its end.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip", "deflate"):
        raise RequestRefusedError(
            415, f"Content-Encoding: found {one_line(encoding)!r}, expected gzip, deflate or none"
        )
    bounded = Request(request.scope, BoundedBody(request, limit))
    try:
        body = await bounded.body()
    except ClientDisconnect:
        raise ClientGoneError from None
    return body if encoding == "identity" else await asyncio.to_thread(unpacked, body, limit)


def unpacked(body: bytes, limit: int) -> bytes:
    """Unpack gzip or zlib data of at most `limit` bytes."""
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)  # either header
    try:
        content = unpacker.decompress(body, limit + 1)
    except zlib.error as error:
        raise RequestRefusedError(400, f"body: is damaged ({error}); send it again") from error
    if len(content) > limit:
        raise RequestRefusedError(413, f"body: unpacks to more than {limit} bytes; send a smaller file")
    if not unpacker.eof:
        raise RequestRefusedError(400, "body: ends too early; send all of it")
    return content


async def read_image(request: Request, limit: int) -> ImageBody:
    """Return the image of a body that is multipart/form-data, or the file itself. Nothing is written to a disk.

    Raises:
        RequestRefusedError, ClientGoneError: as `read_bytes`; or a multipart body has no image, or is damaged.
    """
    content = await read_bytes(request, limit)
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        if not content:
            raise RequestRefusedError(400, "body: is empty; send an image's file, or multipart/form-data")
        return ImageBody(content=content)
    parser = MultiPartParser(request.headers, in_pieces(content), max_files=1, max_fields=MAX_FIELDS)
    parser.spool_max_size = limit  # files of 1 MB would go to a temporary folder, which a container may lack
    try:
        form = await parser.parse()
    except (MultiPartException, UnicodeError) as error:  # a charset may be any codec of Python
        reason = one_line(getattr(error, "message", str(error)))
        raise RequestRefusedError(
            400, f"body: is no valid form ({reason}); send the image itself, or a form as browsers do"
        ) from error
    try:
        upload = form.get(IMAGE)
        if not isinstance(upload, UploadFile):
            found = ", ".join(sorted(map(one_line, form))) or "none"
            raise RequestRefusedError(400, f"body: found the parts {found[:200]}, expected a file named {IMAGE}")
        texts = {name: text for name, text in form.items() if isinstance(text, str)}
        name = one_line(PurePosixPath((upload.filename or "").replace("\\", "/")).name) or IMAGE
        return ImageBody(content=await upload.read(), name=name, fields=texts)
    finally:
        await form.close()


async def in_pieces(content: bytes) -> AsyncGenerator[bytes, None]:
    """Give a body to a parser bit by bit, so that other requests go on in between."""
    for start in range(0, len(content), PIECE):
        yield content[start : start + PIECE]
        await asyncio.sleep(0)


async def in_time(seconds: float, reading: Awaitable[T]) -> T:
    """Await the body of a request.

    Raises:
        RequestRefusedError: it is not there after so many seconds.
    """
    try:
        async with asyncio.timeout(seconds):
            return await reading
    except TimeoutError:
        raise RequestRefusedError(
            408, f"body: was not complete after {seconds:g} s; send it faster", Connection="close"
        ) from None


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await the answer to a request whose body is read; the work is cancelled when the client hangs up.

    Raises:
        ClientGoneError: the client hung up.
    """
    answer = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_hang_up(request))
    try:
        await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        raise ClientGoneError
    finally:
        answer.cancel()
        gone.cancel()
        await asyncio.gather(answer, gone, return_exceptions=True)
        del answer  # an error has this frame, and would keep itself and the body until a garbage collection


async def _hang_up(request: Request) -> None:
    """Return when the client has hung up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
