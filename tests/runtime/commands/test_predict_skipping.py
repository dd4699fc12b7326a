"""unet-predict --skip-existing: what counts as finished, and what is done about the rest."""

import os
import zlib

import numpy as np
import pytest
from masks import names_in, pixels_of
from pictures import encoded
from PIL import Image

from runtime.model_file.reader import read_model
from runtime.output_formats import TABLES
from runtime.predictor import Predictor


@pytest.fixture
def closed(monkeypatch):
    """No model may be opened."""
    monkeypatch.setattr(Predictor, "__init__", lambda *_: pytest.fail("a model was opened"))


def kept(folder):
    """{name: what changes when a file is replaced}."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}


@pytest.fixture
def finish(run_predict, pictures, out):
    """Write the answers of all three pictures; return what they are known by."""

    def run(*options):
        assert run_predict(pictures, *options).exit_code == 0
        return kept(out)

    return run


@pytest.mark.parametrize("kind", ["mask", "probability", "npy", "overlay", "cutout", "palette", "geojson"])
def test_all_that_is_there_is_told_without_opening_the_model(run_predict, pictures, out, finish, request, kind):
    before = finish("--format", kind)
    request.getfixturevalue("closed")
    result = run_predict(pictures, "--format", kind, "--skip-existing")
    assert (result.exit_code, result.stdout, result.stderr) == (
        0,
        f"nothing to do: 3 of 3 are in {out} already\n",
        "",
    )
    assert kept(out) == before


def test_what_is_missing_is_written_and_the_rest_left_alone(run_predict, pictures, out, finish):
    before = finish()
    (out / "c.png").unlink()
    (pictures / "bad.jpg").write_bytes(b"no picture")
    result = run_predict(pictures, "--skip-existing")
    assert (result.exit_code, result.stdout) == (1, f"1 of 2 written to {out} on cpu, 1 failed, 2 skipped\n")
    after = kept(out)
    assert after.keys() == before.keys()
    assert {name for name in before if after[name] != before[name]} == {"c.png"}


def test_large_image_is_finished_if_it_is_allowed(run_predict, pictures, out, closed):
    """At 202.5 million pixels: the files' headers alone are read, so their pixels are not there."""
    size = (15_000).to_bytes(4, "big") + (13_500).to_bytes(4, "big")
    image, mask = encoded(Image.new("RGB", (8, 8))), encoded(Image.new("L", (8, 8)))
    for path, small in ((pictures / "a.png", image), (out / "a.png", mask)):
        path.parent.mkdir(exist_ok=True)
        header = b"IHDR" + size + small[24:29]
        path.write_bytes(small[:12] + header + zlib.crc32(header).to_bytes(4, "big") + small[33:])
    allowed = ("--skip-existing", "--max-pixels", 202_500_000)
    result = run_predict(pictures / "a.png", *allowed)
    assert (result.exit_code, result.output) == (0, f"nothing to do: 1 of 1 are in {out} already\n")


KINDS = {"mask": ("L", np.uint8), "probability": ("I;16", np.uint16), "overlay": ("RGB", np.uint8)}


@pytest.mark.parametrize(
    ("before", "after"), [("overlay", "mask"), ("mask", "probability"), ("cutout", "overlay"), ("palette", "mask")]
)
def test_files_of_another_format_are_written_anew_and_told(run_predict, pictures, out, finish, before, after):
    finish("--format", before)
    result = run_predict(pictures, "--format", after, "--skip-existing")
    assert (result.exit_code, result.stdout) == (0, f"3 of 3 written to {out} on cpu\n")
    assert result.stderr == "note: 3 of 3 files are truncated or of another format or size; writing them again\n"
    with Image.open(out / "c.png") as picture:
        assert (picture.mode, np.asarray(picture).dtype) == KINDS[after]


@pytest.mark.parametrize("kind", ["mask", "npy", "palette", "geojson"])
@pytest.mark.parametrize("rest", [0, 20, -1])
def test_a_file_that_is_cut_off_is_written_anew(run_predict, pictures, out, finish, kind, rest):
    finish("--format", kind)
    path = next(path for path in out.iterdir() if path.stem == "c")
    whole = path.read_bytes()
    path.write_bytes(whole[:rest])
    result = run_predict(pictures, "--format", kind, "--skip-existing")
    assert result.stdout == f"1 of 1 written to {out} on cpu, 2 skipped\n"
    assert path.read_bytes() == whole


@pytest.mark.parametrize("kind", ["mask", "npy", "palette", "geojson"])
def test_an_image_that_has_another_size_now_is_done_again(run_predict, pictures, out, finish, kind):
    finish("--format", kind)
    Image.new("RGB", (12, 9)).save(pictures / "c.tif")
    assert run_predict(pictures, "--format", kind, "--skip-existing").stdout.startswith("1 of 1 written")
    assert run_predict(pictures, "--format", kind, "--skip-existing").stdout.startswith("nothing to do: 3 of 3")


@pytest.mark.parametrize("kind", ["mask", "npy"])
def test_the_mask_of_a_turned_photo_is_finished(run_predict, tmp_path, out, kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (4, 9)).save(tmp_path / "turned.jpg", exif=exif)
    arguments = [tmp_path / "turned.jpg", "--format", kind, "--skip-existing"]
    run_predict(*arguments)
    if kind == "mask":
        assert pixels_of(out / "turned.png").shape == (4, 9)
    assert run_predict(*arguments).stdout.startswith("nothing to do: 1 of 1")


def test_masks_of_several_classes_and_npy_of_another_model(run_predict, pictures, out, models):
    for kind in ("mask", "npy"):
        run_predict(pictures, "--format", kind, model=models["softmax"])
        found = run_predict(pictures, "--format", kind, "--skip-existing", model=models["softmax"])
        assert found.stdout.startswith("nothing to do: 3 of 3")
    assert run_predict(pictures, "--format", "npy", "--skip-existing").stdout.startswith("3 of 3 written")
    assert np.load(out / "c.npy").shape == (1, 8, 12)


@pytest.mark.parametrize("kind", TABLES)
def test_a_file_that_has_all_images_is_left_as_it_is(run_predict, pictures, tmp_path, request, kind):
    table = tmp_path / f"t{TABLES[kind].suffix}"
    arguments = [pictures, "--format", kind, "--skip-existing"]
    assert run_predict(*arguments, to=table).stdout == f"3 of 3 written to {table} on cpu\n"
    request.getfixturevalue("closed")
    before = kept(tmp_path)[table.name]
    assert run_predict(*arguments, to=table).stdout == f"nothing to do: 3 of 3 are in {table} already\n"
    assert kept(tmp_path)[table.name] == before


@pytest.mark.parametrize("kind", TABLES)
def test_images_that_a_file_lacks_are_added_to_it(run_predict, pictures, tmp_path, kind):
    table, whole = (tmp_path / f"{name}{TABLES[kind].suffix}" for name in ("t", "whole"))
    assert run_predict(pictures, "--format", kind, to=whole).exit_code == 0
    for name in ("a.png", "b.bmp"):
        assert run_predict(pictures / name, "--format", kind, "--skip-existing", to=table).exit_code == 0
    arguments = [pictures, "--format", kind, "--skip-existing"]
    assert run_predict(*arguments, to=table).stdout == f"1 of 1 written to {table} on cpu, 2 skipped\n"
    assert table.read_bytes() == whole.read_bytes()


def test_a_coco_file_of_other_classes_is_refused_before_the_work(run_predict, pictures, tmp_path, models, request):
    table = tmp_path / "t.json"
    run_predict(pictures, "--format", "coco", to=table)
    before = table.read_bytes()
    request.getfixturevalue("closed")
    options = ["--format", "coco", "--skip-existing"]
    result = run_predict(pictures, *options, to=table, model=models["softmax"])
    classes = ", ".join(read_model(models["softmax"])[0].output.classes[1:])
    assert (result.exit_code, result.stdout, result.stderr) == (
        2,
        "",
        f"error: {table}: is not a whole COCO file of this command with run lengths of the classes {classes}, so "
        "nothing can be added; remove it\n",
    )
    assert table.read_bytes() == before


def test_a_legend_that_lacks_is_written_and_one_of_other_classes_is_refused(
    run_predict, pictures, out, finish, models, request
):
    finish("--format", "palette")
    legend = out / "legend.csv"
    whole = legend.read_bytes()
    legend.unlink()
    arguments = [pictures, "--format", "palette", "--skip-existing"]
    assert run_predict(*arguments).stdout == f"nothing to do: 3 of 3 are in {out} already\n"
    assert legend.read_bytes() == whole
    (out / "c.png").unlink()
    request.getfixturevalue("closed")
    refused = run_predict(*arguments, model=models["softmax"])
    assert (refused.exit_code, refused.stdout, refused.stderr) == (
        2,
        "",
        f"error: {legend}: is not the legend of this model, so the files beside it may have other classes; leave out "
        "--skip-existing, or choose another folder with -o\n",
    )
    assert (legend.read_bytes(), names_in(out)) == (whole, ["a.png", "b.png", "legend.csv"])


def test_a_wrong_model_is_told_though_all_is_there(run_predict, pictures, out, finish, tmp_path):
    finish()
    result = run_predict(pictures, "--skip-existing", model=tmp_path / "gone.onnx")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {tmp_path / 'gone.onnx'}: no such file")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_in_the_place_of_a_mask_is_not_waited_for(run_predict, pictures, out, finish):
    finish()
    (out / "c.png").unlink()
    os.mkfifo(out / "c.png")
    assert run_predict(pictures, "--skip-existing").stdout == f"1 of 1 written to {out} on cpu, 2 skipped\n"
    assert names_in(out) == ["a.png", "b.png", "c.png"] and (out / "c.png").is_file()


@pytest.mark.parametrize("rest", ["c.tif,5 ", "c.tif,5 1 9", "c.tif,5 1", "c.t"])
def test_a_row_that_is_cut_off_is_made_anew(run_predict, pictures, tmp_path, rest):
    table, arguments = tmp_path / "t.csv", [pictures, "--format", "rle-csv", "--skip-existing"]
    run_predict(*arguments, to=table)
    whole = table.read_text()
    table.write_text(whole[: whole.index("c.tif")] + rest)
    assert run_predict(*arguments, to=table).stdout == f"1 of 1 written to {table} on cpu, 2 skipped\n"
    assert table.read_text() == whole


def test_a_row_whose_last_length_lacks_is_made_anew(run_predict, pictures, tmp_path):
    table, arguments = tmp_path / "t.csv", [pictures, "--format", "rle-csv", "--skip-existing"]
    table.write_text("img,rle_mask\na.png,5 1 9\n")
    assert run_predict(*arguments, to=table).stdout == f"3 of 3 written to {table} on cpu\n"
