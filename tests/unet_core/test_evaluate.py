"""Figures of a checkpoint and of its export at the images' own size, the command's every line."""

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from evaluating import SIZES, refusal, run
from folders import write_pair
from imported import imported_for_help
from measuring import labels_by_hand, metrics_by_hand, probability_by_hand
from networks import make_card, make_network
from PIL import Image

from runtime.errors import DataError, DeviceError
from runtime.image_files.limits import Limits
from runtime.predictor import Predictor
from unet_core.checkpoint import save_checkpoint
from unet_core.data.labels import LabelSpec, load_labels, load_truth
from unet_core.data.pairs import Layout, Pair, find_pairs
from unet_core.evaluate import evaluate, main
from unet_core.model import Segmenter
from unet_core.model_options import CARD_OPTIONS, NETWORK_OPTIONS
from unet_core.reporting.tables import class_table, figure_lines

ONE_CLASS = LabelSpec(classes=("car",))


@pytest.mark.parametrize("how", ["stretch", "letterbox", "native"])
def test_checkpoint_and_export_give_the_figures_by_hand(models, views, how):
    checkpoint, exported, network, card = models(lambda card: replace(card, input=replace(card.input, fit=how)))
    pairs = find_pairs(views, "val")
    answers = [
        (labels_by_hand(probability_by_hand(network, card, pair.image)), load_truth(pair.mask, ONE_CLASS))
        for pair in pairs
    ]
    expected = metrics_by_hand(answers, [1])
    measured = evaluate(checkpoint, pairs, device="cpu")
    assert measured.summary() == pytest.approx(expected)
    of_export = evaluate(exported, pairs, device="cpu").summary()
    assert {name: f"{value:.4f}" for name, value in of_export.items()} == {
        name: f"{value:.4f}" for name, value in expected.items()
    }


@pytest.mark.parametrize("kind", [0, 1], ids=["checkpoint", "export"])
def test_images_of_too_many_pixels_are_refused_with_the_option_that_takes_them(models, views, kind):
    model = models(lambda card: card)[kind]
    most = max(height * width for height, width in SIZES)
    assert (most, SIZES[1]) == (3_600, (40, 90))
    assert refusal(model, views, "--max-pixels", most - 1) == (
        "1 of 3 pairs cannot be used, fix or remove them: has 90 x 40 pixels, expected at most 3599 in all, "
        "make it smaller, or allow more with --max-pixels 3600: val_images/v1.jpg"
    )
    assert run(model, views, "--max-pixels", most).exit_code == 0
    pairs = find_pairs(views, "val")
    with pytest.raises(DataError, match=r"or allow more with limits=runtime\.Limits\.for_pixels\(3600\)"):
        evaluate(model, pairs, device="cpu", limits=Limits(pixels=most - 1))


def test_an_export_is_measured_with_jpegs_decoded_at_a_part(models, views):
    checkpoint, exported, _, card = models(lambda card: card)
    height, width = card.input.size
    rough = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    smooth = Image.fromarray(rough).resize((5 * width, 5 * height))
    for pair in find_pairs(views, "val"):
        smooth.save(pair.image)
        Image.fromarray(255 * (np.asarray(smooth)[:, :, 0] > 99).astype(np.uint8)).save(pair.mask)
    pairs = find_pairs(views, "val")
    predictor = Predictor(exported, "cpu", decode="scaled")
    answers = [(predictor.predict(pair.image).mask, load_truth(pair.mask, ONE_CLASS)) for pair in pairs]
    measured = evaluate(exported, pairs, device="cpu", decode="scaled").summary()
    assert measured == pytest.approx(metrics_by_hand(answers, [1]))
    assert measured != evaluate(exported, pairs, device="cpu").summary()
    assert f"{measured['image_dice']:.4f}" in run(exported, views, "--fast-decode").stdout
    assert refusal(checkpoint, views, "--fast-decode") == (
        f"{checkpoint}: is a checkpoint, whose images are always decoded in full; export it, and measure the .onnx file"
    )


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (2, 0), (3, 2)])
def test_figures_do_not_depend_on_batches_and_workers(model, views, batch_size, workers):
    pairs = find_pairs(views, "val")
    one = evaluate(model, pairs, device="cpu", batch_size=2)
    other = evaluate(model, pairs, device="cpu", batch_size=batch_size, workers=workers)
    assert {index: counts.tolist() for index, counts in other.state().items()} == {
        index: counts.tolist() for index, counts in one.state().items()
    }


def test_pixels_of_the_ignored_value_do_not_count(models, views):
    checkpoint, exported, network, card = models(lambda card: card)
    pairs, answers = find_pairs(views, "val"), []
    for pair in pairs:
        mask = load_labels(pair.mask)
        mask[:, :9] = 7
        Image.fromarray(mask).save(pair.mask, optimize=False)
        truth = np.where(mask == 7, 255, mask // 255)
        answers.append((labels_by_hand(probability_by_hand(network, card, pair.image)), truth))
    with pytest.raises(DataError, match=r"3 of 3 pairs cannot be used.*has invalid labels \(7\), expected"):
        evaluate(checkpoint, pairs, device="cpu")
    for path in (checkpoint, exported):
        found = evaluate(path, pairs, device="cpu", ignore_index=7)
        assert found.summary() == pytest.approx(metrics_by_hand(answers, [1]))
        assert found.pixels == sum(height * (width - 9) for height, width in SIZES)
    done = run(checkpoint, views, "--ignore-index", 7)
    assert f"  pixel Dice  {found.pixel_dice:.4f}\n" in done.stdout


def test_several_classes_are_measured_and_printed_as_a_table(several, views):
    model, network, card = several
    pairs = find_pairs(views, "val")
    answers = [
        (labels_by_hand(probability_by_hand(network, card, pair.image)), np.asarray(Image.open(pair.mask)))
        for pair in pairs
    ]
    metrics, expected = evaluate(model, pairs, device="cpu"), metrics_by_hand(answers, [0, 1, 2])
    assert {name: getattr(metrics, name) for name in expected} == pytest.approx(expected)
    done = run(model, views)
    assert (done.exit_code, done.stderr) == (0, "")
    figures = figure_lines({**metrics.summary(), **expected})
    assert done.stdout == f"{model} on 3 val images of {views}\n{figures}\n{class_table(metrics)}\n"
    assert done.stdout.splitlines()[5].split() == ["class", "pixel", "Dice", "image", "Dice", "IoU", "pixels", "%"]


def test_the_command_prints_four_figures_of_one_class(model, views):
    figures = evaluate(model, find_pairs(views, "val"), device="cpu").summary()
    done = run(model, views)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout == f"{model} on 3 val images of {views}\n{figure_lines(figures)}\n"


def test_train_images_and_other_masks(model, views):
    write_pair(views, "train", "t0", seed=5)
    (views / "train_masks").rename(views / "train_fine")
    layout = Layout(masks="fine")
    figures = evaluate(model, find_pairs(views, "train", layout), device="cpu").summary()
    done = run(model, views, "--split", "train", "--masks", "fine")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout == f"{model} on 1 train image of {views}\n{figure_lines(figures)}\n"
    assert refusal(model, views, "--masks", "fine").startswith(f"{views / 'val_fine'}: no such folder")


def test_a_model_without_a_card_says_what_was_assumed(views, tmp_path):
    torch.save(make_network().state_dict(), tmp_path / "bare.pth")
    done = run(tmp_path / "bare.pth", views)
    assert done.exit_code == 0
    assert done.stderr.startswith(
        f"note: {tmp_path / 'bare.pth'}: has no card; assumed: trained at 240x160, mean 0,0,0 of values in 0..1, "
        "std 1,1,1, fit stretch, classes car (--size, --mean, --std, --fit, --classes)\n"
    )
    assert done.stderr.count("names cannot show activation, concatenation order, padding or interpolation") == 1
    assert "unet-export proves it with --network, or with --pairs\n" in done.stderr


def test_whether_several_classes_exclude_one_another_is_asked(views, tmp_path):
    torch.save(make_network(classes=3).state_dict(), tmp_path / "bare.pth")
    assert refusal(tmp_path / "bare.pth", views) == (
        f"{tmp_path / 'bare.pth'}: has 3 classes, and neither its keys nor the tutorial's code tell whether a pixel "
        "has exactly one; give --probabilities softmax (one), or sigmoids (each by itself)"
    )


def test_a_model_or_folder_that_is_not_there_is_one_line(model, views, tmp_path):
    assert refusal(tmp_path / "no.pth", views).startswith(f"{tmp_path / 'no.pth'}: no such file; ")
    assert refusal(tmp_path / "no.onnx", views).startswith(f"{tmp_path / 'no.onnx'}: no such file")
    assert refusal(model, tmp_path / "no").startswith(f"{tmp_path / 'no'}: no such folder; ")
    assert refusal(model, views, "--device", "tpu").startswith("device 'tpu': is no device of PyTorch; ")


def spoil(views):
    """One mask of another size, one with odd values, one image that is none; returns what is said of them."""
    Image.new("L", (20, 10)).save(views / "val_masks" / "v1_mask.gif")
    Image.new("L", SIZES[0][::-1], 9).save(views / "val_masks" / "v0_mask.gif")
    (views / "val_images" / "v2.jpg").write_bytes(b"no picture")
    return [
        "has invalid labels (9), expected 0 and 255, or 0 and 1 as the model has 1 class, give --mask-threshold 9 "
        "if pixels of 9 are foreground, --ignore-index 9 if they do not count: val_masks/v0_mask.gif",
        "differs in size from its image (20x10, expected 90x40): val_masks/v1_mask.gif",
        "is not an image of a known format (JPEG, PNG, GIF, BMP, TIFF, WEBP, PPM): val_images/v2.jpg",
    ]


@pytest.mark.parametrize("name", ["model.pth", "model.onnx"])
def test_all_pairs_that_cannot_be_used_are_listed(source, views, name):
    faults = "; ".join(spoil(views))
    assert refusal(source / name, views) == f"3 of 3 pairs cannot be used, fix or remove them: {faults}"


@pytest.mark.parametrize("name", ["model.pth", "model.onnx"])
def test_a_mask_of_another_size_is_refused_also_alone(source, views, name):
    Image.new("L", (20, 10)).save(views / "val_masks" / "v2_mask.gif")
    assert refusal(source / name, views) == (
        "1 of 3 pairs cannot be used, fix or remove them: differs in size from its image (20x10, expected 31x57): "
        "val_masks/v2_mask.gif"
    )


def test_images_without_masks_and_broken_ones_are_listed_before_the_work(model, views, monkeypatch):
    monkeypatch.setattr(Segmenter, "forward", None)
    (views / "val_masks" / "v0_mask.gif").rename(views / "val_masks" / "w0_mask.gif")
    (views / "val_images" / "v1.jpg").write_bytes(b"no picture")
    done = run(model, views)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == (
        f"note: {views}: 1 mask has no image of the same name: val_masks/w0_mask.gif\n"
        "error: 2 of 3 pairs cannot be used, fix or remove them: has no mask, expected NAME_mask.gif or NAME.png in "
        f"{views / 'val_masks'}: val_images/v0.jpg; is not an image of a known format (JPEG, PNG, GIF, BMP, TIFF, "
        "WEBP, PPM): val_images/v1.jpg\n"
    )


def test_files_that_are_no_images_are_told_of_at_the_end(model, views):
    (views / "val_images" / "v9.jp2").touch()
    done = run(model, views)
    assert done.exit_code == 0
    assert done.stderr.endswith(f"note: {views}: 1 file left out: .jp2 (1)\n")


def test_every_image_is_decoded_once(model, views, decoding):
    assert run(model, views).exit_code == 0
    assert decoding.since() == 3


def test_a_failure_of_the_system_while_measuring_is_one_line(model, views, tmp_path, monkeypatch):
    def forward(self, images):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(Segmenter, "forward", forward)
    assert refusal(model, views, "--submission", tmp_path / "out.csv") == (
        f"{model}: measuring failed ([Errno 24] Too many open files)"
    )
    assert not (tmp_path / "out.csv").exists()


def test_nothing_to_measure_is_not_perfect(model):
    with pytest.raises(DataError, match=r"^pairs: found none, expected at least one image to measure$"):
        evaluate(model, [], device="cpu")


def test_more_classes_than_a_mask_can_hold_are_refused(views, tmp_path):
    network = make_network(classes=256)
    save_checkpoint(tmp_path / "m.pth", network.state_dict(), make_card(network))
    assert refusal(tmp_path / "m.pth", views) == (
        f"{tmp_path / 'm.pth'}: has 256 classes, expected at most 255 to measure"
    )


def test_too_little_memory_is_one_line(model, views, monkeypatch):
    def forward(self, images):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Segmenter, "forward", forward)
    with pytest.raises(DeviceError) as error:
        evaluate(model, find_pairs(views, "val"), device="cpu", batch_size=3)
    assert str(error.value) == ("--batch-size 3: the device is out of memory; give a smaller one, or --device cpu")


def test_images_without_masks_do_not_count(model, views):
    pairs = find_pairs(views, "val")
    with_masks = evaluate(model, pairs[:2], device="cpu")
    mixed = evaluate(model, [*pairs[:2], Pair(image=pairs[2].image)], device="cpu")
    assert mixed.pixels == with_masks.pixels
    assert (mixed.pixel_dice, mixed.iou, mixed.accuracy) == (with_masks.pixel_dice, with_masks.iou, with_masks.accuracy)


def test_help_says_what_every_option_is():
    text = CliRunner().invoke(main, ["--help"], terminal_width=120).stdout
    lines = text.splitlines()
    options = [line.split()[0] for line in lines if line.startswith("  --")]
    shared = [f"--{name.replace('_', '-')}" for name in (*NETWORK_OPTIONS, *CARD_OPTIONS)]
    assert set(shared) < set(options)
    follows = dict(pairwise(lines))
    assert all(len(line.split()) > 3 or follows[line].startswith(" " * 20) for line in lines if line.startswith("  --"))
    assert "[default: (CPU cores, at most 8); x>=0]" in " ".join(text.split())


def test_help_imports_nothing_heavy():
    assert imported_for_help("unet_core.evaluate") == []


def test_what_is_not_there_is_told_before_pytorch_is_imported(views, tmp_path):
    script = "import sys; sys.modules['torch'] = None\nfrom unet_core.evaluate import main; main(sys.argv[1:])"
    (tmp_path / "model.pth").touch()
    for model, data, message in (
        ("no.pth", views, "no.pth: no such file; expected a checkpoint"),
        ("no.onnx", views, "no.onnx: no such file; make it with"),
        ("model.pth", tmp_path / "gone", "gone: no such folder; expected a folder of images and masks"),
    ):
        arguments = [sys.executable, "-c", script, str(tmp_path / model), str(data)]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert done.stderr.startswith(f"error: {tmp_path / message}")
