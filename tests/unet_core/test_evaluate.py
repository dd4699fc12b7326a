"""Figures of a checkpoint and of its export at the images' own size, the command's every line, and submissions."""

import csv
import os
import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from folders import write_pair
from measuring import labels_by_hand, metrics_by_hand, probability_by_hand, write_model
from networks import make_card, make_network
from PIL import Image

from export import export_onnx
from runtime import rle
from runtime.card import CARD_KEY, Training
from runtime.errors import ConfigError, DataError, DeviceError, OutputError
from runtime.image import load_image, load_labels
from runtime.predictor import Predictor
from unet_core import evaluate as module
from unet_core.checkpoint import save_checkpoint
from unet_core.evaluate import evaluate, main
from unet_core.labels import LabelSpec, load_truth
from unet_core.metrics import table
from unet_core.model import Segmenter
from unet_core.pairs import Layout, Pair, find_pairs, find_splits, fingerprint

ONE_CLASS = LabelSpec(classes=("car",))
SIZES = [(32, 48), (40, 90), (57, 31)]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Pictures of three sizes, a model that answers both classes on them, and its export, which takes seconds."""
    folder = tmp_path_factory.mktemp("source")
    for index, size in enumerate(SIZES):
        write_pair(folder / "data", "val", f"v{index}", size=size, seed=index)
    images = [pair.image for pair in find_pairs(folder / "data", "val")]
    write_model(folder / "model.pth", images)
    export_onnx(folder / "model.pth")
    return folder


@pytest.fixture
def data(source, tmp_path):
    """A copy of the pictures that a test may change."""
    return shutil.copytree(source / "data", tmp_path / "data")


@pytest.fixture
def model(source):
    return source / "model.pth"


@pytest.fixture
def models(source, tmp_path):
    """Checkpoint and export with another card: both files, and the network."""

    def write(change):
        card = change(Predictor(source / "model.onnx", "cpu").card)
        network = make_network()
        network.load_state_dict(torch.load(source / "model.pth")["state_dict"])
        save_checkpoint(tmp_path / "m.pth", network.state_dict(), replace(card, proof=None))
        graph = onnx.load(source / "model.onnx")
        (entry,) = (entry for entry in graph.metadata_props if entry.key == CARD_KEY)
        entry.value = card.to_json()
        onnx.save(graph, tmp_path / "m.onnx")
        return tmp_path / "m.pth", tmp_path / "m.onnx", network, card

    return write


def run(*arguments):
    device = () if "--device" in arguments else ("--device", "cpu")
    return CliRunner().invoke(main, [str(argument) for argument in (*arguments, *device, "--workers", "0")])


def refusal(*arguments):
    """The one line that a command ends with."""
    done = run(*arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    return done.stderr.removeprefix("error: ").strip()


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("how", ["stretch", "letterbox", "native"])
def test_checkpoint_and_export_give_the_figures_by_hand(models, data, how):
    checkpoint, exported, network, card = models(lambda card: replace(card, input=replace(card.input, fit=how)))
    pairs = find_pairs(data, "val")
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


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (2, 0), (3, 2)])
def test_figures_do_not_depend_on_batches_and_workers(model, data, batch_size, workers):
    pairs = find_pairs(data, "val")
    one = evaluate(model, pairs, device="cpu", batch_size=2)
    other = evaluate(model, pairs, device="cpu", batch_size=batch_size, workers=workers)
    assert {index: counts.tolist() for index, counts in other.state().items()} == {
        index: counts.tolist() for index, counts in one.state().items()
    }


def test_pixels_of_the_ignored_value_do_not_count(models, data):
    checkpoint, exported, network, card = models(lambda card: card)
    pairs, answers = find_pairs(data, "val"), []
    for pair in pairs:
        mask = load_labels(pair.mask)
        mask[:, :9] = 7
        Image.fromarray(mask).save(pair.mask, optimize=False)
        truth = np.where(mask == 7, 255, mask // 255)
        answers.append((labels_by_hand(probability_by_hand(network, card, pair.image)), truth))
    with pytest.raises(DataError, match=r"3 of 3 pairs cannot be used.*has the mask values 0, 7, 255"):
        evaluate(checkpoint, pairs, device="cpu")
    for path in (checkpoint, exported):
        found = evaluate(path, pairs, device="cpu", ignore_index=7)
        assert found.summary() == pytest.approx(metrics_by_hand(answers, [1]))
        assert found.pixels == sum(height * (width - 9) for height, width in SIZES)
    done = run(checkpoint, data, "--ignore-index", 7)
    assert f"  pixel_dice  {found.pixel_dice:.4f}\n" in done.stdout


@pytest.fixture
def several(data, tmp_path):
    """A checkpoint of three classes, and masks of their indices."""
    pairs = find_pairs(data, "val")
    network, card = write_model(tmp_path / "three.pth", [pair.image for pair in pairs], classes=3)
    for index, pair in enumerate(pairs):
        height, width = SIZES[index]
        blocks = np.random.default_rng(index).integers(0, 3, (4, 4))
        truth = np.kron(blocks, np.ones((15, 23))).astype(np.uint8)[:height, :width]
        pair.mask.unlink()
        Image.fromarray(truth).save(pair.mask.with_suffix(".png"))
    return tmp_path / "three.pth", network, card


def test_several_classes_are_measured_and_printed_as_a_table(several, data):
    model, network, card = several
    pairs = find_pairs(data, "val")
    answers = [
        (labels_by_hand(probability_by_hand(network, card, pair.image)), np.asarray(Image.open(pair.mask)))
        for pair in pairs
    ]
    metrics, expected = evaluate(model, pairs, device="cpu"), metrics_by_hand(answers, [0, 1, 2])
    assert {name: getattr(metrics, name) for name in expected} == pytest.approx(expected)
    done = run(model, data)
    figures = "".join(f"  {name:<12}{value:.4f}\n" for name, value in expected.items())
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout == f"{model} on 3 val images of {data}\n{figures}{table(metrics)}\n"
    assert done.stdout.splitlines()[5].split() == ["class", "pixel", "Dice", "image", "Dice", "IoU", "pixels", "%"]


def test_the_command_prints_four_figures_of_one_class(model, data):
    figures = evaluate(model, find_pairs(data, "val"), device="cpu").summary()
    done = run(model, data)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout == f"{model} on 3 val images of {data}\n" + "".join(
        f"  {name:<12}{figures[name]:.4f}\n" for name in ("accuracy", "image_dice", "pixel_dice", "iou")
    )


def test_train_images_and_other_masks(model, data):
    write_pair(data, "train", "t0", seed=5)
    (data / "train_masks").rename(data / "train_fine")
    layout = Layout(masks="fine")
    figures = evaluate(model, find_pairs(data, "train", layout), device="cpu").summary()
    done = run(model, data, "--split", "train", "--masks", "fine")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{model} on 1 train image of {data}\n  accuracy    {figures['accuracy']:.4f}\n")
    assert refusal(model, data, "--masks", "fine").startswith(f"{data / 'val_fine'}: no such folder")


@pytest.fixture
def one_folder(tmp_path):
    """Twelve images of six cars, and none to validate on."""
    folder = tmp_path / "cars"
    for index in range(12):
        write_pair(folder, "train", f"{index // 2}-{index % 2}", seed=index)
    return folder


LAYOUT = Layout(val_share=0.3, group="-")
AS_TRAINED = ("--val-share", 0.3, "--group", "-")


@pytest.mark.parametrize("suffix", [".pth", ".onnx"])
def test_a_split_off_part_is_found_again_and_another_one_is_noted(models, one_folder, monkeypatch, suffix):
    train, val = find_splits(one_folder, LAYOUT)
    training = Training(epochs=1, data=fingerprint(train, val), metrics={})
    model = {path.suffix: path for path in models(lambda card: replace(card, training=training))[:2]}[suffix]
    loads = []
    for name in ("load_checkpoint", "Predictor"):
        load = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *arguments, load=load: loads.append(load) or load(*arguments))
    done = run(model, one_folder, *AS_TRAINED)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{model} on 4 val images of {one_folder}\n")
    assert f"  pixel_dice  {evaluate(model, val, device='cpu').pixel_dice:.4f}\n" in done.stdout
    assert len(loads) == 2  # one by the command, one here
    assert run(model, one_folder).stderr == (
        "note: the model was trained on other data, or on another split of it: it may have seen these images\n"
    )
    done = run(model, one_folder, *AS_TRAINED, "--split", "train")
    assert (done.stderr, done.stdout.splitlines()[0]) == ("", f"{model} on 8 train images of {one_folder}")
    assert run(model, one_folder, "--split", "train").stderr == ""


def test_nothing_is_doubted_without_a_training_or_with_a_folder_to_validate_on(model, models, data, one_folder):
    trained, _, _, _ = models(lambda card: replace(card, training=Training(epochs=1, data="other", metrics={})))
    for path, folder in ((model, one_folder), (trained, data)):
        done = run(path, folder)
        assert (done.exit_code, done.stderr) == (0, "")


def test_a_model_without_a_card_says_what_was_assumed(data, tmp_path):
    torch.save(make_network().state_dict(), tmp_path / "bare.pth")
    done = run(tmp_path / "bare.pth", data)
    assert done.exit_code == 0
    assert done.stderr == (
        f"note: {tmp_path / 'bare.pth'}: has no card; assumed: trained at 240x160, values divided by 255, classes car\n"
    )


def test_a_model_or_folder_that_is_not_there_is_one_line(model, data, tmp_path):
    assert refusal(tmp_path / "no.pth", data).startswith(f"{tmp_path / 'no.pth'}: no such file; ")
    assert refusal(tmp_path / "no.onnx", data).startswith(f"{tmp_path / 'no.onnx'}: no such file")
    assert refusal(model, tmp_path / "no").startswith(f"{tmp_path / 'no' / 'train_images'}: no such folder; ")
    assert refusal(model, data, "--device", "gpu").startswith("device 'gpu': is none of PyTorch's here; ")


def test_pairs_that_cannot_be_used_are_listed_before_the_work(model, data, monkeypatch):
    monkeypatch.setattr(Segmenter, "forward", None)
    Image.new("L", (20, 10)).save(data / "val_masks" / "v1_mask.gif")
    (data / "val_images" / "v2.jpg").write_bytes(b"no picture")
    message = refusal(model, data)
    assert message.startswith("2 of 3 pairs cannot be used, mend or remove them: ")
    assert f"{data / 'val_masks' / 'v1_mask.gif'}: is 20x10, expected 90x40 as v1.jpg; " in message
    assert f"{data / 'val_images' / 'v2.jpg'}: is not an image" in message


def test_nothing_to_measure_is_not_perfect(model):
    with pytest.raises(DataError, match=r"^pairs: found none, expected at least one image to measure$"):
        evaluate(model, [], device="cpu")


def test_more_classes_than_a_mask_can_hold_are_refused(data, tmp_path):
    network = make_network(classes=256)
    save_checkpoint(tmp_path / "m.pth", network.state_dict(), make_card(network))
    assert refusal(tmp_path / "m.pth", data) == (
        f"{tmp_path / 'm.pth'}: has 256 classes, expected at most 255 to measure"
    )


def test_too_little_memory_is_one_line(model, data, monkeypatch):
    def forward(self, images):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Segmenter, "forward", forward)
    with pytest.raises(DeviceError) as error:
        evaluate(model, find_pairs(data, "val"), device="cpu", batch_size=3)
    assert str(error.value) == ("--batch-size 3: the device's memory is too small; give a smaller one, or --device cpu")


@pytest.mark.parametrize("suffix", [".pth", ".onnx"])
def test_a_submission_holds_the_masks_that_predict_gives(source, data, tmp_path, suffix):
    out = tmp_path / "new" / "out.csv"
    done = run(source / f"model{suffix}", data, "--submission", out)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == f"{out}: 3 masks"
    assert len(done.stdout.splitlines()) == 6
    header, *rows = rows_of(out)
    assert header == ["img", "rle_mask"]
    assert [name for name, _ in rows] == ["v0.jpg", "v1.jpg", "v2.jpg"]
    predictor = Predictor(source / "model.onnx", "cpu")
    for (name, text), size in zip(rows, SIZES, strict=True):
        expected = predictor.predict(data / "val_images" / name).mask
        assert 0 < expected.mean() < 1
        assert np.array_equal(rle.decode(text, size), expected)


def test_runs_count_from_one_and_row_by_row(model, data, tmp_path, monkeypatch):
    masks = iter([np.array([[0, 1, 1], [1, 0, 1]], np.uint8), np.zeros((2, 3), np.uint8)])

    def measure(predictions, card, on_image):
        for index, labels in enumerate(masks):
            on_image(index, labels, labels, 1.0)

    monkeypatch.setattr(module, "measure", measure)
    evaluate(model, find_pairs(data, "val"), device="cpu", submission=tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_bytes() == b"img,rle_mask\nv0.jpg,2 3 6 1\nv1.jpg,\n"


@pytest.mark.parametrize("folder", ["test_images", "test"])
def test_test_images_need_no_masks(model, data, tmp_path, folder):
    (data / "val_images").rename(data / folder)
    shutil.rmtree(data / "val_masks")
    done = run(model, data, "--split", "test", "--submission", tmp_path / "out.csv")
    assert (done.exit_code, done.stdout, done.stderr) == (0, f"{tmp_path / 'out.csv'}: 3 masks\n", "")
    _, *rows = rows_of(tmp_path / "out.csv")
    network = make_network()
    network.load_state_dict(torch.load(model)["state_dict"])
    for name, text in rows:
        path = data / folder / name
        expected = labels_by_hand(probability_by_hand(network, make_card(network), path))
        assert np.array_equal(rle.decode(text, load_image(path).shape[:2]), expected)


def test_images_without_masks_do_not_count(model, data):
    pairs = find_pairs(data, "val")
    with_masks = evaluate(model, pairs[:2], device="cpu")
    mixed = evaluate(model, [*pairs[:2], Pair(image=pairs[2].image)], device="cpu")
    assert mixed.pixels == with_masks.pixels
    assert (mixed.pixel_dice, mixed.iou, mixed.accuracy) == (with_masks.pixel_dice, with_masks.iou, with_masks.accuracy)


def test_test_images_without_a_submission_or_none_at_all_are_refused(model, data, tmp_path):
    assert refusal(model, data, "--split", "test") == (
        "--split test: has no masks to measure with; give --submission FILE, or use unet-predict"
    )
    expected = f"{data / 'test_images'}: no images in this folder; expected .jpg or .png files to predict"
    assert refusal(model, data, "--split", "test", "--submission", tmp_path / "out.csv") == expected
    (data / "test_images").mkdir()
    assert refusal(model, data, "--split", "test", "--submission", tmp_path / "out.csv") == expected


def test_a_submission_of_several_classes_is_refused_before_any_work(several, data, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "prepare", None)
    assert refusal(several[0], data, "--submission", tmp_path / "new" / "out.csv") == (
        f"--submission: is for one class, {several[0]} has 3; leave it out"
    )
    assert not (tmp_path / "new").exists()
    with pytest.raises(ConfigError):
        evaluate(several[0], find_pairs(data, "val"), device="cpu", submission=tmp_path / "out.csv")


def test_a_place_that_cannot_be_written_is_refused_before_any_work(model, data, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "prepare", None)
    (tmp_path / "folder").mkdir()
    assert refusal(model, data, "--submission", tmp_path / "folder") == (
        f"{tmp_path / 'folder'}: is a folder, expected a file name; add one"
    )
    in_the_way = data / "val_images" / "v0.jpg"
    assert refusal(model, data, "--submission", in_the_way / "out.csv").startswith(
        f"{in_the_way}: cannot create this folder (file exists); "
    )
    with pytest.raises(OutputError, match=r"cannot be written \(file name too long\)"):
        evaluate(model, find_pairs(data, "val"), device="cpu", submission=tmp_path / f"a.{'b' * 250}")


@pytest.mark.parametrize("before", [None, "an older one"])
def test_an_interrupt_leaves_no_half_file(model, data, tmp_path, monkeypatch, before):
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
    done = run(model, data, "--submission", out)
    assert (done.exit_code, done.stdout, done.stderr) == (130, "", "interrupted\n")
    assert [path.name for path in out.parent.iterdir()] == ([] if before is None else ["out.csv"])
    assert before is None or out.read_text() == before


@pytest.mark.skipif(os.name != "posix", reason="names of bytes")
def test_a_name_that_is_no_text_is_written_byte_for_byte(model, data, tmp_path):
    (data / "test").mkdir()
    shutil.copy(data / "val_images" / "v0.jpg", os.fsencode(data / "test") + b"/caf\xe9, 1.jpg")
    done = run(model, data, "--split", "test", "--submission", tmp_path / "out.csv")
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path / 'out.csv'}: 1 mask\n")
    assert (tmp_path / "out.csv").read_bytes().startswith(b'img,rle_mask\n"caf\xe9, 1.jpg",')


def test_help_says_what_every_option_is():
    text = CliRunner().invoke(main, ["--help"], terminal_width=120).stdout
    options = [line for line in text.splitlines() if line.startswith("  --")]
    assert len(options) == 10
    assert all(len(line.split()) > 3 for line in options), options
    assert "[default: (CPU cores, at most 8); x>=0]" in text
