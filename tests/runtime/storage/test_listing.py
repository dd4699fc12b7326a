"""Images at URLs: files, folders and patterns, and under which names."""

from collections import Counter

import pytest
from stores import empty_memory

from runtime.image_files.folders import SUFFIXES
from runtime.storage.listing import RemoteSearch


@pytest.fixture
def bucket():
    """A store in memory with images and other files."""
    images = ("b.jpg", "a.PNG", "sub/deep/c.tif", "out/f.png")
    with empty_memory() as system:
        for name in (*images, ".hidden/d.jpg", ".e.jpg", "notes.txt", "raw.dng", "bare"):
            system.pipe_file(f"/bucket/in/{name}", name.encode())
        yield system


def names(url, without=None):
    left_out = Counter()
    found = RemoteSearch(suffixes=SUFFIXES, without=without, left_out=left_out).images_of(url)
    return {file.url.removeprefix("memory://bucket/"): name.as_posix() for file, name in found}, left_out


def test_a_folder_gives_its_images_by_suffix_with_all_below(bucket):
    found, left_out = names("memory://bucket/in")
    assert found == {
        "in/a.PNG": "a.PNG",
        "in/b.jpg": "b.jpg",
        "in/out/f.png": "out/f.png",
        "in/sub/deep/c.tif": "sub/deep/c.tif",
    }
    assert list(found) == sorted(found)
    assert left_out == {".dng": 1, "": 1}
    assert names("memory://bucket/in/")[0] == found


def test_the_folder_of_answers_is_not_searched(bucket):
    assert "in/out/f.png" not in names("memory://bucket/in", "memory://bucket/in/out")[0]
    assert "in/out/f.png" in names("memory://bucket/in", "memory://bucket/in/ou")[0]


def test_a_file_is_an_image_whatever_it_is_called_and_tells_its_size(bucket):
    search = RemoteSearch(suffixes=SUFFIXES, without=None, left_out=Counter())
    ((file, name),) = search.images_of("memory://bucket/in/bare")
    assert (file.url, file.size, name.as_posix()) == ("memory://bucket/in/bare", 4, "bare")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("in/*.jpg", {"in/b.jpg": "b.jpg"}),
        ("in/s*", {"in/sub/deep/c.tif": "deep/c.tif"}),
        ("in/**/*.tif", {"in/sub/deep/c.tif": "sub/deep/c.tif"}),
        ("in/?.jpg", {"in/b.jpg": "b.jpg"}),
        ("gone", {}),
        ("gone/*.jpg", {}),
    ],
)
def test_patterns(bucket, pattern, expected):
    assert names(f"memory://bucket/{pattern}")[0] == expected


def test_brackets_in_the_name_of_a_file_are_no_pattern(bucket):
    bucket.pipe_file("/bucket/in/[1].jpg", b"1")
    assert names("memory://bucket/in/[1].jpg")[0] == {"in/[1].jpg": "[1].jpg"}
