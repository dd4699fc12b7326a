"""Files, folders and patterns: what is read, under which name, and what is refused before the work."""

from pathlib import Path, PurePath

import pytest

from runtime.commands.inputs import find_images
from runtime.commands.outputs import Job, file_jobs, table_jobs
from runtime.errors import ImageError, OutputError


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder of pictures (their content is never looked at) that the process is in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(*paths):
    for path in map(Path, paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(path.name.encode())


def names(*images, out="out"):
    return {str(item.path): str(item.name) for item in find_images(images, Path(out))}


def test_folders_are_searched_with_all_below_but_hidden_ones_and_the_output(here):
    touch(
        "in/b.jpg", "in/sub/a.PNG", "in/sub/deep/c.tif", "in/.hidden/d.jpg", "in/.e.jpg", "in/notes.txt", "in/out/f.png"
    )
    expected = {"in/b.jpg": "b.jpg", "in/sub/a.PNG": "sub/a.PNG", "in/sub/deep/c.tif": "sub/deep/c.tif"}
    assert names("in", out="in/out") == expected
    assert names("in/../in", out="./in/out") == {f"in/../{path}": name for path, name in expected.items()}


def test_links_are_followed_but_not_round(here):
    touch("in/a.jpg", "other/b.jpg")
    Path("in/link").symlink_to(here / "other")
    Path("in/round").symlink_to(here / "in")
    assert names("in") == {"in/a.jpg": "a.jpg", "in/link/b.jpg": "link/b.jpg"}
    assert names("in/**/*.jpg") == {"in/a.jpg": "a.jpg"}


def test_patterns_that_no_shell_expanded(here):
    touch("in/1.jpg", "in/2.jpg", "in/2.png", "in/sub/3.jpg", "in/sub/.4.jpg", "in/[1].jpg", "out/5.jpg")
    assert names("in/?.jpg") == {"in/1.jpg": "1.jpg", "in/2.jpg": "2.jpg"}
    assert names("in/[1].jpg") == {"in/[1].jpg": "[1].jpg"}
    assert names("in/s*") == {"in/sub/3.jpg": "3.jpg"}
    assert names("**/*.jpg") == {f"in/{name}": f"in/{name}" for name in ("1.jpg", "2.jpg", "[1].jpg", "sub/3.jpg")}
    assert names("in/**") == {f"in/{name}": name for name in ("1.jpg", "2.jpg", "2.png", "[1].jpg", "sub/3.jpg")}
    with pytest.raises(ImageError, match=r"^in/\*\.gif: no image has such a path$"):
        names("in/*.gif")


def test_one_file_under_one_name_is_done_once(here):
    touch("in/a.jpg", "in/sub/b.jpg")
    jobs = file_jobs(find_images(["in", "in/a.jpg", "./in/a.jpg", "in/sub"], Path("out")), Path("out"), ".png")
    assert [(str(job.source), str(job.target)) for job in jobs] == [
        ("in/a.jpg", "out/a.png"),
        ("in/sub/b.jpg", "out/sub/b.png"),
        ("in/sub/b.jpg", "out/b.png"),
    ]


def test_missing_and_empty(here):
    Path("empty").mkdir()
    with pytest.raises(ImageError, match=r"^gone\.jpg: no such file or folder$"):
        names("gone.jpg")
    with pytest.raises(ImageError, match=r"^empty: no images in this folder and below$"):
        names("empty")


@pytest.mark.parametrize("second", ["in/sub/A.jpg", "in/sub/a.bmp"])
def test_two_images_of_one_file_are_refused(here, second):
    touch("in/a.jpg", second)
    images = find_images(["in/a.jpg", second], Path("out"))
    with pytest.raises(OutputError, match=f"would hold the masks of both in/a.jpg and {second}; run them separately"):
        file_jobs(images, Path("out"), ".png")


def test_two_images_of_one_row_are_refused(here):
    touch("x/a.jpg", "y/a.jpg", "y/a.png")
    with pytest.raises(OutputError, match=r"t\.csv: would hold the masks of both x/a\.jpg and y/a\.jpg"):
        table_jobs(find_images(["x", "y"], Path("t.csv")), Path("t.csv"), ".csv")
    assert table_jobs(find_images(["y"], Path("t.csv")), Path("t.csv"), ".csv") == [
        Job(Path("y/a.jpg"), Path("t.csv"), "a.jpg"),
        Job(Path("y/a.png"), Path("t.csv"), "a.png"),
    ]
    with pytest.raises(OutputError, match=r"^masks: expected a file that ends in \.csv"):
        table_jobs([], Path("masks"), ".csv")


def test_images_are_never_written_over(here):
    touch("in/a.jpg", "in/sub/b.png", "other/b.png", "kept/c.png")
    with pytest.raises(OutputError, match=r"^in/sub: holds b\.png itself and perhaps other images"):
        file_jobs(find_images(["in/sub"], Path("in/sub")), Path("in/sub"), ".png")
    Path("out").mkdir()
    Path("out/b.png").hardlink_to("other/b.png")
    with pytest.raises(OutputError, match=r"^out/b\.png: is the image other/b\.png itself; choose another folder"):
        file_jobs(find_images(["other"], Path("out")), Path("out"), ".png")
    Path("out/b.png").unlink()
    Path("out/b.png").symlink_to(here / "kept" / "c.png")
    with pytest.raises(OutputError, match=r"^out/b\.png: is the image kept/c\.png itself"):
        file_jobs(find_images(["other", "kept"], Path("out")), Path("out"), ".png")


def test_output_that_is_called_as_a_file(here):
    touch("a.jpg")
    with pytest.raises(OutputError, match=r"^mask\.png: looks like a file, expected a folder"):
        file_jobs(find_images(["a.jpg"], Path("mask.png")), Path("mask.png"), ".png")


def test_name_keeps_what_is_no_suffix(here):
    touch("v1.2/car.v3.jpg")
    (job,) = file_jobs(find_images(["v1.2"], Path("out")), Path("out"), ".png")
    assert PurePath(job.target) == PurePath("out/car.v3.png")


def test_masks_of_a_data_set_are_left_out_unless_they_are_named(here):
    images = ["data/train_images/a.jpg", "data/val_images/b.png", "data/mask.png", "data/masks/m.png"]
    masks = ["data/train_masks/a_mask.gif", "data/train_masks/c.png", "data/val_images/b_mask.PNG"]
    touch(*images, *masks)
    for asked in ("data", "data/**"):
        others = []
        some = find_images([asked], Path("out"), masks=others)
        assert sorted(str(item.path) for item in some) == sorted(images)
        assert sorted(map(str, others)) == masks
    assert names("data/train_masks") == {"data/train_masks/c.png": "c.png"}
    assert names("data/train_masks/a_mask.gif") == {"data/train_masks/a_mask.gif": "a_mask.gif"}
    assert names("data/train_masks/*.gif") == {"data/train_masks/a_mask.gif": "a_mask.gif"}
    assert names("data/**/*_mask.gif") == {"data/train_masks/a_mask.gif": "train_masks/a_mask.gif"}
    touch("only/a_mask.png")
    with pytest.raises(ImageError) as caught:
        names("only")
    assert str(caught.value) == (
        "only: no images in this folder and below but masks (*_mask.*, *_masks/); to segment these, name the files"
    )
