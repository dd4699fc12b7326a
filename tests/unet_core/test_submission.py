"""The masks that evaluation writes as Carvana's competition takes them."""

import os
import shutil

import numpy as np
import pytest
import tifffile
import torch
from evaluating import SIZES, refusal, rows_of, run
from measuring import labels_by_hand, probability_by_hand
from networks import make_card, make_network

from runtime import rle
from runtime.errors import ConfigError, OutputError
from runtime.image import load_image
from runtime.predictor import Predictor
from unet_core.data import cache
from unet_core.data.labels import LabelSpec
from unet_core.data.pairs import find_pairs
from unet_core.evaluate import evaluate
from unet_core.evaluation import predictions
from unet_core.reporting.progress import Display

ONE_CLASS = LabelSpec(classes=("car",))


@pytest.mark.parametrize("suffix", [".pth", ".onnx"])
def test_a_submission_holds_the_masks_that_predict_gives(source, views, tmp_path, suffix):
    out = tmp_path / "out.csv"
    done = run(source / f"model{suffix}", views, "--submission", out)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == f"{out}: 3 masks"
    assert len(done.stdout.splitlines()) == 6
    header, *rows = rows_of(out)
    assert header == ["img", "rle_mask"]
    assert [name for name, _ in rows] == ["v0.jpg", "v1.jpg", "v2.jpg"]
    predictor = Predictor(source / "model.onnx", "cpu")
    for (name, text), size in zip(rows, SIZES, strict=True):
        expected = predictor.predict(views / "val_images" / name).mask
        assert 0 < expected.mean() < 1
        assert np.array_equal(rle.decode(text, size), expected)


def test_runs_count_from_one_and_row_by_row(model, views, tmp_path, monkeypatch):
    masks = iter([np.array([[0, 1, 1], [1, 0, 1]], np.uint8), np.zeros((2, 3), np.uint8)])

    def compute_metrics(answers, card, on_image):
        for index, labels in enumerate(masks):
            on_image(index, labels, labels, 1.0)

    monkeypatch.setattr(predictions, "compute_metrics", compute_metrics)
    evaluate(model, find_pairs(views, "val"), device="cpu", submission=tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_bytes() == b"img,rle_mask\nv0.jpg,2 3 6 1\nv1.jpg,\n"


@pytest.mark.parametrize("folder", ["test_images", "test"])
def test_test_images_need_no_masks(model, views, tmp_path, folder):
    (views / "val_images").rename(views / folder)
    shutil.rmtree(views / "val_masks")
    done = run(model, views, "--split", "test", "--submission", tmp_path / "out.csv")
    assert (done.exit_code, done.stdout, done.stderr) == (0, f"{tmp_path / 'out.csv'}: 3 masks\n", "")
    _, *rows = rows_of(tmp_path / "out.csv")
    network = make_network()
    network.load_state_dict(torch.load(model)["state_dict"])
    for name, text in rows:
        path = views / folder / name
        expected = labels_by_hand(probability_by_hand(network, make_card(network), path))
        assert np.array_equal(rle.decode(text, load_image(path).shape[:2]), expected)


def test_test_images_without_a_submission_or_none_at_all_are_refused(model, views, tmp_path):
    assert refusal(model, views, "--split", "test") == (
        "--split test: has no masks to measure with; give --submission FILE, or use unet-predict"
    )
    expected = f"{views / 'test_images'}: no images in this folder; expected .jpg or .png files to predict"
    assert refusal(model, views, "--split", "test", "--submission", tmp_path / "out.csv") == expected
    (views / "test_images").mkdir()
    assert refusal(model, views, "--split", "test", "--submission", tmp_path / "out.csv") == expected


def test_a_submission_of_several_classes_is_refused_before_any_work(several, views, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "check_and_cache", None)
    assert refusal(several[0], views, "--submission", tmp_path / "new" / "out.csv") == (
        f"--submission: is for one class, {several[0]} has 3; leave it out"
    )
    assert not (tmp_path / "new").exists()
    with pytest.raises(ConfigError):
        evaluate(several[0], find_pairs(views, "val"), device="cpu", submission=tmp_path / "out.csv")


def test_a_place_that_cannot_be_written_is_refused_before_any_work(model, views, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "check_and_cache", None)
    (tmp_path / "folder").mkdir()
    assert refusal(model, views, "--submission", tmp_path / "folder") == (
        f"{tmp_path / 'folder'}: is a folder, expected a file name; add one"
    )
    for folder in (tmp_path / "no", views / "val_images" / "v0.jpg"):
        assert refusal(model, views, "--submission", folder / "out.csv") == (
            f"--submission {folder / 'out.csv'}: no such folder {folder}; make it or choose another"
        )
    assert not (tmp_path / "no").exists()
    with pytest.raises(OutputError, match=r"cannot be written \(file name too long\)"):
        evaluate(model, find_pairs(views, "val"), device="cpu", submission=tmp_path / f"a.{'b' * 250}")


def test_an_error_of_writing_is_the_submissions(model, views, tmp_path, monkeypatch):
    def encode(mask):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rle, "encode", encode)
    assert refusal(model, views, "--submission", tmp_path / "out.csv") == (
        f"{tmp_path / 'out.csv'}: cannot be written (no space left on device); free some space"
    )


def test_test_images_are_decoded_once_and_a_broken_one_leaves_no_half_file(model, views, tmp_path, decoding):
    (views / "val_images").rename(views / "test")
    out = tmp_path / "masks.csv"
    assert run(model, views, "--split", "test", "--submission", out).exit_code == 0
    assert decoding.since() == 3
    out.unlink()
    for name in ("v1.jpg", "v2.jpg"):
        (views / "test" / name).write_bytes(b"no picture")
    assert refusal(model, views, "--split", "test", "--submission", out) == (
        "2 of 3 pairs cannot be used, fix or remove them: is not an image of a known format (JPEG, PNG, GIF, BMP, "
        "TIFF, WEBP, PPM): test/v1.jpg, test/v2.jpg"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("before", [None, "an older one"])
def test_an_interrupt_leaves_no_half_file(model, views, tmp_path, monkeypatch, before):
    out = tmp_path / "masks" / "out.csv"
    out.parent.mkdir()
    if before is not None:
        out.write_text(before)
    encoded = iter(["1 1"])

    def encode(mask):
        if text := next(encoded, None):
            return text
        raise KeyboardInterrupt

    monkeypatch.setattr(rle, "encode", encode)
    done = run(model, views, "--submission", out)
    assert (done.exit_code, done.stdout, done.stderr) == (130, "", "interrupted\n")
    assert [path.name for path in out.parent.iterdir()] == ([] if before is None else ["out.csv"])
    assert before is None or out.read_text() == before


@pytest.mark.skipif(os.name != "posix", reason="names of bytes")
def test_a_name_that_is_no_text_is_written_byte_for_byte(model, views, tmp_path):
    (views / "test").mkdir()
    shutil.copy(views / "val_images" / "v0.jpg", os.fsencode(views / "test") + b"/caf\xe9, 1.jpg")
    done = run(model, views, "--split", "test", "--submission", tmp_path / "out.csv")
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path / 'out.csv'}: 1 mask\n")
    assert (tmp_path / "out.csv").read_bytes().startswith(b'img,rle_mask\n"caf\xe9, 1.jpg",')


def test_a_submission_without_any_mask_is_noted(model, views, tmp_path, monkeypatch):
    def compute_metrics(answers, card, on_image):
        for index in range(3):
            on_image(index, np.zeros((2, 3), np.uint8), np.zeros((2, 3), np.uint8), 1.0)

    monkeypatch.setattr(predictions, "compute_metrics", compute_metrics)
    notes = []
    monkeypatch.setattr(Display, "note", lambda self, text: notes.append(text))
    evaluate(model, find_pairs(views, "val"), device="cpu", submission=tmp_path / "out.csv", display=Display())
    assert notes == ["every mask of the submission is empty"]


def test_pages_of_a_stack_have_names_of_their_own(model, tmp_path):
    for kind, values in (("images", 90), ("masks", 255)):
        folder = tmp_path / "stacks" / f"val_{kind}"
        folder.mkdir(parents=True)
        tifffile.imwrite(folder / "volume.tif", np.full((3, 32, 48), values, np.uint8), photometric="minisblack")
    assert run(model, tmp_path / "stacks", "--submission", tmp_path / "out.csv").exit_code == 0
    assert [name for name, _ in rows_of(tmp_path / "out.csv")[1:]] == [f"volume_00{page}.tif" for page in (1, 2, 3)]
