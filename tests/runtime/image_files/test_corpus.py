"""Image files of every kind against other libraries' readings: each is read right, or refused by what it is.

A part of the TIFF files runs each time. All of them, whose counts stand in docs/embedding.md, take minutes:
pytest tests/runtime/image_files/test_corpus.py --whole-corpus
"""

import re
from collections import Counter
from itertools import chain

import imagemagick
import jpeg_corpus
import numpy as np
import plain_corpus
import png_corpus
import pytest
import tiff_corpus
from image_corpus import DIFFERING, HEIGHT, REFUSED, RIGHT, WIDTH, counted, judged, thinned

from runtime.image import load_image

KINDS = list(tiff_corpus.kinds())


OTHERWISE = re.compile(
    r"photometric=mini\S+ bands=2 extra=\w+ planar=True"  # grey in planes
    r"|dtype=uint[24] photometric=miniswhite"  # a few bits, of which 0 is white
    r"|bands=[56] extra=assocalpha planar=True"  # planes multiplied by alpha, and more channels
    r"|bands=4 \S+ planar=True .*compression=jpeg|mode=RGBA compression=jpeg"  # JPEG with alpha
)
"""Kinds of TIFF that ImageMagick 6.9 reads otherwise than tifffile and this library do."""


def documented(root):
    """Read the table of the documentation: (right, refused, differing, as ImageMagick) of each format."""
    text = (root / "docs" / "embedding.md").read_text()
    rows = re.findall(r"^\| (\w+)" + 4 * r" \| ([\d,]+)" + r" \|", text, re.MULTILINE)
    return {form: tuple(int(number.replace(",", "")) for number in numbers) for form, *numbers in rows}


def outcomes(counts, form):
    return tuple(counts[form, outcome] for outcome in (RIGHT, REFUSED, DIFFERING))


def written(kinds):
    return (sample for sample in map(tiff_corpus.sample, kinds) if sample is not None)


def test_every_kind_of_tiff_is_read_right_or_refused_by_name(root, request):
    if request.config.getoption("whole_corpus"):
        counts, differing = counted(chain(written(KINDS), tiff_corpus.pillow_samples()))
        assert outcomes(counts, "TIFF") == documented(root)["TIFF"][:3]
    else:
        usual = [kind for kind in KINDS if kind["dtype"] in tiff_corpus.USUAL]
        counts, differing = counted(chain(written({*thinned(KINDS), *thinned(usual, 3)}), tiff_corpus.pillow_samples()))
        assert counts["TIFF", REFUSED] > counts["TIFF", RIGHT] > 50
    assert differing == []


def test_common_kinds_of_tiff_are_read():
    samples = list(written(thinned([kind for kind in KINDS if tiff_corpus.is_common(kind)], 3)))
    assert len(samples) > 60
    assert {str(sample.kind): judged(sample) for sample in samples if judged(sample)[0] != RIGHT} == {}


@pytest.mark.parametrize(
    ("corpus", "forms"),
    [(png_corpus, ["PNG"]), (jpeg_corpus, ["JPEG", "WEBP"]), (plain_corpus, ["BMP", "GIF", "PPM"])],
    ids=["PNG", "JPEG and WebP", "BMP, GIF and PPM"],
)
def test_every_kind_of_other_formats_is_read_right_or_refused_by_name(root, corpus, forms):
    counts, differing = counted(corpus.samples())
    assert differing == []
    assert {form: outcomes(counts, form) for form in forms} == {form: documented(root)[form][:3] for form in forms}


def compared_with_imagemagick(samples, folder):
    """Compare the files that are read right: a Counter of formats that ImageMagick reads the same, and the others.

    It leaves the place on a GIF's screen to the caller, so those are not compared.
    """
    screen = (HEIGHT, WIDTH, 3)
    right = [one for one in samples if judged(one)[0] == RIGHT and one.expected.shape == screen]
    same, others = Counter(), []
    for sample, pixels in zip(right, imagemagick.read_all(right, folder), strict=True):
        difference = np.abs(load_image(sample.content).astype(float) - pixels).max()
        is_converted = re.search("YCbCr|separated", str(sample.kind))
        tolerance = 3.01 if is_converted else sample.tolerance
        if difference <= tolerance:
            same[sample.kind.form] += 1
        else:
            others.append(f"{sample.kind}: differs by {difference:.1f}")
    return same, others


needs_imagemagick = pytest.mark.skipif(not imagemagick.program(), reason="ImageMagick is not installed")


@needs_imagemagick
def test_imagemagick_reads_the_same(root, tmp_path):
    corpora = chain(png_corpus.samples(), jpeg_corpus.samples(), plain_corpus.samples())
    same, others = compared_with_imagemagick(corpora, tmp_path)
    assert others == []
    assert same == {form: counts[3] for form, counts in documented(root).items() if form != "TIFF"}


@needs_imagemagick
def test_imagemagick_reads_the_same_of_tiff(root, tmp_path, request):
    is_whole = request.config.getoption("whole_corpus")
    usual = [kind for kind in KINDS if kind["dtype"] in tiff_corpus.USUAL]
    kinds = KINDS if is_whole else thinned(usual)
    same, others = compared_with_imagemagick(chain(written(kinds), tiff_corpus.pillow_samples()), tmp_path)
    assert [line for line in others if not OTHERWISE.search(line)] == []
    assert same["TIFF"] == documented(root)["TIFF"][3] if is_whole else same["TIFF"] > 90
