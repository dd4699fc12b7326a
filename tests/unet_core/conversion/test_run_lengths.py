"""Kaggle's tables of run lengths to masks."""

import numpy as np
import pytest
from layouts import blocks, convert, converted, run, write_image
from PIL import Image

from runtime.rle import encode

CAR = blocks((3, 9, 4, 20, 1))
SHIP = blocks((10, 12, 4, 9, 1))


def write_table(path, text, *images):
    for index, image in enumerate(images):
        write_image(path.parent / image, index)
    path.write_text(text)
    return path


def test_carvana_as_it_unpacks_counts_along_the_rows(tmp_path):
    text = f"img,rle_mask\na_01.jpg,{encode(CAR)}\nb_01.jpg,\n"
    write_table(tmp_path / "train_masks.csv", text, "train/train/a_01.jpg", "train/train/b_01.jpg")
    done = convert(tmp_path, tmp_path / "out")
    labels, settings = converted(tmp_path / "out")
    assert settings == {"classes": ("foreground",)}
    assert np.array_equal(labels["train/a_01"], CAR) and not labels["train/b_01"].any()
    assert "(rle)" in done.stdout and "2 in train_images (2 linked)" in done.stdout


def test_other_competitions_count_down_the_columns_and_have_a_row_for_each_region(tmp_path):
    rows = [encode(np.ascontiguousarray(mask.T)) for mask in (CAR, SHIP)]
    text = f"ImageId,EncodedPixels\na.jpg,{rows[0]}\na.jpg,{rows[1]}\nb.jpg,\n"
    path = write_table(tmp_path / "source" / "ships.csv", text, "images/a.jpg", "images/b.jpg")
    convert(path, tmp_path / "out", "--classes", "ship")
    labels, settings = converted(tmp_path / "out")
    assert settings == {"classes": ("ship",)}
    assert np.array_equal(labels["train/a"], CAR | SHIP) and not labels["train/b"].any()
    convert(path, tmp_path / "rows", "--rle-order", "rows")
    assert not np.array_equal(converted(tmp_path / "rows")[0]["train/a"], CAR | SHIP)


@pytest.mark.parametrize("header", ["ImageId,ClassId", "Image_Label", "ImageId_ClassId"])
def test_tables_with_classes(tmp_path, header):
    rows = [encode(np.ascontiguousarray(mask.T)) for mask in (CAR, SHIP)]
    separator = "," if "," in header else "_"
    kinds = ("Fish", "Sugar") if header.startswith("Image_Label") else ("1", "2")
    text = "\n".join(
        [
            f"{header},EncodedPixels",
            *(f"a.jpg{separator}{kind},{row}" for kind, row in zip(kinds, rows, strict=True)),
            "",
        ]
    )
    text += f"b.jpg{separator}{kinds[1]},\n"
    write_table(tmp_path / "source" / "train.csv", text, "a.jpg", "b.jpg")
    convert(tmp_path / "source", tmp_path / "out")
    labels, settings = converted(tmp_path / "out")
    names = ("Fish", "Sugar") if header.startswith("Image_Label") else ("class 1", "class 2")
    assert settings == {"classes": ("background", *names)}
    assert np.array_equal(labels["train/a"], CAR + 2 * SHIP) and not labels["train/b"].any()


def test_the_table_of_training_is_taken_and_masks_are_no_images(tmp_path):
    """Sample submissions have the same header, and TGS Salt has masks of the images' names."""
    text = f"id,rle_mask\na,{encode(np.ascontiguousarray(CAR.T))}\nb,\n"
    images = ["train/images/a.png", "train/images/b.png", "train/masks/a.png", "train/masks/b.png"]
    write_table(tmp_path / "train.csv", text, *images)
    (tmp_path / "sample_submission.csv").write_text("id,rle_mask\nx,1 1\n")
    (tmp_path / "depths.csv").write_text("id,z\na,1\n")
    convert(tmp_path, tmp_path / "out")
    labels, _ = converted(tmp_path / "out")
    assert np.array_equal(labels["train/a"], CAR) and not labels["train/b"].any()
    done = run("convert", tmp_path, tmp_path / "two", "--classes", "a,b")
    assert done.stderr == f"error: --classes: {tmp_path / 'train.csv'} has one class, found 2 names; give one\n"


def test_runs_that_do_not_fit_are_refused(tmp_path):
    write_table(tmp_path / "m.csv", "img,rle_mask\na.jpg,1 9999\nb.jpg,\n", "a.jpg", "b.jpg")
    done = run("convert", tmp_path, tmp_path / "out")
    assert done.exit_code == 2
    assert "has invalid run lengths" in done.stderr and "run 1 is 1 9999" in done.stderr
    (tmp_path / "m.csv").write_text("img,rle_mask\na.jpg\n")
    done = run("convert", tmp_path, tmp_path / "out")
    assert done.stderr == f"error: {tmp_path / 'm.csv'}: line 2 has 1 cells, expected 2\n"
    (tmp_path / "m.csv").write_text("img,rle_mask\n")
    done = run("convert", tmp_path, tmp_path / "out")
    assert done.stderr == f"error: {tmp_path / 'm.csv'}: has no rows below its header\n"


def test_images_without_a_row_are_told(tmp_path):
    """Severstal's table has rows of images with defects alone."""
    write_table(tmp_path / "train.csv", "ImageId,EncodedPixels\na.jpg,1 3\n", *(f"train/{name}.jpg" for name in "abc"))
    write_image(tmp_path / "test" / "d.jpg")
    done = convert(tmp_path, tmp_path / "out")
    assert done.stderr == (
        f"note: {tmp_path / 'train.csv'}: 2 images have no row and are left out: train/b.jpg, train/c.jpg; add rows "
        "without run lengths for those that have no foreground\n"
    )


def test_what_is_no_table_of_run_lengths_is_passed_over(tmp_path):
    """A table without a header that begins with long run lengths, and a folder that is called like a table."""
    for kind, value in (("images", 0), ("masks", 255)):
        write_image(tmp_path / "source" / kind / "a.png")
        if value:
            Image.new("L", (32, 24), value).save(tmp_path / "source" / kind / "a.png")
    (tmp_path / "source" / "old.csv").mkdir()
    table = tmp_path / "source" / "masks.csv"
    table.write_text(f"a.png,{'1 3 ' * 50_000}\n")
    assert "(folders)" in convert(tmp_path / "source", tmp_path / "out").stdout
    done = run("convert", table, tmp_path / "again")
    assert done.stderr == (
        f"error: {table}: is in no known layout; expected a folder, COCO's JSON, or a CSV file of run lengths with a "
        "header such as img,rle_mask or ImageId,EncodedPixels\n"
    )
