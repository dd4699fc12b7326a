"""unet-predict: what is written where, one line for each failure, and the exit code."""

import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from runtime.cli import plan, predict
from runtime.errors import ImageError, OutputError
from runtime.overlay import COLOURS


@pytest.fixture
def pictures(tmp_path):
    """A folder of three pictures of different sizes; the value of a pixel is its grey level in all channels."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name, size in (("a.png", (3, 5)), ("b.bmp", (1, 1)), ("c.tif", (8, 12))):
        grey = np.random.default_rng(len(name) + size[1]).integers(0, 256, size, np.uint8)
        Image.fromarray(np.dstack([grey] * 3)).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def run(models, out):
    """Run unet-predict on the CPU with the brightness model."""

    def call(*arguments, model=None, device="cpu"):
        named = [model or models["brightness"], *arguments, "-o", out, "--device", device]
        return CliRunner().invoke(predict, [str(item) for item in named])

    return call


def expected_of(path):
    with Image.open(path) as picture:
        return np.where(np.asarray(picture)[:, :, 0] > 127, 255, 0)


def read(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_folder_gives_a_mask_for_each_image_at_its_own_size(run, pictures, out):
    result = run(pictures)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"3 of 3 written to {out} on cpu\n"
    assert names(out) == ["a.png", "b.png", "c.png"]
    for source in ("a.png", "b.bmp", "c.tif"):
        mask = read(out / f"{source[0]}.png")
        assert mask.dtype == np.uint8
        assert np.array_equal(mask, expected_of(pictures / source))


def test_files_and_folders_may_be_mixed_and_named_twice(run, pictures, out):
    result = run(pictures / "c.tif", pictures, pictures / "c.tif")
    assert result.exit_code == 0
    assert result.stdout == f"3 of 3 written to {out} on cpu\n"


def test_single_file_is_written_alone_and_over_an_old_mask(run, pictures, out):
    out.mkdir()
    (out / "b.png").write_bytes(b"old")
    assert run(pictures / "b.bmp").exit_code == 0
    assert names(out) == ["b.png"]
    assert read(out / "b.png").shape == (1, 1)


def test_several_classes_are_written_as_indices(run, tmp_path, out, models):
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    Image.fromarray(colours).save(tmp_path / "rgb.png")
    assert run(tmp_path / "rgb.png", model=models["softmax"]).exit_code == 0
    assert read(out / "rgb.png").tolist() == [[0, 1, 2]]


def test_overlay_tints_the_foreground(run, tmp_path, out):
    Image.fromarray(np.array([[[100] * 3, [200] * 3]], np.uint8)).save(tmp_path / "p.png")
    assert run(tmp_path / "p.png", "--format", "overlay").exit_code == 0
    tinted = [round((200 + colour) / 2) for colour in COLOURS[0]]
    assert read(out / "p.png").tolist() == [[[100, 100, 100], tinted]]


def test_one_bad_file_among_good_ones_is_told_and_the_rest_written(run, pictures, out):
    (pictures / "bad.jpg").write_bytes(b"not a picture")
    whole = (pictures / "c.tif").read_bytes()
    (pictures / "cut.bmp").write_bytes((pictures / "b.bmp").read_bytes()[:-2])
    result = run(pictures)
    assert result.exit_code == 1
    assert result.stdout == f"3 of 5 written to {out} on cpu\n"
    first, second = result.stderr.splitlines()
    assert first.startswith(f"error: {pictures / 'bad.jpg'}: is not an image of a known format")
    assert second.startswith(f"error: {pictures / 'cut.bmp'}: is damaged or cut off (")
    assert names(out) == ["a.png", "b.png", "c.png"]
    assert (pictures / "c.tif").read_bytes() == whole


def test_only_bad_files_exit_as_an_error(run, pictures, out):
    (pictures / "bad.jpg").write_bytes(b"not a picture")
    result = run(pictures / "bad.jpg")
    assert result.exit_code == 2
    assert result.stdout == f"0 of 1 written to {out} on cpu\n"
    assert len(result.stderr.splitlines()) == 1
    assert names(out) == []


@pytest.mark.parametrize("first_is_folder", [False, True])
def test_two_images_of_one_name_are_refused(run, pictures, out, first_is_folder):
    other = pictures.parent / "other"
    other.mkdir()
    Image.new("RGB", (2, 2)).save(other / "a.bmp")
    result = run(pictures if first_is_folder else pictures / "a.png", other)
    assert result.exit_code == 2
    line = f"would hold the masks of both {pictures / 'a.png'} and {other / 'a.bmp'}; run them apart"
    assert result.stderr == f"error: {out / 'a.png'}: {line}\n"
    assert not out.exists()


def test_mask_is_never_written_over_its_image(run, pictures, out):
    before = (pictures / "a.png").read_bytes()
    out.symlink_to(pictures)
    result = run(pictures / "a.png")
    assert result.exit_code == 2
    message = f"{out}: holds a.png itself and perhaps other images; choose another folder with -o"
    assert result.stderr == f"error: {message}\n"
    assert (pictures / "a.png").read_bytes() == before


def test_missing_model_is_one_line_and_makes_no_folder(run, pictures, out, tmp_path):
    result = run(pictures, model=tmp_path / "gone.onnx")
    assert result.exit_code == 2
    assert result.stderr == f"error: {tmp_path / 'gone.onnx'}: no such file; make it with: unet-export model.pth\n"
    assert result.stdout == ""
    assert not out.exists()


def test_nonsense_device_is_one_line(run, pictures, out):
    result = run(pictures, device="gpu")
    assert result.exit_code == 2
    assert result.stderr == "error: device 'gpu': expected auto, cpu, cuda, cuda:N, tensorrt or tensorrt:N\n"
    assert not out.exists()


def test_missing_image_stops_before_anything_is_written(run, pictures, out):
    result = run(pictures, pictures / "gone.png")
    assert result.exit_code == 2
    assert result.stderr == f"error: {pictures / 'gone.png'}: no such file or folder\n"
    assert not out.exists()


def test_folder_without_images_says_so(run, tmp_path):
    (tmp_path / "empty").mkdir()
    result = run(tmp_path / "empty")
    assert (result.exit_code, result.stderr) == (
        2,
        f"error: {tmp_path / 'empty'}: no images in this folder (its sub-folders are not searched)\n",
    )


def test_out_that_is_a_file_is_one_line(run, pictures, out):
    out.write_text("kept")
    result = run(pictures)
    assert result.exit_code == 2
    assert result.stderr == f"error: {out}: cannot create this folder (file exists); choose another one\n"
    assert out.read_text() == "kept"


def test_mask_that_cannot_be_written_stops_with_one_line_and_no_half_file(run, pictures, out):
    (out / "b.png").mkdir(parents=True)
    result = run(pictures)
    assert result.exit_code == 2
    assert result.stderr == f"error: {out / 'b.png'}: is a folder, expected a file name; add one\n"
    assert names(out) == ["a.png", "b.png"]
    assert np.array_equal(read(out / "a.png"), expected_of(pictures / "a.png"))


@pytest.mark.filterwarnings("default::runtime.errors.DeviceWarning")
def test_auto_notes_once_what_was_skipped(cpu_build, run, pictures):
    result = run(pictures, device="auto")
    assert result.exit_code == 0
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("note: running on cpu; tensorrt skipped: the installed ONNX Runtime")


def test_no_images_is_a_usage_error(models, out):
    result = CliRunner().invoke(predict, [str(models["brightness"]), "-o", str(out)])
    assert result.exit_code == 2
    assert "Missing argument 'IMAGES...'" in result.stderr


def test_command_runs_in_a_process_of_its_own(pictures, out, models, root):
    program = "from runtime.cli import predict; predict(prog_name='unet-predict')"
    command = [sys.executable, "-c", program, models["brightness"], pictures, "-o", out, "--device", "cpu"]
    done = subprocess.run(list(map(str, command)), cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"3 of 3 written to {out} on cpu\n", "")
    done = subprocess.run([*map(str, command[:3]), "gone.onnx", *map(str, command[4:])], cwd=root, capture_output=True)
    assert done.returncode == 2
    assert done.stderr == b"error: gone.onnx: no such file; make it with: unet-export model.pth\n"


def test_plan_names_each_mask_after_its_image(pictures, out):
    assert plan([pictures], out) == {
        pictures / f"{name}": out / f"{name[0]}.png" for name in ("a.png", "b.bmp", "c.tif")
    }
    assert plan([pictures / "a.png"], pictures.parent) == {pictures / "a.png": pictures.parent / "a.png"}
    with pytest.raises(OutputError, match=r"holds a\.png itself and perhaps other images"):
        plan([pictures / "a.png"], pictures)
    with pytest.raises(ImageError, match="no such file or folder"):
        plan([pictures / "z.png"], out)


def test_names_that_differ_in_case_only_are_one_file_on_many_disks(pictures, out, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "A.png").write_bytes((pictures / "a.png").read_bytes())
    with pytest.raises(
        OutputError, match=r"A\.png: would hold the masks of both .*a\.png and .*A\.png; run them apart"
    ):
        plan([pictures, tmp_path / "other"], out)
