"""Files of NumPy's: what is refused before an array is made of it."""

import io
import zipfile

import numpy as np
import pytest

from runtime.errors import ImageError
from runtime.image import image_size, load_image
from runtime.image_files.decoding import image_errors
from runtime.image_files.limits import LIMITS
from runtime.image_files.numpy_files import read_array


def npy(values, **options):
    file = io.BytesIO()
    np.lib.format.write_array(file, values, **options)
    return file.getvalue()


def header(text):
    """An .npy file without values, of this header."""
    content = text.encode().ljust(118 - 1) + b"\n"
    return b"\x93NUMPY\1\0" + len(content).to_bytes(2, "little") + content


def refusal(content):
    with pytest.raises(ImageError) as caught, image_errors("a.npy"):
        read_array(content, LIMITS)
    return str(caught.value)


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_each_version_and_order(version, order):
    values = np.arange(2 * 3 * 4, dtype=np.uint16).reshape(2, 3, 4, order=order)
    assert np.array_equal(read_array(npy(values, version=version), LIMITS), values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"\x93NUMPY\3\0\x04\0\0\0abc\n",
            "is a NumPy file of a version that is not read; save it with numpy.save",
        ),
        (
            npy(np.zeros(3, [("a", "u1")])),
            "holds Python objects or records, which are never loaded; save an array of numbers with numpy.save",
        ),
        (
            header("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 4, 4), }"),
            "is damaged or truncated (its header makes no sense); replace it",
        ),
        (
            header("{'descr': '|u1', 'fortran_order': False, 'shape': (100, 100, 4), }"),
            "is damaged or truncated (it holds fewer values than its header says); replace it",
        ),
        (
            header("{'descr': '|u1', 'fortran_order': False, 'shape': (2, 4, 4"),
            "is damaged or truncated (its header makes no sense); replace it",
        ),
        (
            header("__import__('os').system('true')"),
            "is damaged or truncated (its header makes no sense); replace it",
        ),
    ],
)
def test_headers_that_make_no_sense_are_refused(content, message):
    assert refusal(content) == f"a.npy: {message}"


def test_a_header_of_more_values_than_memory_is_refused_before_any_is_made():
    content = header("{'descr': '<f8', 'fortran_order': False, 'shape': (10000, 10000, 16), }")
    assert refusal(content).startswith("a.npy: takes about 27200000000 bytes to decode, expected at most 2147483648")


@pytest.mark.parametrize("names", [[], ["a.txt"], ["a.npy", "b.npy"]])
def test_archives_without_one_image_are_refused_by_their_names(names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme", "nothing")
        for name in names:
            archive.writestr(name, npy(np.zeros((2, 3, 4), np.uint8)))
    count = sum(name.endswith(".npy") for name in names)
    listed = " (a, b)" if count else ""
    assert refusal(file.getvalue()) == (
        f"a.npy: is an archive of {count} arrays{listed}, expected one, or one that is called image; save it with "
        "numpy.savez_compressed(path, image=array)"
    )


def test_a_changed_archive_is_damaged():
    file = io.BytesIO()
    np.savez(file, image=np.zeros((20, 30, 4), np.uint8))
    content = bytearray(file.getvalue())
    content[len(content) // 2] ^= 1
    assert refusal(bytes(content)) == "a.npy: is damaged or truncated (its archive is cut off or changed); replace it"


def test_an_array_without_two_sides_is_no_image(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.zeros(7, np.uint8))
    with pytest.raises(ImageError, match=r"is an array of shape \[7\], expected \[height, width, channels\]$"):
        image_size(path)
    with pytest.raises(ImageError, match=r"found uint8 \[7\], expected \[height, width, 4\] for this model$"):
        load_image(path, "raw", count=4)
