import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from known_times import in_known_time
from PIL import Image

from benchmarks.cases import precisions
from benchmarks.cases.precisions import EXPORTS
from benchmarks.precision import main
from runtime.predictor import Predictor

IGNORED = 7
"""A value that masks of one class cannot have."""


@pytest.fixture(scope="module")
def measured(trained, tmp_path_factory):
    """The report on a trained network, whose masks have a band that does not count and is wrong where it does."""
    folder = tmp_path_factory.mktemp("measured")
    shutil.copytree(trained.data, folder / "data")
    for path in (folder / "data" / "val_masks").iterdir():
        with Image.open(path) as picture:
            mask = np.array(picture.convert("L"))
        mask[:, :32] = IGNORED
        path.unlink()
        Image.fromarray(mask).save(path.with_suffix(".png"))
    run = folder / "run"
    run.mkdir()
    shutil.copy(trained.checkpoint, run)
    settings = json.loads((trained.checkpoint.parent / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(settings | {"ignore_index": IGNORED}))
    arguments = [str(run / "model.pth"), str(folder / "data"), "--rounds", "5", "--out", str(folder / "out")]
    asked, network_run = [], precisions.network_run

    def counted(segmenter):
        run = network_run(segmenter)
        return lambda images: asked.append(len(images)) or run(images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precisions, "interleave", in_known_time)
        patch.setattr(precisions, "network_run", counted)
        done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    report = json.loads((folder / "out" / "precision.json").read_text())
    return SimpleNamespace(folder=folder, done=done, report=report, rows=report["rows"], asked=asked)


def model_of(measured, name):
    return measured.folder / "out" / f"{name.replace(' ', '.')}.onnx"


def test_every_precision_is_exported(measured):
    assert list(measured.rows) == list(EXPORTS)
    assert (measured.report["images"], measured.report["shape"]) == (6, [1, 64, 96, 3])
    assert all(model_of(measured, name).stat().st_size == row["size"] for name, row in measured.rows.items())
    assert (measured.folder / "out" / "precision.md").read_text().strip() in measured.done.stdout


def test_parity_is_that_of_the_files(measured, trained):
    rows = measured.rows
    for name, row in rows.items():
        predictor = Predictor(model_of(measured, name), "cpu")
        errors, flips = [], []
        for picture in trained.samples.pictures(6):
            answer, expected = predictor.run(picture[None]), trained.exact(picture[None])
            errors.append(np.abs(answer - expected).max())
            flips.append(np.mean((answer > 0.5) != (expected > 0.5)))
        assert row["parity"]["max_abs_error"] == pytest.approx(max(errors), abs=2e-6)
        assert row["parity"]["flipped"] == pytest.approx(np.mean(flips), abs=1e-9)
    assert rows["fp32"]["parity"]["max_abs_error"] < 2e-6 < rows["fp16"]["parity"]["max_abs_error"] < 0.01
    assert rows["int8 s8"]["parity"]["max_abs_error"] > rows["fp16"]["parity"]["max_abs_error"]
    assert rows["int8 s8"]["parity"]["flipped"] > 0


def test_image_dice_is_that_of_the_gate_and_ignored_pixels_do_not_count(measured):
    rows = measured.rows
    assert all(row["image_dice"] > 0.9 for row in rows.values())
    for name in ("int8 s8", "int8 u8"):
        assert rows[name]["image_dice"] == pytest.approx(rows[name]["gate"]["image_dice"], abs=1e-6)
        assert rows["fp32"]["image_dice"] == pytest.approx(rows[name]["gate"]["image_dice_fp32"], abs=1e-6)
    assert rows["fp32"]["image_dice"] != rows["int8 s8"]["image_dice"]


def test_times_are_compared_with_those_of_fp32(measured):
    for factor, row in enumerate(measured.rows.values(), 1):
        assert row["ratio"] == [factor, factor, factor]
        assert row["timing"]["median"] == 3 * factor


def test_pytorch_answers_each_image_once(measured):
    assert measured.asked == [1] * 6


def test_what_a_cpu_does_with_fp16_is_said(measured):
    gate = measured.rows["fp16"]["gate"]
    dice = f"an image Dice of {gate['image_dice']:.4f}."
    found = f"found {gate['flipped']:.4%} of the pixels flipped against fp32 and {dice}"
    assert measured.done.stdout.count(found) == 1
    assert "fp16: a CPU computes the file in fp32" in measured.done.stdout


def test_how_masks_are_read_can_be_given(monkeypatch, tmp_path):
    found = []
    monkeypatch.setattr(precisions, "measure_precisions", lambda *_, **options: found.append(options) or 1 / 0)
    arguments = [str(tmp_path / "m.pth"), str(tmp_path), "--masks", "labels", "--ignore-index", "0"]
    assert isinstance(CliRunner().invoke(main, arguments).exception, ZeroDivisionError)
    assert (found[0]["layout"].masks, found[0]["ignore_index"]) == ("labels", 0)
