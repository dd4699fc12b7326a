"""PNG files in: reduced to the chunks that make their pixels, each of them checked; all pixels or none."""

import zlib

from PIL import Image

from runtime.image_files.damage import DamageError
from runtime.image_files.limits import Limits, of_picture
from runtime.image_files.starts import PNG
from runtime.image_files.whole import load_whole

EMPTY_END = b"\0\0\0\0IEND\xae\x42\x60\x82"

PIXELS = frozenset({b"IHDR", b"PLTE", b"tRNS"})
"""Chunks that make the pixels, beside IDAT."""

TEXTS = {b"tEXt": b"Raw profile type exif\0", b"zTXt": b"Raw profile type exif\0"}
"""Texts that tell the orientation."""

MAX_TEXT = 2**20
"""Maximum size of a chunk that tells the orientation, in bytes, also when it is decompressed: Pillow reads no more."""


def decode_png(content: bytes, limits: Limits) -> Image.Image:
    """Decode the image, of an animation the default one.

    Raises:
        DamageError: a chunk of pixels or colours is damaged, or pixels are missing.
        LimitError: it exceeds the limits.
    """
    reduced = reduce(content, limits)
    width, height = (int.from_bytes(reduced[start : start + 4], "big") for start in (16, 20))
    depth, colours, is_interlaced = reduced[24], reduced[25], reduced[28]
    limits.check_pixels(width, height)
    sample = 4 if colours in (2, 4, 6) else depth // 8 or 1
    limits.check_memory(len(content) + len(reduced) + of_picture(width, height, sample + 3))
    last = (width - 1, height - 1)
    if is_interlaced and height > 1:  # the last pass has the odd rows
        last = (width - 1, height // 2 * 2 - 1)
    elif is_interlaced and width > 1:  # the last but one has the odd columns
        last = (width // 2 * 2 - 1, 0)
    return load_whole(reduced, "PNG", last)


def reduce(content: bytes, limits: Limits) -> bytes:
    """Return the file with the chunks that Pillow needs: header, colours, orientation and all pixels in one chunk.

    Others (profiles, texts, frames of an animation) are passed over, so they cost nothing, however many there are.

    Raises:
        DamageError: a chunk is cut off, its checksum is wrong, or there are no pixels.
    """
    view, position = memoryview(content), len(PNG)
    kept: dict[bytes, bytes] = {}
    pixels = bytearray()
    while position + 8 <= len(content):
        length = int.from_bytes(content[position : position + 4], "big")
        name, end = content[position + 4 : position + 8], position + 12 + length
        if name == b"IEND":
            break
        if name == b"IDAT" or name in PIXELS or name == b"eXIf" or name in TEXTS:
            take(view[position:end], length, name, kept, pixels)
        position = end
        if not pixels:
            limits.check_header(min(position, len(content)))
    if b"IHDR" not in kept or not pixels:
        raise DamageError("it has no pixels")
    colours = [kept[name] for name in (b"IHDR", b"PLTE", b"tRNS") if name in kept]
    others = [chunk for name, chunk in kept.items() if name not in PIXELS]
    return b"".join([PNG, *colours, *others, chunk_of(b"IDAT", pixels), EMPTY_END])


def take(chunk: memoryview, length: int, name: bytes, kept: dict[bytes, bytes], pixels: bytearray) -> None:
    """Keep the first chunk of each name, and all pixels."""
    is_text = name in TEXTS
    is_extra = is_text or name == b"eXIf"
    if is_extra and (length > MAX_TEXT or name in kept or (is_text and not bytes(chunk[8:40]).startswith(TEXTS[name]))):
        return
    if len(chunk) != 12 + length:
        if is_extra:
            return
        raise DamageError(f"its chunk {name.decode()} is cut off")
    if zlib.crc32(chunk[4 : 8 + length]) != int.from_bytes(chunk[8 + length :], "big"):
        if is_extra:
            return
        raise DamageError(f"the checksum of its chunk {name.decode()} is wrong")
    if name == b"IDAT":
        pixels += chunk[8 : 8 + length]
    elif is_text and not is_small_text(name, bytes(chunk[8 + len(TEXTS[name]) : -4])):
        kept[name] = b""  # later ones are not looked at, so a thousand of them cost nothing
    else:
        kept.setdefault(name, bytes(chunk))


def is_small_text(name: bytes, text: bytes) -> bool:
    """Return True for what follows a keyword, unless it is damaged or is decompressed to more than `MAX_TEXT`."""
    if name == b"tEXt" or (name == b"iTXt" and text[:1] in (b"", b"\0")):
        return True
    # Flag and method, language\0, translated keyword\0; or the method alone.
    stream = text[2:].split(b"\0", 2)[-1] if name == b"iTXt" else text[1:]
    decompressor = zlib.decompressobj()
    try:
        decompressor.decompress(stream, MAX_TEXT)
    except zlib.error:
        return False
    return not decompressor.unconsumed_tail


def chunk_of(name: bytes, body: bytearray) -> bytes:
    """Encode a chunk. Nobody checks the sum of a chunk of pixels again, so there is none."""
    return b"".join([len(body).to_bytes(4, "big"), name, body, bytes(4)])
