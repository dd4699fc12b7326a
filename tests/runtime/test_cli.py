"""unet-predict: what is written where, one line for each failure, and the exit code."""

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import time
from importlib.metadata import version

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from waiting import wait_until

from runtime import outputs, rle
from runtime.cli import predict
from runtime.errors import OutputError
from runtime.overlay import COLOURS
from runtime.predictor import Predictor


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

    def call(*arguments, model=None, device="cpu", to=out):
        named = [model or models["brightness"], *arguments, "-o", to, "--device", device]
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
    assert result.stdout == f"3 of 5 written to {out} on cpu, 2 failed\n"
    first, second = result.stderr.splitlines()
    assert first.startswith(f"error: {pictures / 'bad.jpg'}: is not an image of a known format")
    assert second.startswith(f"error: {pictures / 'cut.bmp'}: is damaged or cut off (")
    assert names(out) == ["a.png", "b.png", "c.png"]
    assert (pictures / "c.tif").read_bytes() == whole


def test_only_bad_files_exit_as_an_error(run, pictures, out):
    (pictures / "bad.jpg").write_bytes(b"not a picture")
    result = run(pictures / "bad.jpg")
    assert result.exit_code == 2
    assert result.stdout == f"0 of 1 written to {out} on cpu, 1 failed\n"
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
        f"error: {tmp_path / 'empty'}: no images in this folder and below\n",
    )


def test_out_that_is_a_file_is_one_line(run, pictures, out):
    out.write_text("kept")
    result = run(pictures)
    assert result.exit_code == 2
    assert result.stderr == f"error: {out}: cannot create this folder (file exists); choose another one\n"
    assert out.read_text() == "kept"


def test_folder_in_the_place_of_a_mask_is_refused_before_the_work(run, pictures, out):
    (out / "b.png").mkdir(parents=True)
    result = run(pictures)
    assert result.exit_code == 2
    line = f"{out / 'b.png'}: is a folder, expected a file or nothing; move it or choose another -o"
    assert (result.stdout, result.stderr) == ("", f"error: {line}\n")
    assert names(out) == ["b.png"]


def test_full_disk_stops_with_how_many_were_written(run, pictures, out, monkeypatch):
    def write(path, content):
        if path.name == "b.png":
            raise OutputError(f"{path}: cannot be written (no space left on device); free some space")
        path.write_bytes(content)

    monkeypatch.setattr(outputs, "write_bytes", write)
    result = run(pictures, "--batch-size", 1)
    assert result.exit_code == 2
    assert result.stderr == f"error: {out / 'b.png'}: cannot be written (no space left on device); free some space\n"
    assert result.stdout == f"{len(names(out))} of 3 written to {out} on cpu\n"


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


def test_structure_below_a_folder_is_kept(run, pictures, out):
    (pictures / "sub" / "deep").mkdir(parents=True)
    (pictures / "a.png").rename(pictures / "sub" / "deep" / "a.png")
    (pictures / "b.bmp").rename(pictures / "sub" / "b.bmp")
    assert run(pictures).stdout == f"3 of 3 written to {out} on cpu\n"
    found = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png"))
    assert found == ["c.png", "sub/b.png", "sub/deep/a.png"]
    assert np.array_equal(read(out / "sub" / "deep" / "a.png"), expected_of(pictures / "sub" / "deep" / "a.png"))


def test_what_is_there_is_skipped(run, pictures, out):
    out.mkdir()
    (out / "b.png").write_bytes(b"old")
    (pictures / "bad.jpg").write_bytes(b"no picture")
    result = run(pictures, "--skip-existing")
    assert (result.exit_code, result.stdout) == (1, f"2 of 3 written to {out} on cpu, 1 failed, 1 skipped\n")
    assert (out / "b.png").read_bytes() == b"old"
    (pictures / "bad.jpg").unlink()
    result = run(pictures, "--skip-existing")
    assert (result.exit_code, result.stdout) == (0, f"0 of 0 written to {out} on cpu, 3 skipped\n")


@pytest.fixture
def row(tmp_path):
    """One picture of three pixels, of brightness 0, 100 and 200 of 255."""
    Image.fromarray(np.array([[[0] * 3, [100] * 3, [200] * 3]], np.uint8)).save(tmp_path / "row.png")
    return tmp_path / "row.png"


def test_formats(run, row, out):
    assert run(row, "--format", "probability").exit_code == 0
    assert read(out / "row.png").tolist() == [[0, 25_700, 51_400]]
    assert run(row, "--format", "cutout").exit_code == 0
    assert read(out / "row.png").tolist() == [[[0, 0, 0, 0], [100, 100, 100, 100], [200, 200, 200, 200]]]
    assert run(row, "--format", "npy").exit_code == 0
    assert np.load(out / "row.npy").tolist() == brightness(0, 100, 200)


def brightness(*levels):
    return [[[float(np.float32(level) / np.float32(255)) for level in levels]]]


def test_probability_of_several_classes_is_that_of_all_but_the_first(run, tmp_path, out, models, answers):
    pixels = np.array([[[255, 0, 0], [90, 100, 110]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "p.png")
    assert run(tmp_path / "p.png", "--format", "probability", model=models["softmax"]).exit_code == 0
    expected = 65_535 * answers["softmax"](pixels[None])[0, 1:].sum(axis=0)
    assert np.abs(read(out / "p.png") - expected).max() < 1


def test_another_threshold(run, row, out, models):
    assert run(row, "--threshold", 0.3).exit_code == 0
    assert read(out / "row.png").tolist() == [[0, 255, 255]]
    result = run(row, "--threshold", 0.3, model=models["softmax"])
    line = f"--threshold: is for one class, {models['softmax']} has 3 and takes the most probable"
    assert (result.exit_code, result.stderr) == (2, f"error: {line}\n")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--threshold", 0.3, "--format", "npy"], "--threshold changes nothing with --format npy"),
        (["--overlap", 0.5], "--overlap is for --tile"),
        (["--size", "12"], "Invalid value for '--size': '12' is not a size; expected for example 1918x1280"),
    ],
)
def test_options_that_say_nothing_are_usage_errors(run, row, out, options, line):
    result = run(row, *options)
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (2, f"Error: {line}")
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "asking"),
    [
        (["--size", "8x4"], {"size": (4, 8)}),
        (["--size", "native"], {"size": "native"}),
        (["--tile", "8x4"], {"tile": (4, 8)}),
        (["--tile", "8x4", "--overlap", 0.5], {"tile": (4, 8), "overlap": 0.5}),
        (["--tta", "flip"], {"tta": "flip"}),
        (["--tta", "d4", "--batch-size", 3], {"tta": "d4"}),
    ],
)
def test_options_are_those_of_predict(run, tmp_path, out, models, options, asking):
    pixels = np.random.default_rng(3).integers(0, 256, (9, 13, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "p.png")
    assert run(tmp_path / "p.png", "--format", "npy", *options, model=models["conv"]).exit_code == 0
    expected = Predictor(models["conv"], "cpu").predict(pixels, **asking).probability
    assert np.array_equal(np.load(out / "p.npy"), expected)


def test_one_table_of_run_lengths(run, pictures, out):
    (pictures / "sub").mkdir()
    (pictures / "b.bmp").rename(pictures / "sub" / "b.bmp")
    table = out / "masks.csv"
    arguments = [pictures, "--format", "rle-csv"]
    assert run(*arguments, to=table).stdout == f"3 of 3 written to {table} on cpu\n"
    masks = {name: (expected_of(pictures / name) > 0) for name in ("a.png", "c.tif", "sub/b.bmp")}
    whole = "img,rle_mask\n" + "".join(f"{name},{rle.encode(mask)}\n" for name, mask in masks.items())
    assert table.read_text() == whole
    table.write_text("img,rle_mask\na.png,1 1\n")
    assert run(*arguments, "--skip-existing", to=table).stdout == f"2 of 2 written to {table} on cpu, 1 skipped\n"
    assert table.read_text() == whole.replace(whole.splitlines()[1], "a.png,1 1")


def test_table_that_is_none_is_not_added_to(run, row, out):
    out.mkdir()
    (out / "t.csv").write_text("name,mask\n")
    result = run(row, "--format", "rle-csv", "--skip-existing", to=out / "t.csv")
    line = f"{out / 't.csv'}: is no table of img,rle_mask, so nothing can be added; remove it"
    assert (result.exit_code, result.stderr) == (2, f"error: {line}\n")
    assert (out / "t.csv").read_text() == "name,mask\n"


def test_pipe_takes_an_image_and_gives_its_mask(models, pictures):
    arguments = [str(models["brightness"]), "-", "--device", "cpu"]
    result = CliRunner().invoke(predict, arguments, input=(pictures / "c.tif").read_bytes())
    assert (result.exit_code, result.stderr) == (0, "")
    assert np.array_equal(read(io.BytesIO(result.stdout_bytes)), expected_of(pictures / "c.tif"))
    result = CliRunner().invoke(predict, [*arguments, "--format", "npy"], input=(pictures / "c.tif").read_bytes())
    assert np.load(io.BytesIO(result.stdout_bytes)).shape == (1, 8, 12)
    result = CliRunner().invoke(predict, arguments, input=b"")
    assert (result.exit_code, result.stdout_bytes) == (2, b"")
    assert result.stderr.endswith(": is empty (0 bytes), expected an image\n")
    result = CliRunner().invoke(predict, [*arguments, str(pictures / "c.tif")], input=b"")
    assert result.stderr.endswith("Error: - is one image to standard output: no other images, no -o, no rle-csv\n")


def test_version_is_that_of_the_distribution():
    assert CliRunner().invoke(predict, ["--version"], prog_name="p").stdout == f"p {version('unet-deploy')}\n"


@pytest.mark.parametrize("kind", ["mask", "rle-csv"])
def test_interrupt_leaves_whole_files_and_says_how_many(tmp_path, models, root, kind):
    folder, out = tmp_path / "in", tmp_path / ("out.csv" if kind == "rle-csv" else "out")
    folder.mkdir()
    Image.effect_noise((300, 300), 90).convert("RGB").save(folder / "0.png")
    for index in range(1, 4_000):
        (folder / f"{index}.png").hardlink_to(folder / "0.png")
    program = "import sys; from runtime.cli import predict; print('begins', flush=True); predict(prog_name='p')"
    command = [sys.executable, "-c", program, models["conv"], folder, "-o", out, "--device", "cpu", "--format", kind]
    process = subprocess.Popen(
        list(map(str, command)), cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "begins\n"
    temporary = tmp_path if kind == "rle-csv" else out
    wait_until(lambda: temporary.is_dir() and any(".out." in path.name or out.is_dir() for path in temporary.iterdir()))
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=20)
    assert (process.returncode, stderr) == (130, "interrupted\n")
    count = int(stdout.split()[0])
    assert 0 < count < 4_000
    assert stdout == f"{count} of 4000 written to {out} on cpu\n"
    if kind == "rle-csv":
        rows = out.read_text().splitlines()
        assert len(rows) == count + 1 and len({row.partition(",")[2] for row in rows[1:]}) == 1
    else:
        assert len(names(out)) == count and {read(path).shape for path in out.iterdir()} == {(300, 300)}


def test_terminal_shows_progress_and_gets_no_bytes(pictures, out, models, root):
    pty = pytest.importorskip("pty")
    program = "from runtime.cli import predict; predict(prog_name='p')"
    command = [sys.executable, "-c", program, str(models["brightness"])]

    def shown(*arguments):
        ours, theirs = pty.openpty()
        done = subprocess.Popen([*command, *map(str, arguments)], cwd=root, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        text = b""
        with contextlib.suppress(OSError):  # Linux ends a terminal with an error
            while piece := os.read(ours, 4096):
                text += piece
        os.close(ours)
        return done.wait(), text.decode()

    (pictures / "bad.jpg").write_bytes(b"no picture")
    code, text = shown(pictures, "-o", out, "--device", "cpu")
    assert code == 1
    assert "4/4" in text and re.search(r"\d\.\d images/s", text)
    assert re.search(r"\r\x1b\[Kerror: \S+bad\.jpg: is not an image", text)
    code, text = shown("-")
    assert (code, text.splitlines()[-1]) == (
        2,
        "Error: - reads an image from standard input, which is a terminal; use < or |",
    )
