"""The table of output formats: what each gives, which suffix means which, and what counts as finished."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from runtime.errors import OutputError
from runtime.output_formats import FORMATS, TABLES, cutout_format, format_for


@pytest.fixture
def answer_for(single, several):
    """Return an answer that a format can hold, and the number of its classes."""
    return lambda form: (single, 1) if form.max_classes == 1 else (several, 3)


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_holds_what_encode_gives(answer_for, tmp_path, name):
    form = FORMATS[name]
    answer, classes = answer_for(form)
    form.save(answer, tmp_path / "answer")
    assert (tmp_path / "answer").read_bytes() == form.encode(answer)
    assert form.is_finished(tmp_path / "answer", classes, answer.size)
    assert form.is_finished(tmp_path / "answer", classes, answer.size[::-1])


@pytest.mark.parametrize("name", [name for name, form in FORMATS.items() if form.help])
def test_what_is_truncated_or_of_another_size_is_not_finished(answer_for, tmp_path, name):
    form, path = FORMATS[name], tmp_path / "answer"
    answer, classes = answer_for(form)
    form.save(answer, path)
    height, width = answer.size
    assert not form.is_finished(path, classes, (height, width + 1))
    path.write_bytes(path.read_bytes()[:-1])
    assert not form.is_finished(path, classes, answer.size)
    assert not form.is_finished(tmp_path / "missing", classes, answer.size)


def test_masks_of_one_bit_and_of_eight_are_told_apart(single, tmp_path):
    for name, other in (("mask", "bilevel"), ("bilevel", "mask")):
        FORMATS[name].save(single, tmp_path / name)
        assert FORMATS[name].is_finished(tmp_path / name, 1, single.size)
        assert not FORMATS[other].is_finished(tmp_path / name, 1, single.size)


def test_one_bit_is_for_one_class(several, tmp_path):
    with pytest.raises(OutputError) as caught:
        several.save(tmp_path / "a.png", format="bilevel")
    assert str(caught.value) == (
        f"{tmp_path / 'a.png'}: keeps at most 1 class, the mask may have more; take mask (.png) or tiff (.tif)"
    )


def test_formats_that_show_the_image_say_so():
    assert [name for name, form in FORMATS.items() if form.shows_image] == ["overlay", "cutout"]
    assert cutout_format(soft=True, background="white").shows_image


def test_an_empty_file_is_never_finished(tmp_path):
    (tmp_path / "answer").touch()
    assert not any(form.is_finished(tmp_path / "answer", 1, (1, 1)) for form in FORMATS.values())


@pytest.mark.parametrize(
    ("path", "name"),
    [("a.png", "mask"), ("a.GIF", "gif"), ("a.tif", "tiff"), ("a.tiff", "tiff"), ("a.npy", "npy"), ("a.json", "json")],
)
def test_a_suffix_means_a_format(path, name):
    assert format_for(Path(path)) is FORMATS[name]


def test_a_suffix_of_no_format_is_refused():
    with pytest.raises(OutputError, match=r"^a\.jpg: would not keep a mask exactly; expected a name that ends"):
        format_for(Path("a.jpg"))


def test_probabilities_of_any_layout_are_written_in_rows(several, tmp_path):
    turned = np.asfortranarray(several.probability)
    FORMATS["npy"].save(replace(several, probability=turned), tmp_path / "a.npy")
    assert np.array_equal(np.load(tmp_path / "a.npy"), turned)
    assert FORMATS["npy"].is_finished(tmp_path / "a.npy", 3, several.size)


def test_names_and_help_texts_are_those_of_the_entries():
    assert all(form.name == name for name, form in [*FORMATS.items(), *TABLES.items()])
    assert all(form.help == "" or form.help.endswith(".") for form in FORMATS.values())
