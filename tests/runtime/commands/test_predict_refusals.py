"""unet-predict: one line for each failure, the exit code, and nothing written that should not be."""

import pytest
from click.testing import CliRunner
from masks import names_in
from PIL import Image

from runtime import output_formats
from runtime.commands.predict import predict
from runtime.errors import OutputError
from runtime.support.files import replacing


def test_one_bad_file_among_good_ones_is_told_and_the_rest_written(run_predict, pictures, out):
    (pictures / "bad.jpg").write_bytes(b"not a picture")
    whole = (pictures / "c.tif").read_bytes()
    (pictures / "cut.bmp").write_bytes((pictures / "b.bmp").read_bytes()[:-2])
    result = run_predict(pictures)
    assert result.exit_code == 1
    assert result.stdout == f"3 of 5 written to {out} on cpu, 2 failed\n"
    first, second = result.stderr.splitlines()
    assert first.startswith(f"error: {pictures / 'bad.jpg'}: is not an image of a known format")
    assert second.startswith(f"error: {pictures / 'cut.bmp'}: is damaged or truncated (")
    assert names_in(out) == ["a.png", "b.png", "c.png"]
    assert (pictures / "c.tif").read_bytes() == whole


def test_only_bad_files_exit_as_an_error(run_predict, pictures, out):
    (pictures / "bad.jpg").write_bytes(b"not a picture")
    result = run_predict(pictures / "bad.jpg")
    assert result.exit_code == 2
    assert result.stdout == f"0 of 1 written to {out} on cpu, 1 failed\n"
    assert len(result.stderr.splitlines()) == 1
    assert names_in(out) == []


def test_image_of_too_many_pixels_is_refused_with_the_option_that_takes_it(run_predict, pictures, out):
    result = run_predict(pictures, "--max-pixels", 95)
    assert (result.exit_code, result.stdout) == (1, f"2 of 3 written to {out} on cpu, 1 failed\n")
    assert result.stderr == (
        f"error: {pictures / 'c.tif'}: has 12 x 8 pixels, expected at most 95 in all; "
        "make it smaller, or allow more with --max-pixels 96\n"
    )
    assert run_predict(pictures, "--max-pixels", 96).exit_code == 0
    assert names_in(out) == ["a.png", "b.png", "c.png"]
    for value in ("0", "10000000001", "1e6"):
        refused = run_predict(pictures, "--max-pixels", value)
        assert refused.exit_code == 2 and "Error: Invalid value for '--max-pixels': " in refused.stderr


def test_pipe_names_the_option_too(models, pictures):
    content = (pictures / "c.tif").read_bytes()
    result = CliRunner().invoke(predict, [str(models["brightness"]), "-", "--max-pixels", "95"], input=content)
    assert result.exit_code == 2
    assert result.stderr.endswith(
        "has 12 x 8 pixels, expected at most 95 in all; make it smaller, or allow more with --max-pixels 96\n"
    )


@pytest.mark.parametrize("first_is_folder", [False, True])
def test_two_images_of_one_name_are_refused(run_predict, pictures, out, first_is_folder):
    other = pictures.parent / "other"
    other.mkdir()
    Image.new("RGB", (2, 2)).save(other / "a.bmp")
    result = run_predict(pictures if first_is_folder else pictures / "a.png", other)
    assert result.exit_code == 2
    line = f"would hold the masks of both {pictures / 'a.png'} and {other / 'a.bmp'}; run them separately"
    assert result.stderr == f"error: {out / 'a.png'}: {line}\n"
    assert not out.exists()


def test_mask_is_never_written_over_its_image(run_predict, pictures, out):
    before = (pictures / "a.png").read_bytes()
    out.symlink_to(pictures)
    result = run_predict(pictures / "a.png")
    assert result.exit_code == 2
    message = f"{out}: holds a.png itself and perhaps other images; choose another folder with -o"
    assert result.stderr == f"error: {message}\n"
    assert (pictures / "a.png").read_bytes() == before


def test_links_in_the_output_folder_are_not_followed(run_predict, pictures, out, tmp_path):
    """The folder itself may be a link, since the user named it; a table may be one, too."""
    there, elsewhere = tmp_path / "there", tmp_path / "elsewhere"
    there.mkdir()
    elsewhere.mkdir()
    (elsewhere / "mine.png").write_bytes(b"mine")
    out.symlink_to(there)
    (there / "a.png").symlink_to(elsewhere / "mine.png")
    (there / "b.png").symlink_to(elsewhere / "new.png")
    assert run_predict(pictures).exit_code == 0
    assert names_in(there) == ["a.png", "b.png", "c.png"]
    assert not any(path.is_symlink() for path in there.iterdir())
    assert {path.name: path.read_bytes() for path in elsewhere.iterdir()} == {"mine.png": b"mine"}
    (pictures / "sub").mkdir()
    (pictures / "a.png").rename(pictures / "sub" / "a.png")
    (there / "sub").symlink_to(elsewhere)
    result = run_predict(pictures)
    assert result.exit_code == 2
    assert result.stderr == (
        f"error: {out / 'sub'}: is a link, expected a folder or nothing, since links in {out} are not followed; remove "
        "it\n"
    )
    assert names_in(elsewhere) == ["mine.png"]


def test_what_a_killed_run_left_is_removed_by_the_next_one(run_predict, pictures, out):
    out.mkdir()
    for name in (".a.0123abcd.png", ".c.0123abcd.png", ".z.0123abcd.png"):
        (out / name).write_bytes(b"half")
    assert run_predict(pictures).exit_code == 0
    assert names_in(out) == [".z.0123abcd.png", "a.png", "b.png", "c.png"]
    table = out.parent / "all.csv"
    (out.parent / ".all.0123abcd.csv").write_bytes(b"half")
    assert run_predict(pictures, "--format", "rle-csv", to=table).exit_code == 0
    assert sorted(out.parent.glob("*all*")) == [table]


def test_missing_model_is_one_line_and_makes_no_folder(run_predict, pictures, out, tmp_path):
    result = run_predict(pictures, model=tmp_path / "gone.onnx")
    assert result.exit_code == 2
    assert result.stderr == f"error: {tmp_path / 'gone.onnx'}: no such file; make it with: unet-export model.pth\n"
    assert result.stdout == ""
    assert not out.exists()


def test_nonsense_device_is_one_line(run_predict, pictures, out):
    result = run_predict(pictures, device="tpu")
    assert result.exit_code == 2
    assert (
        result.stderr
        == "error: device 'tpu': expected auto, gpu, gpu:N, cpu, openvino, cuda, cuda:N, tensorrt or tensorrt:N\n"
    )
    assert not out.exists()


def test_missing_image_stops_before_anything_is_written(run_predict, pictures, out):
    result = run_predict(pictures, pictures / "gone.png")
    assert result.exit_code == 2
    assert result.stderr == f"error: {pictures / 'gone.png'}: no such file or folder\n"
    assert not out.exists()


def test_folder_without_images_says_so(run_predict, tmp_path):
    (tmp_path / "empty").mkdir()
    result = run_predict(tmp_path / "empty")
    assert (result.exit_code, result.stderr) == (
        2,
        f"error: {tmp_path / 'empty'}: no images in this folder and below\n",
    )


def test_out_that_is_a_file_is_one_line(run_predict, pictures, out):
    out.write_text("kept")
    result = run_predict(pictures)
    assert result.exit_code == 2
    assert result.stderr == f"error: {out}: is a file, expected a folder; choose another one with -o\n"
    assert out.read_text() == "kept"


def test_folder_in_the_place_of_a_mask_is_refused_before_the_work(run_predict, pictures, out):
    (out / "b.png").mkdir(parents=True)
    result = run_predict(pictures)
    assert result.exit_code == 2
    line = f"{out / 'b.png'}: is a folder, expected a file or nothing; move it or choose another -o"
    assert (result.stdout, result.stderr) == ("", f"error: {line}\n")
    assert names_in(out) == ["b.png"]


def test_full_disk_stops_with_how_many_were_written(run_predict, pictures, out, monkeypatch):
    def full(path, follow):
        if path.name == "b.png":
            raise OutputError(f"{path}: cannot be written (no space left on device); free some space")
        return replacing(path, follow=follow)

    monkeypatch.setattr(output_formats, "replacing", full)
    result = run_predict(pictures, "--batch-size", 1)
    assert result.exit_code == 2
    assert result.stderr == f"error: {out / 'b.png'}: cannot be written (no space left on device); free some space\n"
    assert result.stdout == f"{len(names_in(out))} of 3 written to {out} on cpu\n"


@pytest.mark.filterwarnings("default::runtime.errors.DeviceWarning")
def test_auto_notes_once_what_was_skipped(cpu_build, run_predict, pictures):
    result = run_predict(pictures, device="auto")
    assert result.exit_code == 0
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("note: running on cpu; tensorrt skipped: the installed ONNX Runtime")


def test_no_images_is_a_usage_error(models, out):
    result = CliRunner().invoke(predict, [str(models["brightness"]), "-o", str(out)])
    assert result.exit_code == 2
    assert "Missing argument 'IMAGES...'" in result.stderr


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--threshold", 0.3, "--format", "npy"], "--threshold changes nothing with --format npy"),
        (
            ["--threshold", 0.3, "--format", "cutout", "--soft"],
            "--threshold changes nothing with --format cutout --soft",
        ),
        (["--soft"], "--soft, --background and --keep-colours are for --format cutout"),
        (["--keep-colours", "--format", "mask"], "--soft, --background and --keep-colours are for --format cutout"),
        (["--background", "red", "--format", "npy"], "--soft, --background and --keep-colours are for --format cutout"),
        (
            ["--background", "red", "--keep-colours", "--format", "cutout"],
            "--keep-colours is for a transparent background; leave out --background",
        ),
        (["--overlap", 0.5], "--overlap needs --tile"),
        (["--size", "12"], "Invalid value for '--size': '12' is not a size; expected for example 1918x1280"),
    ],
)
def test_options_that_say_nothing_are_usage_errors(run_predict, row, out, options, line):
    result = run_predict(row, *options)
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (2, f"Error: {line}")
    assert not out.exists()


def test_a_background_that_is_no_colour_is_one_line(run_predict, row, out):
    result = run_predict(row, "--format", "cutout", "--background", "whit")
    line = (
        'found \'whit\', expected "transparent", an opaque colour such as "white" or "#ff8800", or (red, green, blue)'
    )
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"error: --background: {line} of 0 to 255\n"
    assert not out.exists()


def test_table_that_is_none_is_not_added_to(run_predict, row, out):
    out.mkdir()
    (out / "t.csv").write_text("name,mask\n")
    result = run_predict(row, "--format", "rle-csv", "--skip-existing", to=out / "t.csv")
    line = f"{out / 't.csv'}: is not a table of img,rle_mask, so nothing can be added; remove it"
    assert (result.exit_code, result.stderr) == (2, f"error: {line}\n")
    assert (out / "t.csv").read_text() == "name,mask\n"


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["", "a.png", "-o", "out"], "Invalid value for 'MODEL': is empty; name a file or folder"),
        (["m.onnx", "a.png", "-o", ""], "Invalid value for '-o' / '--out': is empty; name a file or folder"),
        (["m.onnx", "a.png", "", "-o", "out"], "IMAGES: one name is empty; leave it out"),
    ],
)
def test_names_of_unset_variables_are_refused(arguments, name):
    result = CliRunner().invoke(predict, arguments)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == f"Error: {name} (is a shell variable unset?)"
