"""unet-predict: what is written where, in which format."""

import csv
import io
import json
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import pytest
from click.testing import CliRunner
from masks import mask_of, names_in, pixels_of
from PIL import Image

from runtime import rle
from runtime.card import CARD_KEY
from runtime.commands import predict_files
from runtime.commands.predict import predict
from runtime.devices import openvino
from runtime.images.overlay import COLOURS
from runtime.model_file.digest import DIGEST_KEY
from runtime.predictor import Predictor


def test_folder_gives_a_mask_for_each_image_at_its_own_size(run_predict, pictures, out):
    result = run_predict(pictures)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"3 of 3 written to {out} on cpu\n"
    assert names_in(out) == ["a.png", "b.png", "c.png"]
    for source in ("a.png", "b.bmp", "c.tif"):
        mask = pixels_of(out / f"{source[0]}.png")
        assert mask.dtype == np.uint8
        assert np.array_equal(mask, mask_of(pictures / source))


@pytest.mark.filterwarnings("default::runtime.errors.ImageWarning")
def test_files_that_are_left_out_and_pages_are_told_of(run_predict, pictures, out):
    (pictures / "below").mkdir()
    for name in ("d.jp2", "below/e.jp2", "below/f.dng", "below/words.txt"):
        (pictures / name).touch()
    picture = Image.open(pictures / "c.tif")
    picture.save(pictures / "several.tif", save_all=True, append_images=[picture])
    result = run_predict(pictures)
    assert (result.exit_code, result.stdout) == (0, f"4 of 4 written to {out} on cpu\n")
    assert result.stderr.splitlines() == [
        f"note: {pictures / 'several.tif'}: has several pages or frames, and only the first one is read",
        "note: 3 files left out: .jp2 (2), .dng (1)",
    ]
    told = run_predict(f"{pictures}/**", "--skip-existing")
    assert told.stderr == "note: 3 files left out: .jp2 (2), .dng (1)\n"
    refused = run_predict(pictures / "below")
    assert refused.exit_code == 2
    assert refused.stderr == (
        f"error: {pictures / 'below'}: no images in this folder and below; 2 files left out: .dng (1), .jp2 (1)\n"
    )


def test_files_and_folders_may_be_mixed_and_named_twice(run_predict, pictures, out):
    result = run_predict(pictures / "c.tif", pictures, pictures / "c.tif")
    assert result.exit_code == 0
    assert result.stdout == f"3 of 3 written to {out} on cpu\n"


@pytest.mark.parametrize("options", [[], ["--format", "areas"]])
def test_an_image_under_two_names_has_two_answers(run_predict, pictures, out, tmp_path, options):
    (pictures / "sub").mkdir()
    (pictures / "a.png").rename(pictures / "sub" / "a.png")
    to = tmp_path / "areas.csv" if options else out
    result = run_predict(pictures, pictures / "sub", *options, to=to)
    assert (result.exit_code, result.stdout) == (0, f"4 of 4 written to {to} on cpu\n")
    if not options:
        assert (out / "a.png").read_bytes() == (out / "sub" / "a.png").read_bytes()


def test_masks_of_a_data_set_are_left_out_with_a_note(run_predict, pictures, out):
    (pictures / "train_masks").mkdir()
    Image.new("L", (3, 3)).save(pictures / "train_masks" / "a.png")
    first = f"{pictures}/train_masks/a.png"
    result = run_predict(pictures)
    assert (result.stderr, result.stdout) == (
        f"note: 1 mask, {first}, is left out (*_mask.*, *_masks/); to segment a mask, name its file\n",
        f"3 of 3 written to {out} on cpu\n",
    )
    Image.new("L", (3, 3)).save(pictures / "a_mask.gif")
    result = run_predict(pictures)
    assert result.stderr.startswith(f"note: 2 masks, such as {pictures}/a_mask.gif, are left out")
    assert result.stdout == f"3 of 3 written to {out} on cpu\n"


def test_single_file_is_written_alone_and_over_an_old_mask(run_predict, pictures, out):
    out.mkdir()
    (out / "b.png").write_bytes(b"old")
    assert run_predict(pictures / "b.bmp").exit_code == 0
    assert names_in(out) == ["b.png"]
    assert pixels_of(out / "b.png").shape == (1, 1)


def test_several_classes_are_written_as_indices(run_predict, tmp_path, out, models):
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    Image.fromarray(colours).save(tmp_path / "rgb.png")
    assert run_predict(tmp_path / "rgb.png", model=models["softmax"]).exit_code == 0
    assert pixels_of(out / "rgb.png").tolist() == [[0, 1, 2]]


def test_overlay_tints_the_foreground(run_predict, tmp_path, out):
    Image.fromarray(np.array([[[100] * 3, [200] * 3]], np.uint8)).save(tmp_path / "p.png")
    assert run_predict(tmp_path / "p.png", "--format", "overlay").exit_code == 0
    tinted = [round((200 + colour) / 2) for colour in COLOURS[0]]
    assert pixels_of(out / "p.png").tolist() == [[[100, 100, 100], tinted]]


def test_command_runs_in_a_process_of_its_own(pictures, out, models, root):
    program = "from runtime.commands.predict import predict; predict(prog_name='unet-predict')"
    command = [sys.executable, "-c", program, models["brightness"], pictures, "-o", out, "--device", "cpu"]
    done = subprocess.run(list(map(str, command)), cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"3 of 3 written to {out} on cpu\n", "")
    done = subprocess.run([*map(str, command[:3]), "gone.onnx", *map(str, command[4:])], cwd=root, capture_output=True)
    assert done.returncode == 2
    assert done.stderr == b"error: gone.onnx: no such file; make it with: unet-export model.pth\n"


def test_structure_below_a_folder_is_kept(run_predict, pictures, out):
    (pictures / "sub" / "deep").mkdir(parents=True)
    (pictures / "a.png").rename(pictures / "sub" / "deep" / "a.png")
    (pictures / "b.bmp").rename(pictures / "sub" / "b.bmp")
    assert run_predict(pictures).stdout == f"3 of 3 written to {out} on cpu\n"
    found = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png"))
    assert found == ["c.png", "sub/b.png", "sub/deep/a.png"]
    assert np.array_equal(pixels_of(out / "sub" / "deep" / "a.png"), mask_of(pictures / "sub" / "deep" / "a.png"))


def test_formats(run_predict, row, out):
    assert run_predict(row, "--format", "probability").exit_code == 0
    assert pixels_of(out / "row.png").tolist() == [[0, 25_700, 51_400]]
    assert run_predict(row, "--format", "cutout").exit_code == 0
    assert pixels_of(out / "row.png").tolist() == [[[0, 0, 0, 0], [100, 100, 100, 92], [200, 200, 200, 255]]]
    assert run_predict(row, "--format", "npy").exit_code == 0
    assert np.load(out / "row.npy").tolist() == brightness(0, 100, 200)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--soft"], [[0, 0, 0, 0], [100, 100, 100, 100], [200, 200, 200, 200]]),
        (["--threshold", 0.9], [[0, 0, 0, 0]] * 3),
        (["--threshold", 0.9, "--keep-colours"], [[0, 0, 0, 0], [100, 100, 100, 0], [200, 200, 200, 0]]),
        (["--background", "#ff8000"], [[255, 128, 0], [199, 118, 36], [200, 200, 200]]),
        (["--background", "Transparent"], [[0, 0, 0, 0], [100, 100, 100, 92], [200, 200, 200, 255]]),
        (["--background", "Transparent", "--keep-colours"], [[0, 0, 0, 0], [100, 100, 100, 92], [200, 200, 200, 255]]),
        (["--background", "white", "--soft"], [[255, 255, 255], [194, 194, 194], [212, 212, 212]]),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value[0], str) else "",
)
def test_cutouts(run_predict, row, out, options, expected):
    arguments = [row, "--format", "cutout", *options]
    done = run_predict(*arguments)
    assert (done.exit_code, done.stderr) == (0, "")
    assert pixels_of(out / "row.png").tolist() == [expected]
    assert run_predict(*arguments, "--skip-existing").stdout.startswith("nothing to do: 1 of 1")


def test_a_cutout_through_a_pipe(models, row):
    arguments = [str(models["brightness"]), "-", "--device", "cpu", "--format", "cutout", "--background", "red"]
    done = CliRunner().invoke(predict, arguments, input=row.read_bytes())
    assert done.exit_code == 0, done.stderr
    with Image.open(io.BytesIO(done.stdout_bytes)) as picture:
        assert (picture.mode, picture.getpixel((0, 0))) == ("RGB", (255, 0, 0))


def brightness(*levels):
    return [[[float(np.float32(level) / np.float32(255)) for level in levels]]]


def test_probability_of_several_classes_is_that_of_all_but_the_first(run_predict, tmp_path, out, models, answers):
    pixels = np.array([[[255, 0, 0], [90, 100, 110]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "p.png")
    assert run_predict(tmp_path / "p.png", "--format", "probability", model=models["softmax"]).exit_code == 0
    expected = 65_535 * answers["softmax"](pixels[None])[0, 1:].sum(axis=0)
    assert np.abs(pixels_of(out / "p.png") - expected).max() < 1


def test_another_threshold(run_predict, row, out, models):
    assert run_predict(row, "--threshold", 0.3).exit_code == 0
    assert pixels_of(out / "row.png").tolist() == [[0, 255, 255]]
    result = run_predict(row, "--threshold", 0.3, model=models["softmax"])
    line = f"--threshold: is for one class, {models['softmax']} has 3 and takes the most probable"
    assert (result.exit_code, result.stderr) == (2, f"error: {line}\n")


@pytest.mark.parametrize(
    ("options", "asking"),
    [
        (["--size", "8x4"], {"size": (4, 8)}),
        (["--size", "native"], {"size": "native"}),
        (["--tile", "8x4"], {"tile": (4, 8)}),
        (["--tile", "8x4", "--overlap", 0.5], {"tile": (4, 8), "overlap": 0.5}),
        (["--tta", "flip"], {"tta": "flip"}),
        (["--tta", "d4", "--batch-size", 3], {"tta": "d4"}),
        (["--threads", 1], {}),
    ],
)
def test_options_are_those_of_predict(run_predict, tmp_path, out, models, options, asking):
    pixels = np.random.default_rng(3).integers(0, 256, (9, 13, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "p.png")
    assert run_predict(tmp_path / "p.png", "--format", "npy", *options, model=models["conv"]).exit_code == 0
    expected = Predictor(models["conv"], "cpu").predict(pixels, **asking).probability
    assert np.array_equal(np.load(out / "p.npy"), expected)


def test_one_table_of_run_lengths(run_predict, pictures, out):
    (pictures / "sub").mkdir()
    (pictures / "b.bmp").rename(pictures / "sub" / "b.bmp")
    table = out / "masks.csv"
    arguments = [pictures, "--format", "rle-csv"]
    assert run_predict(*arguments, to=table).stdout == f"3 of 3 written to {table} on cpu\n"
    masks = {name: (mask_of(pictures / name) > 0) for name in ("a.png", "c.tif", "sub/b.bmp")}
    whole = "img,rle_mask\n" + "".join(f"{name},{rle.encode(mask)}\n" for name, mask in masks.items())
    assert table.read_text() == whole
    table.write_text("img,rle_mask\na.png,1 1\n")
    assert (
        run_predict(*arguments, "--skip-existing", to=table).stdout == f"2 of 2 written to {table} on cpu, 1 skipped\n"
    )
    assert table.read_text() == whole.replace(whole.splitlines()[1], "a.png,1 1")


def test_a_palette_of_classes_with_its_legend(run_predict, tmp_path, out, models):
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    Image.fromarray(colours).save(tmp_path / "rgb.png")
    assert run_predict(tmp_path / "rgb.png", "--format", "palette", model=models["softmax"]).exit_code == 0
    assert pixels_of(out / "rgb.png").tolist() == [[0, 1, 2]]
    with Image.open(out / "rgb.png") as picture:
        shown = ["#{:02x}{:02x}{:02x}".format(*pixel) for pixel in np.asarray(picture.convert("RGB"))[0].tolist()]
    with open(out / "legend.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["value"], row["class"], row["colour"]) for row in rows] == [
        (str(value), name, colour)
        for value, (name, colour) in enumerate(
            zip(Predictor(models["softmax"], "cpu").card.output.classes, shown, strict=True)
        )
    ]


def test_a_file_for_all_images_names_them_by_their_path_below_the_folder(run_predict, pictures, tmp_path):
    (pictures / "sub").mkdir()
    (pictures / "b.bmp").rename(pictures / "sub" / "b.bmp")
    (pictures / "bad.png").write_bytes(b"no picture")
    names = ["a.png", "c.tif", "sub/b.bmp"]
    result = run_predict(pictures, "--format", "coco", to=tmp_path / "all.json")
    assert (result.exit_code, result.stdout) == (1, f"3 of 4 written to {tmp_path / 'all.json'} on cpu, 1 failed\n")
    found = json.loads((tmp_path / "all.json").read_text())
    assert [image["file_name"] for image in found["images"]] == names
    for one in found["annotations"]:
        mask = mask_of(pictures / names[one["image_id"] - 1]) > 0
        assert np.array_equal(rle.coco_decode(one["segmentation"]), mask)
    assert run_predict(pictures, "--format", "areas", to=tmp_path / "all.csv").exit_code == 1
    with open(tmp_path / "all.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == names
    assert [int(row["area"]) for row in rows] == [(mask_of(pictures / name) > 0).sum() for name in names]


@pytest.mark.parametrize(
    ("kind", "name", "suffix"), [("coco", "a.csv", ".json"), ("areas", "a.json", ".csv"), ("rle-csv", "a", ".csv")]
)
def test_a_file_for_all_images_needs_its_suffix(run_predict, pictures, tmp_path, kind, name, suffix):
    result = run_predict(pictures, "--format", kind, to=tmp_path / name)
    line = f"{tmp_path / name}: expected a file that ends in {suffix}; the answers to all images are written to it"
    assert (result.exit_code, result.stderr) == (2, f"error: {line}\n")
    assert not (tmp_path / name).exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no such names on Windows")
def test_names_of_strangers_are_shown_escaped_and_told_where_a_table_has_formulas(run_predict, pictures, out):
    (pictures / "a.png").rename(pictures / "=cmd|calc.png")
    (pictures / "bad\x1b[2J.png").write_bytes(b"nothing")
    table = out / "masks.csv"
    result = run_predict(pictures, "--format", "rle-csv", to=table)
    assert result.stdout == f"3 of 4 written to {table} on cpu, 1 failed\n"
    refusal, note = result.stderr.splitlines()
    assert refusal.startswith(rf"error: {pictures}/bad\x1b[2J.png: is not an image of a known format (")
    assert note == (
        f"note: {table}: a spreadsheet would take 1 name (=cmd|calc.png) for a formula; import the first column as text"
    )
    assert table.read_text().splitlines()[1].startswith("=cmd|calc.png,")


def test_version_is_that_of_the_distribution():
    assert CliRunner().invoke(predict, ["--version"], prog_name="p").stdout == f"p {version('unet-deploy')}\n"


@pytest.mark.parametrize(
    ("options", "threads", "workers"), [([], None, None), (["--threads", 3], 3, 3), (["--threads", 99], 99, 16)]
)
def test_threads_are_those_of_the_network_and_of_the_files(
    run_predict, pictures, monkeypatch, options, threads, workers
):
    asked = []

    class Asked(Predictor):
        def __init__(self, model, device, threads, **others):
            asked.append(threads)
            super().__init__(model, device, 1, **others)

        def stream(self, images, **options):
            asked.append(options["workers"])
            return super().stream(images, **options)

    monkeypatch.setattr(predict_files, "Predictor", Asked)
    assert run_predict(pictures, *options).exit_code == 0
    assert asked == [threads, workers]


def test_a_model_that_was_changed_is_refused_and_taken_if_asked(run_predict, row, out, write_model):
    path = write_model()
    path.write_bytes(path.read_bytes().replace(b'"threshold": 0.5', b'"threshold": 0.7'))
    refused = run_predict(row, model=path)
    assert (refused.exit_code, refused.stderr.count("\n"), out.exists()) == (2, 1, False)
    assert "its digest does not fit its card; copy or export it again, or take it unverified" in refused.stderr
    taken = run_predict(row, "--no-verify", model=path)
    assert (taken.exit_code, taken.stderr) == (0, "")
    assert (pixels_of(out / "row.png") == [[0, 0, 255]]).all()


def test_a_model_without_digest_is_taken_with_a_note(run_predict, row, write_model):
    path = write_model(metadata={DIGEST_KEY: None})
    done = run_predict(row, model=path)
    note = f"note: {path}: its digest is not verified (the file has none; export it again)\n"
    assert (done.exit_code, done.stderr) == (0, note)
    named = run_predict(row, model=path.rename(path.with_name("\x1b[2J.onnx")))
    assert (named.exit_code, named.stderr) == (0, note.replace(path.name, "\\x1b[2J.onnx"))


@pytest.mark.parametrize("count", [0, 1025])
def test_threads_out_of_their_bounds(run_predict, pictures, out, count):
    result = run_predict(pictures, "--threads", count)
    line = f"Error: Invalid value for '--threads': {count} is not in the range 1<=x<=1024."
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (2, line)
    assert not out.exists()


@pytest.mark.parametrize(
    ("device", "vnni", "is_told"),
    [("auto", True, True), ("auto", False, False), ("cpu", True, False)],
)
def test_openvino_is_told_of_where_it_is_missing_and_faster(
    run_predict, row, write_model, make_card, monkeypatch, device, vnni, is_told
):
    model = write_model("conv", metadata={CARD_KEY: replace(make_card("conv"), precision="int8").to_json()})
    monkeypatch.setattr(openvino, "has_vnni", lambda: vnni)
    monkeypatch.setattr(openvino, "is_installed", lambda: False)
    note = (
        f"note: {model}: is int8, which OpenVINO computes faster than ONNX Runtime on this CPU, but OpenVINO is not "
        "installed; pip install openvino\n"
    )
    assert run_predict(row, model=model, device=device).stderr == note * is_told
