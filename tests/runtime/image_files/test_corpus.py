"""Image files of every kind against other libraries' readings: each is read right, or refused by what it is.

A part of the TIFF files runs each time. All of them, whose counts stand in docs/embedding.md, take minutes:
pytest tests/runtime/image_files/test_corpus.py --whole-corpus
"""

import re
from itertools import chain

import jpeg_corpus
import plain_corpus
import png_corpus
import pytest
import tiff_corpus
from image_corpus import DIFFERING, REFUSED, RIGHT, counted, judged, thinned

KINDS = list(tiff_corpus.kinds())


def documented(root):
    """Read the table of the documentation: (right, refused, differing) of each format."""
    text = (root / "docs" / "embedding.md").read_text()
    rows = re.findall(r"^\| (\w+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|", text, re.MULTILINE)
    return {form: tuple(int(number.replace(",", "")) for number in numbers) for form, *numbers in rows}


def outcomes(counts, form):
    return tuple(counts[form, outcome] for outcome in (RIGHT, REFUSED, DIFFERING))


def written(kinds):
    return (sample for sample in map(tiff_corpus.sample, kinds) if sample is not None)


def test_every_kind_of_tiff_is_read_right_or_refused_by_name(root, request):
    if request.config.getoption("whole_corpus"):
        counts, differing = counted(chain(written(KINDS), tiff_corpus.pillow_samples()))
        assert outcomes(counts, "TIFF") == documented(root)["TIFF"]
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
    assert {form: outcomes(counts, form) for form in forms} == {form: documented(root)[form] for form in forms}
