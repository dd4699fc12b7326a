"""The table of output formats: what each gives, which suffix means which, and what counts as finished."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from runtime.errors import OutputError
from runtime.output_formats import FORMATS, TABLES, format_for


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_holds_what_encode_gives(several, tmp_path, name):
    form = FORMATS[name]
    form.save(several, tmp_path / "answer")
    assert (tmp_path / "answer").read_bytes() == form.encode(several)
    assert form.is_finished(tmp_path / "answer", 3, several.size)
    assert form.is_finished(tmp_path / "answer", 3, several.size[::-1])


@pytest.mark.parametrize("name", [name for name, form in FORMATS.items() if form.help])
def test_what_is_truncated_or_of_another_size_is_not_finished(several, tmp_path, name):
    form, path = FORMATS[name], tmp_path / "answer"
    form.save(several, path)
    height, width = several.size
    assert not form.is_finished(path, 3, (height, width + 1))
    path.write_bytes(path.read_bytes()[:-1])
    assert not form.is_finished(path, 3, several.size)
    assert not form.is_finished(tmp_path / "missing", 3, several.size)


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
