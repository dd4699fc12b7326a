"""JPEG and WebP files of every kind that Pillow, OpenCV and imagecodecs write, beside another library's reading."""

import io

import cv2
import imagecodecs
import numpy as np
from image_corpus import Kind, Sample, as_rgb, smooth
from PIL import Image

FACTORS = {
    "4:4:4": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    "4:2:2": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
    "4:2:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    "4:4:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440,
    "4:1:1": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411,
}

LEVELS = {bands: np.round(smooth(bands) * 255).astype(np.uint8) for bands in (1, 3, 4)}

COLOUR, GREY = Image.fromarray(LEVELS[3]), Image.fromarray(LEVELS[1][:, :, 0])


def samples():
    """Yield a sample of every kind of JPEG and WebP."""
    for progressive in (0, 1):
        for restart in (0, 1):
            for factors, flag in FACTORS.items():
                options = [cv2.IMWRITE_JPEG_PROGRESSIVE, progressive, cv2.IMWRITE_JPEG_RST_INTERVAL, restart]
                options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, flag, cv2.IMWRITE_JPEG_QUALITY, 95]
                content = cv2.imencode(".jpg", LEVELS[3][:, :, ::-1], options)[1].tobytes()
                yield sample(content, colours=factors, progressive=progressive, restart=restart)
            options = {"progressive": bool(progressive), "restart_marker_rows": restart, "quality": 95}
            yield sample(saved(GREY, **options), colours="grey", progressive=progressive, restart=restart)
            yield sample(
                saved(COLOUR, keep_rgb=True, **options), colours="RGB", progressive=progressive, restart=restart
            )
            cmyk = saved(Image.fromarray(LEVELS[4], "CMYK"), **options)
            for marked in (True, False):
                content = cmyk if marked else without_adobe(cmyk)
                facts = {"progressive": progressive, "restart": restart}
                yield sample(content, colours="CMYK", adobe=marked, **facts)
    for colours in ("CMYK", "YCCK"):
        content = imagecodecs.jpeg8_encode(LEVELS[4], level=95, colorspace="CMYK", outcolorspace=colours)
        yield sample(content, colours=colours, by="imagecodecs")
    for bits in (12, 16):
        content = imagecodecs.ljpeg_encode(LEVELS[1][:, :, 0].astype(np.uint16) * 16, bitspersample=bits)
        yield Sample(Kind.of("JPEG", colours="lossless", bits=bits), content, None)
    deep = imagecodecs.jpeg8_encode(LEVELS[3].astype(np.uint16) * 16, level=95, bitspersample=12)
    yield Sample(Kind.of("JPEG", colours="12 bits"), deep, None)
    yield from webp_samples()


def webp_samples():
    """Yield a sample of every kind of WebP."""
    clear = COLOUR.copy()
    clear.putalpha(GREY)
    for name, picture in (("RGB", COLOUR), ("grey", GREY), ("RGBA", clear)):
        for options in (
            {"quality": 80},
            {"quality": 80, "exact": True},
            {"lossless": True},
            {"lossless": True, "exact": True},
        ):
            content = saved(picture, "WEBP", **options)
            yield webp(content, colours=name, **options)
    content = saved(COLOUR, "WEBP", lossless=True, save_all=True, append_images=[GREY.convert("RGB")], duration=50)
    yield webp(content, colours="RGB", animated=True)


def saved(picture, form="JPEG", **options):
    """Encode by Pillow."""
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def without_adobe(content):
    """Remove the marker of Adobe."""
    start = content.index(b"\xff\xee\0\x0eAdobe")
    return content[:start] + content[start + 16 :]


def sample(content, **facts):
    """A JPEG beside OpenCV's reading; OpenCV has no colour management, and takes inks as Adobe stores them."""
    read = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    return Sample(Kind.of("JPEG", **facts), content, read.astype(float), 2.01 if "K" in facts["colours"] else 1.01)


def webp(content, **facts):
    """A WebP beside imagecodecs' reading of its first frame."""
    read = imagecodecs.webp_decode(content, index=0) if facts.get("animated") else imagecodecs.webp_decode(content)
    return Sample(Kind.of("WEBP", **facts), content, as_rgb(read[:, :, :3] if read.ndim == 3 else read))
